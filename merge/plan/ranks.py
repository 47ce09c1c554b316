"""The rank that a merge of adapters would have, from headers and settings alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.merge.config import MergeConfig
from vlora.merge.report.ranks import ModuleRank, rank_summary

__all__ = ["planned_rank", "planned_summary"]

_ENTRIES = ("ties", "dare_linear", "dare_ties", "della")
_FULL_RANK = ("mats", "fisher", *_ENTRIES)


def planned_rank(
    config: MergeConfig, shape: tuple[int, int], ranks: Mapping[str, int], kind: str | None
) -> int | None:
    """Rank of a merged module; None where it follows from the values.

    Args:
        config: The merge.
        shape: Outputs and inputs of the module.
        ranks: Adapter -> its rank there, 0 where it leaves the module alone.
        kind: Curvature that gradient matching would use.
    """
    if isinstance(config.rank, float):
        return None
    present = [rank for rank in ranks.values() if rank]
    most = _largest(config, shape, present, kind)
    if config.rank == "lossless" or (config.rank == "auto" and not _full_rank(config, kind)):
        return most
    wanted = max(present) if config.rank in ("auto", "keep") else int(config.rank)
    return min(wanted, most)


def planned_summary(config: MergeConfig, modules: Mapping[str, Mapping[str, Any]]) -> str:
    """Which rank would come out, and whether that cuts; how much it retains only values say.

    Args:
        config: The merge.
        modules: Module -> ``shape``, ``ranks``, ``rank`` and ``curvature``.
    """
    rows, told = [], False
    for name, row in modules.items():
        inputs = tuple(rank for rank in row["ranks"].values() if rank)
        whole = row["rank"] == _largest(config, row["shape"], inputs, row["curvature"])
        rows.append(ModuleRank(name, row["rank"], inputs, 1.0 if whole else None))
        told = told or not (whole or config.method == "fisher" or row["curvature"] == "separable")
    found = rank_summary(rows)
    return f"{found}; what it retains is in the report of the merge" if told else found


def _largest(config: MergeConfig, shape: tuple[int, int], present: Sequence[int], kind: str | None) -> int:
    """Rank of the result before anything is cut."""
    if len(present) == 1 and config.method not in _ENTRIES:
        return present[0]
    if _full_rank(config, kind):
        return min(shape)
    return sum(present) if kind != "sites" else max(present)


def _full_rank(config: MergeConfig, kind: str | None) -> bool:
    """Whether the result has no low rank before it is cut."""
    if config.method in _ENTRIES:
        return config.space in (None, "full")
    return config.method in _FULL_RANK or kind == "separable"
