"""``python -m vlora.recipes``: the same command line as ``vlora``."""

from vlora.recipes.cli import main

if __name__ == "__main__":
    main()
