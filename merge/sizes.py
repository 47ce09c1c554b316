"""Sizes in bytes for people to read."""

__all__ = ["shown_size"]


def shown_size(count: int) -> str:
    """Bytes in the largest decimal unit that fits."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} bytes"
