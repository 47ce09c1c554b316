"""Memory and operations of a merge of adapters, from shapes alone."""

from dataclasses import dataclass

from vlora.merge.config import MergeConfig

__all__ = ["Cost", "module_cost"]

_WIDE = 8  # bytes of an entry while it is worked on
_DENSE = ("ties", "dare_linear", "dare_ties", "della")
_STEPS = 100  # of mats, if not given


@dataclass(frozen=True)
class Cost:
    """Of one module."""

    flops: float
    memory: int
    """Bytes at work, above the inputs and the result."""


def module_cost(
    config: MergeConfig, shape: tuple[int, int], ranks: list[int], grams: int, kind: str | None
) -> Cost:
    """Leading terms of the operations that a method takes on a module.

    Sums: QR of the stacked factors and an SVD of size R, 8 (m + n) R^2 + 20 R^3 with R = sum r. With Grams on top: a
    Cholesky factor n^3 / 3 and 8 n^2 R (Kronecker gradient matching, RegMean; both sides where it is truncated), or
    conjugate gradients of T (m^2 n + m n^2) twice a step (MaTS). Dense rules: T passes over m n entries and an SVD of
    leading components, 40 m n r. The conflict map adds 4 (m^2 + n^2) R per Gram.

    Args:
        config: The merge.
        shape: m, n.
        ranks: r_t of the adapters that have the module.
        grams: Bytes of the Gram matrices of all of them at work, in double precision.
        kind: Curvature that gradient matching would use.
    """
    (m, n), total, count = shape, sum(ranks), len(ranks)
    flops = 8.0 * (m + n) * total**2 + 20.0 * total**3
    memory = _WIDE * 3 * (m + n) * total + grams
    if grams:
        flops += 4.0 * count * (m**2 + n**2) * total
    if config.method == "regmean" or kind == "kronecker":
        flops += n**3 / 3 + 8.0 * n**2 * total + (0 if config.rank == "lossless" else m**3 / 3)
        memory += _WIDE * 2 * n**2
    if config.method == "mats":
        flops += 2.0 * (config.steps or _STEPS) * 2 * count * (m * m * n + m * n * n)
        memory += _WIDE * 8 * m * n
    if config.method in _DENSE and (config.space or "full") == "full":
        flops += 40.0 * m * n * max(ranks) + 30.0 * count * m * n
        memory += _WIDE * (count + 2) * m * n
    return Cost(flops, memory)
