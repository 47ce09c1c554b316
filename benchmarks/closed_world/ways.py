"""What is merged how: methods of ``vlora merge``, and gradient matching with its curvature taken apart.

A ``Way`` is a method at its defaults (weights 1) but for what is named. Nothing is cut to a rank that a method need not
cut: ``lossless`` keeps every direction, 128 is the smaller side of every module, and methods with a precision for
every entry are given the rank of all adapters together (``ALL_RANKS``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlora import Posterior
from vlora.curvature import Votes
from vlora.merge.in_memory import merge_adapters

__all__ = ["APART", "METHODS", "Way", "merged"]

ALL_RANKS = "all ranks"
ROWS = 2048
"""Training rows that the Grams are measured on."""
INPUT, OUTPUT, UNWEIGHTED = ".input_gram", ".output_gram", ".activation_gram"

Grams = Mapping[str, Tensor]
UNDAMPED = {"damping": 0.0}
"""MaTS as in its paper."""


@dataclass(frozen=True)
class Way:
    """How adapters are merged.

    Attributes:
        shown: Name in the tables.
        method: Of ``vlora merge``.
        rank: ``lossless``, a number, or ``ALL_RANKS``.
        options: Of the method.
        grams: Makes the Grams that the method sees from those that were measured; None leaves them.
        rows: Training rows that the Grams are measured on; None for those gathered while training.
        votes: What an example counts in them, of :func:`vlora.curvature.collect_curvature`.
        joined: Whether tokens are added up before they are squared in them.
        most: Most adapters that it takes.
    """

    shown: str
    method: str = "gradient_matching"
    rank: str | int = "lossless"
    options: Mapping[str, Any] = field(default_factory=dict)
    grams: Callable[[Grams], Grams] | None = None
    rows: int | None = ROWS
    votes: Votes = "equal"
    joined: bool = False
    most: int = 4


def merged(way: Way, inputs: Sequence[Posterior]) -> Posterior:
    """The merge of some posteriors that carry the Grams of their rows."""
    if way.grams is not None:
        inputs = [replace(one, curvature=dict(way.grams(one.curvature or {}))) for one in inputs]
    rank = way.rank
    if rank == ALL_RANKS:
        rank = sum(int(one.adapter_config["r"]) for one in inputs)
    return merge_adapters(inputs, method=way.method, rank=rank, **way.options)


def _diagonal(grams: Grams) -> Grams:
    """Without what ties one input or output to another."""
    return {key: torch.diag(gram.diagonal()) for key, gram in grams.items()}


def _unweighted(grams: Grams) -> Grams:
    """Every token of every row with the same weight, in place of its squared gradient."""
    plain = {
        key.removesuffix(UNWEIGHTED) + INPUT: gram for key, gram in grams.items() if key.endswith(UNWEIGHTED)
    }
    return {**grams, **plain}


def _output_only(grams: Grams) -> Grams:
    """All inputs alike."""
    return {key: torch.eye(len(gram)) if key.endswith(INPUT) else gram for key, gram in grams.items()}


def _no_output(grams: Grams) -> Grams:
    """All outputs alike."""
    return {key: gram for key, gram in grams.items() if not key.endswith(OUTPUT)}


METHODS: dict[str, Way] = {
    "linear": Way("mean", "linear"),
    "slerp": Way("slerp", "slerp", 128, most=2),
    "task_arithmetic": Way("sum", "task_arithmetic"),
    "ties": Way("TIES", "ties", 128),
    "dare_linear": Way("DARE", "dare_linear", 128),
    "dare_ties": Way("DARE + TIES", "dare_ties", 128),
    "della": Way("DELLA", "della", 128),
    "tsv": Way("TSV", "tsv"),
    "iso_c": Way("Iso-C", "iso_c"),
    "fisher": Way("Fisher", "fisher", ALL_RANKS),
    "regmean": Way("RegMean", "regmean"),
    "mats": Way("MaTS", "mats", 128, options=UNDAMPED, votes="change"),
    "separable": Way("gradient matching by h", rank=ALL_RANKS, options={"curvature": "separable"}),
    "equal_votes": Way("gradient matching, equal votes"),
    "gradient_matching": Way("gradient matching", votes="change"),
    "joined": Way("gradient matching, tokens joined (the default)", votes="change", joined=True),
}
"""Name of a unit -> the methods that are compared."""

APART: dict[str, Way] = {
    "isotropic": Way("none (sum)", options={"curvature": "isotropic"}),
    "separable": METHODS["separable"],
    "output_only": Way("S alone", "mats", 128, options=UNDAMPED, grams=_output_only),
    "diagonal": Way("diagonal of G", grams=_diagonal),
    "unweighted": Way("Gram of inputs, unweighted", grams=_unweighted),
    "equal_votes": METHODS["equal_votes"],
    "gradient_matching": METHODS["gradient_matching"],
    "mats_equal": Way("MaTS, equal votes", "mats", 128, options=UNDAMPED),
    "mats": METHODS["mats"],
    "rows_32": Way("G of 32 rows", rows=32),
    "rows_128": Way("G of 128 rows", rows=128),
    "rows_512": Way("G of 512 rows", rows=512),
    "streamed_equal": Way("G gathered while training", rows=None),
    "streamed": Way("G gathered while training, votes by change", rows=None, votes="change"),
    "streamed_mats": Way(
        "MaTS, gathered while training, votes by change",
        "mats",
        128,
        options=UNDAMPED,
        rows=None,
        votes="change",
    ),
    "tau_0.03": Way("G, tau .03", options={"tau": 0.03}),
    "tau_1": Way("G, tau 1", options={"tau": 1.0}),
    "rank_8": Way("G and S, cut to rank 8", rank=8),
    "rank_8_no_output": Way("G without S, cut to rank 8", rank=8, grams=_no_output),
    "rank_8_unweighted": Way(
        "Gram of inputs, cut to rank 8", rank=8, grams=lambda g: _no_output(_unweighted(g))
    ),
}
"""Name of a unit -> gradient matching with other curvatures; equal votes but where it says so."""
