"""The console's area for dead letters: find, understand, redrive and discard them."""
