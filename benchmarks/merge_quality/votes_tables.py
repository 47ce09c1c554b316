"""Table of Grams in which a visit counts by the size of its gradient, against equal votes on the same adapters."""

import numpy as np

from benchmarks.merge_quality.records import OURS, Records, mean, value
from benchmarks.readme_table import interval, markdown, number

__all__ = ["votes_table"]

BESIDE = {"gradient matching, votes by change": OURS, "MaTS, votes by change": "MaTS"}
"""Arm -> the same with equal votes."""
_KEY = ("family", "count", "gauge", "optimizer", "seed")


def votes_table(records: Records, votes: Records) -> str:
    """Accuracy and NLL at the default with either, and the paired difference over sets."""
    beside = {tuple(record[k] for k in _KEY): record for record in records}
    pairs = [(record, beside[tuple(record[k] for k in _KEY)]) for record in votes]
    rows = []
    for arm, equal in BESIDE.items():
        if any(arm not in record["arms"] for record in votes):
            continue
        cells = []
        for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3)):
            one = mean([a for a, _ in pairs], arm, "default", metric)
            two = mean([b for _, b in pairs], equal, "default", metric)
            gaps = [value(a, arm, "default", metric) - value(b, equal, "default", metric) for a, b in pairs]
            cells += [number(scale * one, digits), number(scale * two, digits)]
            cells += [interval(scale * np.array(gaps), digits + 1)]
        rows.append([arm, *cells])
    header = ["arm", "accuracy, %", "equal votes", "difference, points", "NLL", "equal votes", "difference"]
    return markdown(header, rows)
