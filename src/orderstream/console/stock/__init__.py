"""The stock: list, search, set and add, with the reason of each change."""
