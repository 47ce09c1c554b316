r"""One input Gram per attention head in place of one per module: a step from S (x) G towards the whole curvature.

    python -m benchmarks.merge_quality.heads tune --data DATA --work WORK [--seeds 100 101] [--only NAME]
    python -m benchmarks.merge_quality.heads test --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

The outputs of a module are split into blocks (heads), and every block of rows of W_t = s B_t A_t is merged by the
closed form with a Gram of its own,

    X_h (tau I + sum_t w_t G_th) = sum_t w_t W_th (tau I + G_th),
    D_ih = sum_u g_iuh x_iu^T        gradient of row i's loss for the rows of block h, over its tokens u,
    apart:    G_h = sum_i c_ih sum_u |g_iuh|^2 x_iu x_iu^T
    together: G_h = sum_i c_ih D_ih^T D_ih

which is S (x) G with one block of S per head, each with its own G. *Own votes*: c_ih gives every head of every row one
vote (apart: 1 / sum_u |g_iuh|^2, together: 1 / |D_ih|^2), and each G_h is scaled to mean diagonal 1. *Shared votes*: a
row has one vote, which its heads share by the squares of their gradients, and one scale makes the mean over heads 1.

In this network a head's output is W_v,h x with x the mean of the tokens that the head attends to, so D_ih is the outer
product of its gradient with x, and G_h *together* is the Gram of what the head attends to. Grams are those of one pass
over the training rows at the adapter's mean. ``tune`` sees validation rows only, of seeds that nothing else uses;
``test`` the test rows, of all sets of four to twelve and of all pairs of different tasks.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import MAIN, Arm, cut, merge
from benchmarks.merge_quality.curvature import loaded
from benchmarks.merge_quality.network import HEADS, MODULES, RANK, Network
from benchmarks.merge_quality.pairs import Pair
from benchmarks.merge_quality.run import RESULTS, TUNING_SEEDS, Unit, arguments, units
from benchmarks.merge_quality.scores import Scorer
from benchmarks.merge_quality.training import logits
from benchmarks.posterior_quality.tasks import Rows
from benchmarks.rows import keep_and_tell
from vlora.backward import watched
from vlora.merge.curvature.total import total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.kronecker.closed_form import kronecker_rows
from vlora.merge.methods.gradient_matching import DEFAULT_TAU

__all__ = [
    "BESIDE",
    "CHOSEN",
    "CONTROL",
    "CUT",
    "HEADS_ARM",
    "TRIED",
    "Way",
    "gathered",
    "merge_by_blocks",
    "scored",
]

QUERY, VALUE = MODULES[:2]


@dataclass(frozen=True)
class Way:
    """How Grams are gathered."""

    split: tuple[str, ...] = ()
    """Modules whose outputs are split, the others have one Gram."""
    together: tuple[str, ...] = ()
    """Modules whose tokens' gradients are summed before they are squared."""
    shared: bool = False
    """Whether the heads share a row's vote."""


TRIED: dict[str, Way] = {
    "one Gram": Way(),
    "one Gram, tokens together": Way(together=(VALUE,)),
    "heads of the value, tokens apart": Way((VALUE,)),
    "heads of the value, tokens together": Way((VALUE,), (VALUE,)),
    "heads of the value, together, shared votes": Way((VALUE,), (VALUE,), shared=True),
    "heads of query and value, apart, shared votes": Way((QUERY, VALUE), (), shared=True),
    "heads of query and value, together, shared votes": Way((QUERY, VALUE), (VALUE,), shared=True),
    "twelve blocks of every module, shared votes": Way(MODULES, (VALUE,), shared=True),
}
"""On tuning seeds; all of one pass, so the first is the control."""
CONTROL, HEADS_ARM = "one Gram", "heads of the value, tokens together"
CHOSEN = (CONTROL, "one Gram, tokens together", HEADS_ARM)
"""Of them on test rows: the one that was best on tuning seeds, and what it is made of."""
CUT = f"{HEADS_ARM}, cut to the sum of ranks"
"""A Gram per head makes another A per head; this is what the rank of one Gram's merge holds of it."""
BESIDE = ("RegMean", "gradient matching, Kronecker")
"""Scored on the same adapters, with Grams streamed while training."""


@dataclass
class _Sums:
    """Running Grams ``(H, n, n)`` per module."""

    way: Way
    votes: Tensor | None
    found: dict[str, Tensor]
    first: int = 0
    """Number of the batch's first row."""

    def add(self, module: str, x: Tensor, g: Tensor) -> None:
        """One batch: inputs ``(N, L, n)`` and gradients of the outputs ``(N, L, m)``."""
        x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
        heads = HEADS if module in self.way.split else 1
        g = g.unflatten(-1, (heads, -1))
        if module in self.way.together and x.shape[1] > 1:
            whole = torch.einsum("nlhd,nlk->nhdk", g, x)
            share = self._share(whole.square().sum((-1, -2)))
            rows = (whole * share[..., None, None]).transpose(0, 1).flatten(1, 2)
        else:
            size = g.square().sum(-1)
            weight = size.sqrt() * self._share(size.sum(1))[:, None]
            rows = (x[:, :, None] * weight[..., None]).permute(2, 0, 1, 3).flatten(1, 2)
        self.found[module] = self.found.get(module, 0.0) + rows.mT @ rows

    def _share(self, size: Tensor) -> Tensor:
        """Root of c, shape ``(N, H)``, from the squared norms of the gradients."""
        if self.way.shared:
            size = size.sum(1, keepdim=True).expand_as(size)
        root = torch.where(size > 0, size, torch.inf).rsqrt()
        return root if self.votes is None else root * self.votes[self.first :][: len(root), None].sqrt()


