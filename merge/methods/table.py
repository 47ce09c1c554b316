"""The table of merge methods: what can be written after ``method:``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vlora.errors import ConfigError
from vlora.merge.methods.dare import dare_linear, dare_ties
from vlora.merge.methods.della import della
from vlora.merge.methods.fisher import fisher
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.hints import method_hint
from vlora.merge.methods.iso import iso_c
from vlora.merge.methods.linear import linear
from vlora.merge.methods.mats import mats
from vlora.merge.methods.regmean import regmean
from vlora.merge.methods.slerp import slerp
from vlora.merge.methods.task_arithmetic import task_arithmetic
from vlora.merge.methods.ties import ties
from vlora.merge.methods.tsv import tsv
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
    single: Literal["mean", "sum", "changed"] = "changed"
    """What a single adapter comes back as: unchanged at any positive weight (``mean``), scaled by its weight (``sum``),
    or changed by the method itself."""


_ANY = "any LoRA adapters of one base model"

METHODS: dict[str, Method] = {
    "linear": Method(
        linear,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
        summary="weighted mean of the updates, weights normalised to sum 1",
        needs=_ANY,
        single="mean",
    ),
    "slerp": Method(
        slerp,
        paper="Shoemake 1985; on model weights as in mergekit",
        summary="along the arc between two updates, module by module; keeps their length where a mean shortens it",
        needs="two LoRA adapters of one base model, positive weights",
        single="mean",
    ),
    "task_arithmetic": Method(
        task_arithmetic,
        paper="Ilharco et al. 2023, arXiv:2212.04089",
        summary="scaled sum of the updates, weights as given",
        needs=_ANY,
        options=("scale",),
        single="sum",
    ),
    "ties": Method(
        ties,
        paper="Yadav et al. 2023, arXiv:2306.01708",
        summary="largest entries only; of those, the ones that agree with the majority sign are averaged",
        needs=_ANY,
        options=("density", "scale", "normalise", "space"),
    ),
    "dare_linear": Method(
        dare_linear,
        paper="Yu et al. 2024, arXiv:2311.03099",
        summary="random entries dropped, the rest rescaled and summed",
        needs=_ANY,
        options=("density", "scale", "seed", "space"),
    ),
    "dare_ties": Method(
        dare_ties,
        paper="Yu et al. 2024, arXiv:2311.03099",
        summary="random entries dropped, the rest rescaled and averaged by majority sign",
        needs=_ANY,
        options=("density", "scale", "normalise", "seed", "space"),
    ),
    "della": Method(
        della,
        paper="Deep et al. 2024, arXiv:2406.11617",
        summary="as dare_ties, but large entries are dropped less often",
        needs=_ANY,
        options=("density", "epsilon", "scale", "normalise", "seed", "space"),
    ),
    "tsv": Method(
        tsv,
        paper="Gargiulo et al. 2025, arXiv:2412.00081",
        summary="singular vectors of all updates made orthogonal to each other, then summed",
        needs=_ANY,
        options=("scale", "task_rank"),
        single="sum",
    ),
    "iso_c": Method(
        iso_c,
        paper="Marczak et al. 2025, arXiv:2502.04959",
        summary="sum of the updates with all its singular values made equal",
        needs=_ANY,
        options=("scale",),
    ),
    "fisher": Method(
        fisher,
        paper="Matena and Raffel 2022, arXiv:2111.09832",
        summary="average weighted by diagonal Fisher information; the base has no part in it",
        needs="h of every adapter (a posterior folder), positive weights",
        options=("normalise",),
        full_tensors="precision",
        single="mean",
    ),
    "regmean": Method(
        regmean,
        paper="Jin et al. 2023, arXiv:2212.09849",
        summary="least squares: outputs closest to each adapter's on its own inputs",
        needs="the unweighted input Gram of every adapter (activation_gram), positive weights",
        options=("shrink",),
        single="mean",
    ),
    "mats": Method(
        mats,
        paper="Tam, Bansal and Raffel 2024, arXiv:2312.04339",
        summary="K-FAC of every adapter on both sides, solved by conjugate gradients; the base takes part as a prior",
        needs="curvature.safetensors (input and output Grams) of every adapter, positive weights",
        options=("tau", "scale", "damping", "steps"),
        full_tensors="precision",
        single="sum",
    ),
    "gradient_matching": Method(
        gradient_matching,
        paper="Daheim et al. 2024, arXiv:2310.12808",
        summary="uncertainty-weighted: each adapter counts where its data have curvature",
        needs="best with curvature.safetensors (input Grams); works with h alone; without both it is the sum",
        options=("tau", "prior", "keep", "keep_weight", "scale", "curvature", "negative", "ancestor"),
        full_tensors="precision",
        single="sum",
    ),
}
"""Name -> method."""


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        hint = method_hint(name, list(METHODS))
        hint += " " if hint.endswith("?") else "; " if hint else ""
        raise ConfigError(f"unknown merge method {name!r}; {hint}methods: {', '.join(METHODS)}")
    return METHODS[name]
