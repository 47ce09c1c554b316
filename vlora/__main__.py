"""``python -m vlora``: the same command line as ``vlora``."""

from importlib import import_module

if __name__ == "__main__":
    import_module("vlora.recipes.cli").main()