def gathered(
    network: Network, rows: Rows, head: Tensor, way: Way, votes: Tensor | None = None
) -> dict[str, Tensor]:
    """Grams of one pass, ``(H, n, n)`` per module with H = 1 where it is not split.

    Args:
        network: At the adapter's mean.
        rows: Training rows.
        head: The adapter's.
        way: What is split, and how rows count.
        votes: What a row counts; one each if not given.
    """
    sums = _Sums(way, votes, {})
    with watched({layer: partial(sums.add, module) for module, layer in network.adapted.items()}):
        for sums.first in range(0, len(rows), 32):
            part = slice(sums.first, sums.first + 32)
            states = network(rows.hidden[part], rows.mask[part])
            cross_entropy(logits(states, head.detach()), rows.label[part], reduction="sum").backward()
    network.zero_grad()
    return sums.found


def merge_by_blocks(
    adapters: Sequence[Adapter], grams: Sequence[Mapping[str, Tensor]], shared: bool, tau: float = DEFAULT_TAU
) -> dict[str, Tensor]:
    """Dense merged update per module, all adapters with weight 1.

    Args:
        adapters: W_t.
        grams: Per adapter G_th, ``(H, n, n)`` per module.
        shared: One scale per adapter and module; else one per head as well.
        tau: Prior precision.
    """
    merged, ones = {}, [1.0] * len(adapters)
    for module in MODULES:
        whole = [found[module].double() for found in grams]
        heads = len(whole[0])
        rows = [adapter.update(module).delta().chunk(heads) for adapter in adapters]
        scales = [_scales(gram, a.task, shared) for gram, a in zip(whole, adapters, strict=True)]
        blocks = []
        for h in range(heads):
            part, factors = [gram[h] for gram in whole], [scale[h] for scale in scales]
            total, _ = total_curvature(part, factors, ones, tau, module)
            blocks.append(kronecker_rows([row[h] for row in rows], part, factors, ones, tau, total))
        merged[module] = torch.cat(blocks).float()
    return merged


def _scales(grams: Tensor, task: str, shared: bool) -> list[float]:
    """What makes the mean diagonal 1, of every head or over all heads."""
    if shared:
        return [unit_factor(grams.mean(0), task)] * len(grams)
    return [unit_factor(gram, task) for gram in grams]


def scored(
    unit: Unit, library: Library, ways: Mapping[str, Way], grams: "Gathered", test: bool
) -> dict[str, Any]:
    """Scores of the ways at the default scalar, and of what they are compared with."""
    four = unit.four if isinstance(unit, Pair) else unit.tasks
    adapters = library.adapters(unit.family, four, unit.gauge, unit.optimizer, unit.seed)
    adapters = [a for a in adapters if a.task in unit.tasks]
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(library, heads, unit, test)
    arms: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    arms |= {name: {"default": scorer.all(merge(MAIN[name], adapters))} for name in BESIDE}
    for name, way in ways.items():
        found = [grams.of(unit, adapter, name, way) for adapter in adapters]
        merged = merge_by_blocks(adapters, found, way.shared)
        arms[name] = {"default": scorer.all(merged)}
        if test and name == HEADS_ARM and not isinstance(unit, Pair):
            short = cut(Arm("gradient_matching", rank=RANK * len(adapters)), merged, adapters)
            arms[CUT] = {"default": scorer.all(short)}
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": arms}


class Gathered:
    """Grams of the adapters of one set, kept for its pairs."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.kept: dict[tuple[str, ...], dict[str, Tensor]] = {}

    def of(self, unit: Unit, adapter: Adapter, name: str, way: Way) -> dict[str, Tensor]:
        """Grams of one adapter in one way."""
        key = (unit.family, unit.gauge, unit.optimizer, str(unit.seed), adapter.task, name)
        if key not in self.kept:
            self.kept = {k: v for k, v in self.kept.items() if k[:4] == key[:4]}
            rows = self.library.task(adapter.task).train
            self.kept[key] = gathered(loaded(adapter), rows, adapter.head(), way)
        return self.kept[key]


def main() -> None:
    """One JSON per set, and per pair of a set of IVON's adapters."""
    parser = arguments(str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("part", choices=["tune", "test"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    library, tune = Library(args.data, args.work), args.part == "tune"
    ways = {name: TRIED[name] for name in (TRIED if tune else CHOSEN)}
    for unit in units(args.seeds or list(TUNING_SEEDS if tune else range(3))):
        mixed, ivon = unit.family == "mixed", unit.optimizer == "ivon"
        if (
            unit.count == 2
            or (tune and unit.count != 4)
            or args.only not in unit.name
            or (tune and not (mixed and ivon))
        ):
            continue
        grams = Gathered(library)
        part = "heads_tune" if tune else "heads"
        keep_and_tell(RESULTS, part, unit.name, lambda u=unit, g=grams: scored(u, library, ways, g, not tune))
        if tune or not (mixed and ivon) or unit.count != 4:
            continue
        for first, second in combinations(unit.tasks, 2):
            pair = Pair(unit.family, 2, unit.gauge, unit.optimizer, unit.seed, first, second)
            keep_and_tell(
                RESULTS, "heads_pairs", pair.name, lambda p=pair, g=grams: scored(p, library, ways, g, True)
            )


if __name__ == "__main__":
    main()
