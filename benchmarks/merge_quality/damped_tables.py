"""Tables of the two-sided merge with a damped output side: tuning sets, test rows, and differences."""

from collections.abc import Callable

from benchmarks.merge_quality.damped import CHOSEN, named
from benchmarks.merge_quality.heads_tables import by_kind, gaps
from benchmarks.merge_quality.records import OURS, Records, mean
from benchmarks.readme_table import markdown, number

__all__ = ["damped_sections"]

_METRICS = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3), ("ece", 1, 3))
Section = tuple[str, Records, Callable[[Records], str]]


def damped_sections(tune: Records, test: Records) -> list[Section]:
    """Title, records and table of both parts."""
    return [
        (f"Output side damped: {len(tune)} tuning sets, validation rows, tokens joined", tune, damped_scores),
        (f"Output side damped: {len(test)} sets, test rows, tokens joined", test, damped_scores),
        (
            f"{named(CHOSEN[0]).capitalize()}, minus others, at their defaults",
            [] if len(test) < 2 else test,
            damped_gaps,
        ),
    ]


def damped_scores(records: Records) -> str:
    """Every arm at its default, by kind of set, and what its merge costs."""
    rows = []
    for kind, sets in by_kind(records).items():
        for arm in sets[0]["arms"]:
            cells = [number(scale * mean(sets, arm, "default", metric), d) for metric, scale, d in _METRICS]
            seconds = [one["arms"][arm].get("merge_seconds") for one in sets]
            known = [s for s in seconds if s is not None]
            cost = number(sum(known) / len(known), 1) if known else "—"
            rows.append([kind, _named(arm), *cells, cost])
    head = ["accuracy", "worst", "NLL", "ECE", "CPU seconds of a merge"]
    return markdown(["sets", "arm", *head], rows)


def damped_gaps(records: Records) -> str:
    """The chosen damping minus the others, paired by set."""
    rows = []
    for kind, sets in by_kind(records).items():
        others = [a for a in sets[0]["arms"] if a not in (named(CHOSEN[0]), "individual adapters")]
        for arm in others if len(sets) > 1 else ():
            rows.append([kind, _named(arm), *gaps([[r] for r in sets], named(CHOSEN[0]), arm)])
    return markdown(["sets", "minus", "accuracy, points", "worst, points", "NLL"], rows)


def _named(arm: str) -> str:
    return "gradient matching" if arm == OURS else arm
