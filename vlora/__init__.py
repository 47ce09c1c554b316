"""vlora: fine-tune a distribution instead of a point.

The names below load on first use, so ``import vlora`` stays quick and pulls in neither transformers nor peft.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora.ivon.optimizer import IVON
    from vlora.posterior import Posterior, PosteriorMeta, Site

    __version__: str

__all__ = ["IVON", "Posterior", "PosteriorMeta", "Site", "__version__"]

_HOME = {
    "IVON": "vlora.ivon.optimizer",
    "Posterior": "vlora.posterior",
    "PosteriorMeta": "vlora.posterior",
    "Site": "vlora.posterior",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562)."""
    if name == "__version__":
        return metadata.version("variational-lora")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlora' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
