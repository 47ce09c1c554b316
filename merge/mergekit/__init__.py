"""mergekit's YAML as configuration of ours: ``reading.py`` translates, with its models and its parameter spreads."""

from vlora.merge.mergekit.reading import is_mergekit, translate

__all__ = ["is_mergekit", "translate"]
