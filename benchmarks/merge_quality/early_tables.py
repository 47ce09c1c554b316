"""Tables of MaTS stopped early, and of two merges with their lengths exchanged.

An interval is mean ± t(.975, n - 1) s.e. over n sets of adapters, paired by set.
"""

import numpy as np

from benchmarks.merge_quality.curve_tables import Section
from benchmarks.merge_quality.records import OURS, Records, differences, mean, scalars
from benchmarks.merge_quality.wide_tables import by_scalar, kinds_of
from benchmarks.readme_table import interval, markdown, number

__all__ = ["early_scores", "early_sections", "early_tuned", "length_sections"]

_METRICS = (("accuracy", 100, 1), ("worst", 100, 1), ("nll", 1, 3))


def early_sections(tune: Records, test: Records) -> list[Section]:
    """Title, records and table: validation rows of tuning sets, then test rows."""
    return [
        ("MaTS stopped early: validation rows of tuning sets of four, accuracy / NLL", tune, early_tuned),
        ("MaTS stopped early on test rows, and ours minus it", test, early_scores),
    ]


def early_tuned(records: Records) -> str:
    """Steps of conjugate gradients against tau; 0 steps are the closed form."""
    arms = [arm.split(" steps, tau ") for arm in records[0]["arms"] if " steps, tau " in arm]
    steps, taus = sorted({int(step) for step, _ in arms}), sorted({float(tau) for _, tau in arms})
    rows = []
    for title, sets in kinds_of(records).items():
        for tau in taus:
            cells = []
            for step in steps:
                arm = f"{step} steps, tau {tau:g}"
                accuracy, nll = (mean(sets, arm, "default", metric) for metric in ("accuracy", "nll"))
                cells.append("—" if np.isnan(nll) else f"{100 * accuracy:.1f} / {nll:.3f}")
            rows.append([f"{title} ({len(sets)} sets)", f"{tau:g}", *cells])
    return markdown(["sets", "tau", *(f"{step} steps" for step in steps)], rows)


def early_scores(records: Records) -> str:
    """The chosen one and the closed form at their defaults and best scalars, and the closed form's default minus it."""
    rows = []
    for title, sets in kinds_of(records).items():
        for arm in [name for name in sets[0]["arms"] if "best" in sets[0]["arms"][name]]:
            row = [f"{title} ({len(sets)})", arm]
            for kind in ("default", "best"):
                row += [number(scale * mean(sets, arm, kind, metric), d) for metric, scale, d in _METRICS]
            gaps = [interval(scale * differences(sets, arm, "default", m), d) for m, scale, d in _METRICS]
            rows.append([*row, scalars(sets, arm), *(["—"] * 3 if arm == OURS else gaps)])
    head = ["accuracy", "worst", "NLL"]
    gaps = ["accuracy, points", "worst task, points", "NLL"]
    header = ["sets", "arm", *head, *(f"{name}, best" for name in head), "best scalar"]
    return markdown([*header, *(f"ours minus it, {name}" for name in gaps)], rows)


def length_sections(records: Records) -> list[Section]:
    """Title, records and table: validation NLL per scalar with either's lengths, by kind of set."""
    return [
        (f"Lengths of modules exchanged: validation NLL, {title}, {len(sets)} tuning sets", sets, by_scalar)
        for title, sets in kinds_of(records).items()
    ]
