"""Several draws of an adapter in one forward pass, stacked along the batch."""

from vlora.stacked.stack import Stack, obstacle

__all__ = ["Stack", "obstacle"]
