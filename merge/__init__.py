"""Merging LoRA posteriors: pure methods per module, and the programs that apply them to whole adapters.

A merge of adapters goes through the rooms of this package from below: ``update.py`` is what a method sees of one
module, ``curvature``, ``low_rank`` and ``kronecker`` the algebra on it, ``methods`` one file per method. ``config.py``
says what can be asked for, ``adapters`` reads, checks and assembles posteriors, ``report`` explains; ``in_memory.py``
and ``run.py`` put it together. ``checkpoints`` is the same for whole models, block by block. ``plan``, ``preview``
and ``unmerge`` answer questions before and after; ``mergekit`` reads that tool's YAML.

The names below load on first use, so that the pure methods (floor 0) stay importable with torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora.merge.config import AdapterSource, MergeConfig
    from vlora.merge.methods import METHODS, Method
    from vlora.merge.run import MergeReport, merge_adapters, run_merge
    from vlora.merge.unmerge.remove import remove_adapter
    from vlora.merge.unmerge.run import Removal, remove_contributors

__all__ = [
    "METHODS",
    "AdapterSource",
    "MergeConfig",
    "MergeReport",
    "Method",
    "Removal",
    "merge_adapters",
    "remove_adapter",
    "remove_contributors",
    "run_merge",
]

_HOME = {
    "METHODS": "vlora.merge.methods",
    "AdapterSource": "vlora.merge.config",
    "MergeConfig": "vlora.merge.config",
    "MergeReport": "vlora.merge.run",
    "Method": "vlora.merge.methods",
    "merge_adapters": "vlora.merge.run",
    "Removal": "vlora.merge.unmerge.run",
    "remove_adapter": "vlora.merge.unmerge.remove",
    "remove_contributors": "vlora.merge.unmerge.run",
    "run_merge": "vlora.merge.run",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlora.merge' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted(__all__)
