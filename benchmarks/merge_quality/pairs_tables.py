"""Tables of merges of two: means over the pairs, and paired differences with one number per set of four adapters.

The six pairs of a set share their adapters, so they are averaged before an interval is taken: mean ± t(.975, n - 1)
s.e. over the n sets (seeds and starts of A). It speaks for new adapters of these tasks.
"""

import numpy as np

from benchmarks.merge_quality.records import OURS, Records, common_arms, differences, mean, scalars, value
from benchmarks.readme_table import interval, markdown, number

__all__ = ["pair_differences", "pair_scores", "sets_of"]

_PAIRS = 6
_METRICS = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3), ("ece", 1, 3))


def sets_of(records: Records) -> list[Records]:
    """The six pairs of one set of four adapters together; sets that lack pairs are left out."""
    found: dict[tuple[str, int], Records] = {}
    for record in records:
        found.setdefault((record["gauge"], record["seed"]), []).append(record)
    return [pairs for _, pairs in sorted(found.items()) if len(pairs) == _PAIRS]


def pair_scores(records: Records) -> str:
    """Every arm at its default and at its best scalar, mean over the pairs."""
    rows = []
    for arm in common_arms(records):
        row = [arm]
        for kind in ("default", "best"):
            row += [number(scale * mean(records, arm, kind, metric), d) for metric, scale, d in _METRICS]
        rows.append([*row, scalars(records, arm)])
    head = ["accuracy", "worst", "NLL", "ECE"]
    return markdown(["arm", *head, *(f"{name}, best" for name in head), "best scalars"], rows)


def pair_differences(records: Records) -> str:
    """Kronecker gradient matching at its default minus every arm; of how many pairs ours has the lower NLL."""
    sets = sets_of(records)
    rows = []
    for arm in common_arms(records):
        if arm == OURS or "best" not in records[0]["arms"][arm]:
            continue
        for kind in ("default", "best"):
            cells = [
                interval(
                    scale * np.array([differences(pairs, arm, kind, m).mean() for pairs in sets]), digits
                )
                for m, scale, digits in _METRICS
            ]
            rows.append([arm, kind, *cells, _won(records, arm, kind)])
    header = ["ours minus", "scalar", "accuracy, points", "worst task, points", "NLL", "ECE", "pairs"]
    return markdown(header, rows)


def _won(records: Records, arm: str, kind: str) -> str:
    """Pairs of tasks where ours has the lower NLL in the mean over sets, of all."""
    gaps: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        ours, other = value(record, OURS, "default", "nll"), value(record, arm, kind, "nll")
        gaps.setdefault(tuple(record["tasks"]), []).append(ours - other)
    return f"{sum(np.mean(gap) < 0 for gap in gaps.values())} of {len(gaps)}"
