"""Merging whole checkpoints: models into a model, adapters into their base, block by block in bounded memory.

``config.py`` says what can be asked for; ``plan.py`` answers it from file headers alone; ``run.py`` carries a plan out.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlora.merge.checkpoints.config import ModelMergeConfig, ModelSource
    from vlora.merge.checkpoints.plan import MergePlan, make_plan
    from vlora.merge.checkpoints.run import run_model_merge

__all__ = ["MergePlan", "ModelMergeConfig", "ModelSource", "make_plan", "run_model_merge"]

_HOME = {
    "MergePlan": "vlora.merge.checkpoints.plan",
    "ModelMergeConfig": "vlora.merge.checkpoints.config",
    "ModelSource": "vlora.merge.checkpoints.config",
    "make_plan": "vlora.merge.checkpoints.plan",
    "run_model_merge": "vlora.merge.checkpoints.run",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it (PEP 562)."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlora.merge.checkpoints' has no attribute {name!r}")
