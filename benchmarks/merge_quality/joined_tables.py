"""Tables of Grams with a row's tokens joined, the package's default, against tokens apart and other merges."""

from collections.abc import Callable, Sequence

from benchmarks.merge_quality.heads_tables import by_kind, gaps
from benchmarks.merge_quality.joined import DEFAULT, EQUAL, MATS, STREAMED
from benchmarks.merge_quality.records import OURS, Records, mean, scalars
from benchmarks.readme_table import markdown, number

__all__ = ["joined_sections"]

_NAMES = {
    OURS: "gradient matching, tokens apart, streamed, equal votes",
    STREAMED: "gradient matching, joined, streamed, equal votes",
    EQUAL: "gradient matching, joined, one pass, equal votes",
    DEFAULT: "gradient matching, joined, one pass, votes by change (the default)",
    MATS: "MaTS, joined, streamed, equal votes",
}
_METRICS = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3), ("ece", 1, 3))
Section = tuple[str, Records, Callable[[Records], str]]


def joined_sections(records: Records) -> list[Section]:
    """Title, records and table: scores of the sets of each kind, and differences."""
    return [
        (f"Tokens joined: {len(records)} sets, IVON", records, joined_scores),
        (
            "Tokens joined, streamed, minus others, at their defaults",
            records,
            lambda found: joined_differences(found, STREAMED),
        ),
        (
            "Tokens joined, one pass, votes by change (the default) minus others, at their defaults",
            records,
            lambda found: joined_differences(found, DEFAULT),
        ),
    ]


def joined_scores(records: Records) -> str:
    """Every arm at its default, by kind of set; NLL at the best scalar of ours."""
    rows = []
    for kind, sets in by_kind(records).items():
        for arm in sets[0]["arms"]:
            cells = [number(scale * mean(sets, arm, "default", metric), d) for metric, scale, d in _METRICS]
            rest = [number(mean(sets, arm, "best", "nll"), 3), scalars(sets, arm)]
            rows.append([kind, _NAMES.get(arm, arm), *cells, *rest])
    return markdown(["sets", "arm", "accuracy", "worst", "NLL", "ECE", "NLL, best", "best scalars"], rows)


def joined_differences(records: Records, ours: str) -> str:
    """One arm minus every other, paired by set."""
    rows = []
    for kind, sets in by_kind(records).items():
        others: Sequence[str] = [a for a in sets[0]["arms"] if a not in (ours, "individual adapters")]
        for arm in others if len(sets) > 1 else ():
            rows.append([kind, _NAMES.get(arm, arm), *gaps([[record] for record in sets], ours, arm)])
    return markdown(["sets", "minus", "accuracy, points", "worst, points", "NLL"], rows)
