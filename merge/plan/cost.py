"""Memory and operations of a merge of adapters, from shapes alone.

How long operations take differs between methods by more than their number does, so time comes from a trial
(:mod:`vlora.merge.plan.trial`); what is counted here scales the trial of a small module to a large one.
"""

from dataclasses import dataclass

from vlora.merge.config import MergeConfig

__all__ = ["Cost", "ModuleKind", "module_cost"]

_WIDE = 8  # bytes of an entry while it is worked on
_DENSE = ("ties", "dare_linear", "dare_ties", "della")
_STEPS = 100  # of mats, if not given
_SWEEPS = 30  # most sweeps of a re-factorisation


@dataclass(frozen=True)
class ModuleKind:
    """What decides how long a module takes."""

    shape: tuple[int, int]
    """m outputs, n inputs."""
    ranks: tuple[int, ...]
    """r_t of the adapters that have the module."""
    curvature: str | None = None
    """What gradient matching would use."""
    grams: tuple[int | None, int | None, int | None] = (None, None, None)
    """Directions of the input, output and activation Gram, their size for whole ones; None where not all have one."""
    h: tuple[bool, bool] = (False, False)
    """Whether all adapters have h of B, and of A."""
    lineage: bool = False
    """Whether they are summed relative to an ancestor."""


@dataclass(frozen=True)
class Cost:
    """Of one module."""

    flops: float
    """Of the method."""
    telling: float
    """Of what the report says."""
    memory: int
    """Bytes at work, above the inputs, their Grams and the result."""


def module_cost(config: MergeConfig, kind: ModuleKind) -> Cost:
    """Leading terms of the operations that a method takes on a module, with R = sum r and T adapters.

    Sums: QR of the stacked factors and an SVD of size R, 8 (m + n) R^2 + 20 R^3. Curvature on top: a Cholesky factor
    n^3 / 3 and 8 n^2 R for whole Grams, 4 n K^2 + K^3 for short ones with K directions together (Kronecker gradient
    matching, RegMean; both sides where it is truncated); conjugate gradients of T (m^2 n + m n^2) twice a step (MaTS);
    30 sweeps of m + n systems of size r (separable h, Fisher). Dense rules: T passes over m n entries and an SVD of
    leading components, 60 m n r. The report: products of all pairs, and with each Gram.

    Args:
        config: The merge.
        kind: The module.
    """
    (m, n), total, count = kind.shape, sum(kind.ranks), len(kind.ranks)
    flops = 8.0 * (m + n) * total**2 + 20.0 * total**3
    memory = _WIDE * 3 * (m + n) * total
    if config.method == "regmean" or kind.curvature == "kronecker":
        widths = (
            kind.grams[2:]
            if config.method == "regmean"
            else kind.grams[: 1 if config.rank in ("auto", "lossless") else 2]
        )
        for size, width in zip((n, m), widths, strict=False):
            flops += _solving(size, count * (width or 0), total)
        memory += _WIDE * 2 * n**2
    if config.method == "mats":
        flops += 2.0 * (config.steps or _STEPS) * 2 * count * (m * m * n + m * n * n)
        memory += _WIDE * 8 * m * n
    if config.method == "fisher" or kind.curvature == "separable":
        rank = max(kind.ranks)
        flops += _SWEEPS * (m + n) * (2.0 * (count + 2) * rank**2 + rank**3)
    if config.method in _DENSE and (config.space or "full") == "full":
        flops += 60.0 * m * n * max(kind.ranks) + 100.0 * count * m * n
        memory += _WIDE * (count + 2) * m * n
    return Cost(flops, _telling(kind), memory)


def _solving(size: int, directions: int, total: int) -> float:
    """A total curvature, and R rows solved with it."""
    if directions < size:
        return 4.0 * size * directions**2 + directions**3 + 8.0 * size * directions * total
    return size**3 / 3 + 8.0 * size**2 * total


def _telling(kind: ModuleKind) -> float:
    """Cosines, distances and the conflict map."""
    (m, n), stacked, count = kind.shape, sum(kind.ranks) + max(kind.ranks), len(kind.ranks)
    flops = 2.0 * (count + 2) * (m + n) * stacked**2
    for size, width in zip((n, m), kind.grams, strict=False):
        if width is not None:
            flops += 10.0 * count * size * width * stacked
    return flops
