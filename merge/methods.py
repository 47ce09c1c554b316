"""The table of merge methods: what can be written after ``method:``."""

from collections.abc import Callable
from dataclasses import dataclass

from vlora.errors import ConfigError
from vlora.merge.gradient_matching import gradient_matching
from vlora.merge.linear import linear
from vlora.merge.task_arithmetic import task_arithmetic
from vlora.merge.update import MergedModule

__all__ = ["METHODS", "Method", "get_method"]


@dataclass(frozen=True)
class Method:
    """One merge method."""

    function: Callable[..., MergedModule]
    """``(updates, weights, *, rank, **options) -> MergedModule`` for one module."""
    paper: str
    """Where it comes from."""
    summary: str
    """One line for people who choose."""
    needs: str
    """What the adapters must have for it, and what it makes use of."""
    options: tuple[str, ...] = ()
    """Configuration keys it takes besides weights and rank."""
    full_tensors: str = "mean"
    """How fully trained tensors (heads, biases) merge: ``mean`` or ``precision`` (weighted by h where known)."""
    identity_scale: bool = False
    """Whether the weight of a single adapter scales it (False: a mean, which ignores one weight)."""


METHODS: dict[str, Method] = {
    "linear": Method(
        linear,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
        summary="weighted mean of the updates, weights normalised to sum 1",
        needs="any LoRA adapters of one base model",
    ),
    "task_arithmetic": Method(
        task_arithmetic,
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        summary="scaled sum of the updates, weights as given",
        needs="any LoRA adapters of one base model",
        options=("scale",),
        identity_scale=True,
    ),
    "gradient_matching": Method(
        gradient_matching,
        paper="Daheim et al. 2024, arXiv:2310.12808",
        summary="uncertainty-weighted: each adapter counts where its data have curvature",
        needs="best with curvature.safetensors (input Grams); works with h alone; without both it is the sum",
        options=("tau", "scale", "curvature"),
        full_tensors="precision",
        identity_scale=True,
    ),
}
"""Name -> method."""


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown merge method {name!r}; expected one of {', '.join(METHODS)}")
    return METHODS[name]
