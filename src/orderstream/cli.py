def main() -> None:
    print("orderstream")
