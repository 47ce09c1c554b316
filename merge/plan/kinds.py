"""Kinds of modules of a merge, from headers: what decides how long each takes and how much memory it needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.merge.plan.cost import ModuleKind
from vlora.merge.plan.headers import AdapterHeaders

__all__ = ["GRAMS", "gram_bytes", "module_kind", "uncertain_entries"]

GRAMS = ("input_gram", "output_gram", "activation_gram")
"""Gram matrices that an adapter may have of a module."""


def module_kind(
    name: str, row: Mapping[str, Any], adapters: Sequence[AdapterHeaders], lineage: bool = False
) -> ModuleKind:
    """The kind of one module; only what all adapters have counts.

    Args:
        name: The module.
        row: Its ``shape``, ``ranks`` per adapter and ``curvature``.
        adapters: The inputs of the merge.
        lineage: Whether they are summed relative to an ancestor.
    """
    here = [adapter for adapter in adapters if name in adapter.modules]
    widths = [[adapter.gram(name, kind) for adapter in here] for kind in GRAMS]
    grams = [None if None in found else max(width or 0 for width in found) for found in widths]
    h = [all(adapter.has_h(name, side) for adapter in here) for side in ("b", "a")]
    ranks = tuple(rank for rank in row["ranks"].values() if rank)
    return ModuleKind(
        row["shape"], ranks, row["curvature"], (grams[0], grams[1], grams[2]), (h[0], h[1]), lineage
    )


def gram_bytes(name: str, adapters: Sequence[AdapterHeaders]) -> int:
    """Bytes of a module's Grams in double precision."""
    stems = [f"{a.modules[name].stem}.{kind}" for a in adapters if name in a.modules for kind in GRAMS]
    keys = {key for stem in stems for key in (stem, f"{stem}.vectors")}
    return 8 * sum(a.curvature[key].numel for a in adapters for key in keys if key in a.curvature)


def uncertain_entries(modules: Mapping[str, Mapping[str, Any]], adapters: Sequence[AdapterHeaders]) -> int:
    """Entries of the merged h; none where an adapter has none."""
    if not all(adapter.hess for adapter in adapters):
        return 0
    return sum((row["rank"] or sum(row["ranks"].values())) * sum(row["shape"]) for row in modules.values())
