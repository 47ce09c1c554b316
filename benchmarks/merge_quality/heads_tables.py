"""Tables of Grams per attention head, and of votes by what an adapter changed, against other merges of the same ones.

An interval is mean ± t(.975, n - 1) s.e. over n sets of adapters; the six pairs of a set are averaged before.
"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.merge_quality.change import CHANGE, EQUAL
from benchmarks.merge_quality.heads import BESIDE, CHOSEN, CONTROL, CUT, HEADS_ARM
from benchmarks.merge_quality.pairs_tables import sets_of
from benchmarks.merge_quality.records import Records, mean, scalars, value
from benchmarks.readme_table import interval, markdown, number

__all__ = ["by_kind", "change_sections", "gaps", "heads_sections"]

_METRICS = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3))
_KINDS = {
    ("mixed", 4): "four different tasks",
    ("mixed", 8): "eight different tasks",
    ("mixed", 12): "twelve different tasks",
    ("domains", 2): "two domains",
    ("domains", 4): "four domains",
    ("domains", 8): "eight domains",
    ("domains", 12): "twelve domains",
}
Section = tuple[str, Records, Callable[[Records], str]]


def heads_sections(tune: Records, test: Records, pairs: Records) -> list[Section]:
    """Title, records and table of the tuning sets, the sets of four and the pairs."""
    found, sections = sets_of(pairs), list[Section]()
    for title, sets in by_kind(test).items():
        sections += [
            (f"One Gram per attention head: {title}, test rows", sets, heads_scores),
            (
                "Paired differences on these",
                sets if len(sets) > 1 else [],
                lambda sets: heads_differences([[record] for record in sets]),
            ),
        ]
    named = f"One Gram per attention head: {len(pairs)} pairs of different tasks, test rows"
    return [
        (f"One Gram per attention head: {len(tune)} tuning sets, validation rows", tune, heads_scores),
        *sections,
        (named, pairs, heads_scores),
        ("Paired differences on these", pairs if len(found) > 1 else [], lambda _: heads_differences(found)),
    ]


def heads_scores(records: Records) -> str:
    """Every arm at its default; of how many units it has a lower NLL than one Gram of the same pass."""
    rows = []
    for arm in records[0]["arms"]:
        won = sum(_value(r, arm, "nll") < _value(r, CONTROL, "nll") for r in records)
        cells = [number(scale * mean(records, arm, "default", metric), d) for metric, scale, d in _METRICS]
        compared = "—" if arm in (CONTROL, "individual adapters") else f"{won} of {len(records)}"
        rows.append([_named(arm), *cells, compared])
    return markdown(["arm", "accuracy", "worst", "NLL", "lower NLL than one Gram"], rows)


def heads_differences(sets: Sequence[Records]) -> str:
    """Grams per head minus the others."""
    known = all(CUT in record["arms"] for one in sets for record in one)
    others = [*BESIDE, *(name for name in CHOSEN if name != HEADS_ARM), *([CUT] if known else [])]
    rows = [[_named(arm), *gaps(sets, HEADS_ARM, arm)] for arm in others]
    return markdown(["heads of the value minus", "accuracy, points", "worst task, points", "NLL"], rows)


def change_sections(records: Records) -> list[Section]:
    """Title, records and table: scores of the sets of each kind, and differences."""
    return [
        (
            f"Votes of one pass by what the adapter changed (`curvature: true`), {len(records)} sets, IVON",
            records,
            change_scores,
        ),
        ("Votes of one pass by change minus others, at their defaults", records, change_differences),
    ]


def change_scores(records: Records) -> str:
    """Accuracy, worst task and NLL of every arm at its default, by kind of set; NLL at the best scalar of ours."""
    rows = []
    for kind, sets in by_kind(records).items():
        for arm in sets[0]["arms"]:
            cells = [number(scale * mean(sets, arm, "default", metric), d) for metric, scale, d in _METRICS]
            rows.append(
                [kind, _named(arm), *cells, number(mean(sets, arm, "best", "nll"), 3), scalars(sets, arm)]
            )
    return markdown(["sets", "arm", "accuracy", "worst", "NLL", "NLL, best", "best scalars"], rows)


def change_differences(records: Records) -> str:
    """Votes by change minus every other merge, paired by set."""
    rows = []
    for kind, sets in by_kind(records).items():
        for arm in [name for name in sets[0]["arms"] if name not in (CHANGE, "individual adapters")]:
            rows.append([kind, _named(arm), *gaps([[record] for record in sets], CHANGE, arm)])
    return markdown(["sets", "votes by change minus", "accuracy, points", "worst, points", "NLL"], rows)


def by_kind(records: Records) -> dict[str, Records]:
    """Sets of each kind, under a title with their number."""
    found: dict[str, Records] = {}
    for (family, count), title in _KINDS.items():
        sets = [r for r in records if (r["family"], r["count"]) == (family, count)]
        if sets:
            found[f"{title} ({len(sets)})"] = sets
    return found


def gaps(sets: Sequence[Records], ours: str, other: str) -> list[str]:
    """Accuracy, worst task and NLL of one arm minus another; what one entry of ``sets`` holds is averaged before."""
    cells = []
    for metric, scale, digits in _METRICS:
        gaps = [np.mean([_value(r, ours, metric) - _value(r, other, metric) for r in one]) for one in sets]
        cells.append(interval(scale * np.array(gaps), digits))
    return cells


def _value(record: dict, arm: str, metric: str) -> float:
    return value(record, arm, "default", metric)


def _named(arm: str) -> str:
    """Which Grams an arm of the main comparison has, where others stand beside it."""
    streamed = {"gradient matching, Kronecker": "gradient matching, streamed, equal votes"}
    once = {
        EQUAL: "gradient matching, one pass, equal votes",
        CHANGE: "gradient matching, one pass, votes by change",
    }
    return {**streamed, **once}.get(arm, arm)
