"""What the merge of one module takes: the method itself, run on random numbers of the module's shape.

A count of operations says too little. Tall thin factors, singular vectors, small systems per row and passes over memory
run at very different speeds, and how much of each a method needs is in its code. So a plan runs the method and looks at
the clock: on a module with a half, a quarter ... of the inputs and outputs and the same ranks, from small to large, and
goes up to the size itself unless the next step would take more than half a second. From there on

    t(F) = t_2 + (F - F_2) min((t_2 - t_1) / (F_2 - F_1), t_2 / F_2)

with F the operations that :func:`vlora.merge.plan.cost.module_cost` counts and the last two sizes tried: what does not
grow with the size is not multiplied.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from vlora.grams import Gram, ShortGram, dense
from vlora.merge.config import MergeConfig
from vlora.merge.curvature.kept import Kept
from vlora.merge.methods import Method, get_method
from vlora.merge.plan.cost import Cost, ModuleKind, module_cost
from vlora.merge.report.report import describe_module
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["Trial", "run_trial"]

_BUDGET = 0.5
"""Seconds that the last step may take."""
_LEAST = 32
"""Inputs and outputs of the smallest module."""


@dataclass(frozen=True)
class Trial:
    """Seconds for one module of a kind."""

    merge: float
    """The method, once."""
    alone: float
    """The method on a single adapter, once; 0 where the merge does not check that."""
    describe: float
    """What the report says of the module."""
    factor: float
    """Operations of the module over those of the one that was tried; 1 where that had the same size."""


def run_trial(config: MergeConfig, kind: ModuleKind) -> Trial:
    """Merge modules of this kind, from small to large, and take the time.

    Args:
        config: Method, rank and options; the weights do not matter for the time.
        kind: Shape, ranks, and what all adapters have.
    """
    full, method, sizes = module_cost(config, kind), get_method(config.method), _sizes(kind)
    _timed(config, method, sizes[0])  # loads what is loaded at first use
    tried: list[tuple[Cost, tuple[float, float, float]]] = []
    for small in sizes:
        cost = module_cost(config, small)
        if tried and max(_scaled(tried, cost)) > _BUDGET:
            break
        tried.append((cost, _timed(config, method, small)))
    merge, alone, describe = _scaled(tried, full)
    return Trial(merge, alone, describe, full.flops / tried[-1][0].flops)


def _scaled(
    tried: Sequence[tuple[Cost, tuple[float, float, float]]], wanted: Cost
) -> tuple[float, float, float]:
    """Seconds of merge, merge of one and report at other numbers of operations than those that were tried."""
    (last, seconds), (former, before) = tried[-1], tried[-2] if len(tried) > 1 else tried[-1]
    works = [(c.flops, c.flops, c.telling) for c in (wanted, last, former)]
    found = []
    for now, then, target, here, there in zip(seconds, before, *works, strict=True):
        slope = now / here
        if here > there:
            slope = min(slope, max(0.0, now - then) / (here - there))
        found.append(now + slope * (target - here))
    return (found[0], found[1], found[2])


def _sizes(kind: ModuleKind) -> list[ModuleKind]:
    """The kind, before it with half its inputs and outputs, and so on; smallest first."""
    sizes = [kind]
    while min(sizes[0].shape) >= 2 * max(_LEAST, sum(kind.ranks)):
        m, n = sizes[0].shape
        sizes.insert(0, replace(kind, shape=(m // 2, n // 2), grams=_narrowed(kind, (m // 2, n // 2))))
    return sizes


def _narrowed(kind: ModuleKind, shape: tuple[int, int]) -> tuple[int | None, int | None, int | None]:
    """Whole Grams of the smaller size, short ones of as many directions if there is room."""
    (m, n), sizes = shape, (kind.shape[1], kind.shape[0], kind.shape[1])
    found = [
        None if width is None else small if width >= size else min(width, small)
        for width, size, small in zip(kind.grams, sizes, (n, m, n), strict=True)
    ]
    return (found[0], found[1], found[2])


def _timed(config: MergeConfig, method: Method, kind: ModuleKind) -> tuple[float, float, float]:
    """Seconds of the merge, of a merge of one adapter, and of the report."""
    updates = _updates(kind)
    rank = config.rank if isinstance(config.rank, (str, float)) else min(config.rank, *kind.shape)
    options = {
        key: value for key, value in config.options().items() if key not in ("prior", "ancestor", "keep")
    }
    if config.keeps:
        options["keep"] = _AnyKeep(updates[0])
    done: list[MergedModule] = []

    def merge(count: int, rank: str | float) -> None:
        parts = [_widened(update) for update in updates[:count]]
        done.append(method.function(parts, [1.0] * count, rank=rank, **options))

    together = _seconds(lambda: merge(len(updates), rank))
    alone = 0.0 if method.single == "changed" else _seconds(lambda: merge(1, "keep"))
    wide = [_widened(update) for update in updates]
    return together, alone, _seconds(lambda: describe_module(wide, done[0], [1] * len(wide)))


@dataclass(frozen=True)
class _AnyKeep:
    """The Grams of an update in place of a file's."""

    update: LoraUpdate

    def of(self, module: str, outputs: int, inputs: int, weight: float) -> Kept:
        found = self.update.input_gram
        gram = torch.ones(inputs).diag() if found is None else found
        return Kept(weight, gram.to(torch.float64))


def _updates(kind: ModuleKind) -> list[LoraUpdate]:
    """Random updates in single precision, all with the same random Grams; one frozen A where that is the curvature."""
    (m, n), generator = kind.shape, torch.Generator().manual_seed(0)
    grams = [_gram(size, width, generator) for size, width in zip((n, m, n), kind.grams, strict=True)]
    found: list[LoraUpdate] = []
    for number, rank in enumerate(kind.ranks):
        b, a = torch.randn(m, rank, generator=generator), torch.randn(rank, n, generator=generator)
        a = found[0].a if found and kind.curvature == "sites" else a
        precision_b, precision_a = (
            torch.rand(t.shape, generator=generator) + 0.1 if h else None
            for t, h in zip((b, a), kind.h, strict=True)
        )
        prior_b, prior_a = (0.0 if p is None else 0.01 for p in (precision_b, precision_a))
        found.append(
            LoraUpdate(
                b, a, 1.0, precision_b, precision_a, prior_b, prior_a, grams[0], grams[1], f"adapter {number}",
                "any module", None if grams[2] is None else dense(grams[2]),
            )
        )  # fmt: skip
    if kind.lineage:
        found = [replace(update, ancestor=found[0]) for update in found]
    return found


def _gram(size: int, width: int | None, generator: torch.Generator) -> Gram | None:
    """A whole Gram whose eigenvalues fall like 1 / k, or one of so many directions."""
    if width is None:
        return None
    falling = 1.0 / torch.arange(1.0, width + 1)
    if width < size:
        vectors = torch.linalg.qr(torch.randn(size, width, generator=generator))[0]
        return ShortGram(vectors, falling, falling[-1].item() / 2)
    rows = torch.randn(size, size, generator=generator) * falling.sqrt()
    return rows @ rows.mT


def _widened(update: LoraUpdate) -> LoraUpdate:
    """In double precision, as a merge reads it from the stored one."""

    def wide(value):
        return None if value is None else value.to(torch.float64)

    return replace(
        update, b=wide(update.b), a=wide(update.a), precision_b=wide(update.precision_b),
        precision_a=wide(update.precision_a), input_gram=wide(update.input_gram), output_gram=wide(update.output_gram),
        activation_gram=wide(update.activation_gram),
        ancestor=None if update.ancestor is None else _widened(update.ancestor),
    )  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
