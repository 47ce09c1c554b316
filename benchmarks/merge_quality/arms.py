"""The merges that are compared: methods of ``vlora.merge.METHODS`` at their defaults, and curvature taken apart.

Merges are not cut to a rank here: concatenated where that is exact, dense methods at the full rank of the module. So
what is compared is the merge, not its recompression; ``AT_RANK`` has the main ones at the adapters' own rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter
from benchmarks.merge_quality.network import MODULES, RANK
from vlora.grams import Gram, compress_grams, dense, stored_gram
from vlora.merge.kronecker.closed_form import metric_root
from vlora.merge.low_rank.algebra import truncate
from vlora.merge.methods import get_method
from vlora.merge.update import LoraUpdate

FULL = 384
"""Full rank of every adapted module."""
Change = Callable[[LoraUpdate], LoraUpdate]


@dataclass(frozen=True)
class Arm:
    """One way to merge."""

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    rank: str | int = "lossless"
    change: Change = lambda update: update
    """What is done to the updates before."""
    count: int | None = None
    """Only for this many adapters."""
    needs: str = ""
    """``h`` where a posterior is needed."""
    cut_from: str = ""
    """Name of the arm at full rank that this one cuts to its rank, as the method itself would."""


def merge(arm: Arm, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Dense merged update per module, all adapters with weight 1."""
    method, total = get_method(arm.method), RANK * len(adapters)
    merged = {}
    for module in MODULES:
        updates = [arm.change(adapter.update(module)) for adapter in adapters]
        rank = min(total, FULL) if arm.rank == "sum" else arm.rank
        done = method.function(updates, [1.0] * len(updates), rank=rank, **arm.options)
        merged[module] = done.update.delta().float()
    return merged


def cut(arm: Arm, whole: dict[str, Tensor], adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """A merge cut to the arm's rank in the metric of the total Grams, as MaTS and gradient matching do it."""
    assert isinstance(arm.rank, int)
    found, weights = {}, [1.0] * len(adapters)
    for module in MODULES:
        updates = [adapter.update(module) for adapter in adapters]
        left, right = (
            metric_root([getattr(u, side) for u in updates], weights, 0.3)
            for side in ("output_gram", "input_gram")
        )
        u, values, vh = torch.linalg.svd(whole[module].double(), full_matrices=False)
        b, a, _ = truncate(u * values, vh, arm.rank, left, right)
        found[module] = (b @ a).float()
    return found


def plain(update: LoraUpdate) -> LoraUpdate:
    """In single precision without its posterior, for methods that make dense updates and use neither."""
    return LoraUpdate(
        update.b.float(), update.a.float(), update.scale, adapter=update.adapter, module=update.module
    )


def activations(update: LoraUpdate) -> LoraUpdate:
    """Inputs unweighted by gradients."""
    return replace(update, input_gram=update.activation_gram)


def diagonal(update: LoraUpdate) -> LoraUpdate:
    """Without the off-diagonal part of both Grams."""
    return replace(update, input_gram=_diagonal(update.input_gram), output_gram=_diagonal(update.output_gram))


def output_only(update: LoraUpdate) -> LoraUpdate:
    """Only the output side: G = I."""
    return replace(update, input_gram=torch.eye(update.a.shape[1], dtype=update.a.dtype))


def leading(rank: int) -> Change:
    """Only the leading directions of G, the rest isotropic."""

    def change(update: LoraUpdate) -> LoraUpdate:
        assert update.input_gram is not None
        short = stored_gram(compress_grams({"gram": dense(update.input_gram).float()}, rank), "gram")
        assert short is not None
        return replace(update, input_gram=short.to(update.a.dtype))

    return change


def _diagonal(gram: Gram | None) -> Tensor | None:
    return None if gram is None else torch.diag(gram.diagonal())


KRONECKER = {"curvature": "kronecker"}
UNDAMPED = {"damping": 0.0}
"""MaTS as in its paper."""
MAIN: dict[str, Arm] = {
    "linear (mean)": Arm("linear"),
    "task arithmetic (sum)": Arm("task_arithmetic"),
    "TSV": Arm("tsv"),
    "RegMean": Arm("regmean"),
    "gradient matching, Kronecker": Arm("gradient_matching", KRONECKER),
}
"""For the curve over numbers of adapters too."""
OTHERS: dict[str, Arm] = {
    "slerp": Arm("slerp", count=2),
    "TIES": Arm("ties", rank=FULL, change=plain),
    "TIES, core space": Arm("ties", {"space": "core"}),
    "DARE linear": Arm("dare_linear", rank=FULL, change=plain),
    "DARE TIES": Arm("dare_ties", rank=FULL, change=plain),
    "DELLA": Arm("della", rank=FULL, change=plain),
    "Fisher": Arm("fisher", rank="sum", needs="h"),
    "Iso-C": Arm("iso_c"),
    "MaTS": Arm("mats", UNDAMPED, FULL),
    "gradient matching, separable h": Arm("gradient_matching", {"curvature": "separable"}, "sum", needs="h"),
}
AT_RANK: dict[str, Arm] = {
    "task arithmetic, rank 8": Arm("task_arithmetic", rank=RANK),
    "TSV, rank 8": Arm("tsv", rank=RANK),
    "MaTS, rank 8": Arm("mats", UNDAMPED, RANK, cut_from="MaTS"),
    "gradient matching, Kronecker, rank 8": Arm("gradient_matching", KRONECKER, RANK),
}
ABLATIONS: dict[str, Arm] = {
    "G unweighted by gradients": Arm("gradient_matching", KRONECKER, change=activations),
    "G, diagonal only": Arm("gradient_matching", KRONECKER, change=diagonal),
    "S only": Arm("mats", UNDAMPED, FULL, output_only),
    "G and S, diagonals only": Arm("mats", UNDAMPED, FULL, diagonal),
    "G, 8 directions": Arm("gradient_matching", KRONECKER, change=leading(8)),
    "G, 32 directions": Arm("gradient_matching", KRONECKER, change=leading(32)),
    "G, tau .03": Arm("gradient_matching", {**KRONECKER, "tau": 0.03}),
    "G, tau .1": Arm("gradient_matching", {**KRONECKER, "tau": 0.1}),
    "G, tau 1": Arm("gradient_matching", {**KRONECKER, "tau": 1.0}),
}
"""Curvature taken apart, at the default scalar only."""
MORE = OTHERS | AT_RANK | ABLATIONS
VOTED = "gradient matching, votes by change"
VOTES: dict[str, Arm] = {
    VOTED: MAIN["gradient matching, Kronecker"],
    "MaTS, votes by change": OTHERS["MaTS"],
}
"""With Grams in which a visit counts by the size of its gradient; on domains the first only."""
