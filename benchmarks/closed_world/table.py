"""Tables of ``benchmarks/closed_world``, made from its JSON files and put into the README between two markers.

    python -m benchmarks.closed_world.table [--print]

A number of one world is the mean over its two adapters. Means are over worlds; intervals are 95 % of Student's t over
worlds, of differences that are paired by world.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_world.cells import (
    ABSTENTION,
    GROUPS,
    METHODS,
    PREDICTORS,
    QUESTIONS,
    SCORES,
    dig,
    interval,
    markdown,
    mean,
    number,
    values,
    worlds,
)
from benchmarks.readme_table import Records, read_results, write_tables

HERE = Path(__file__).parent

BASELINES = (
    ("AdamW", "max_probability"), ("AdamW", "entropy"), ("AdamW + temperature", "entropy"),
    ("AdamW, MC dropout, 8", "entropy"), ("AdamW, MC dropout, 8", "mutual_information"),
    ("AdamW, ensemble of 4", "entropy"), ("AdamW, ensemble of 4", "mutual_information"), ("AdamW", "entropy_base"),
    ("AdamW, ensemble of 4", "mutual_information_base"),
)  # fmt: skip
OURS = (
    ("IVON, 8 draws", "mutual_information"), ("AdamW, Laplace, linearised", "mutual_information"),
    ("AdamW, Laplace, Kronecker", "mutual_information"), ("AdamW, Laplace, full", "mutual_information"),
    ("IVON, Kronecker", "mutual_information"), ("IVON, full", "mutual_information"),
    ("AdamW, Laplace, Kronecker", "mutual_information_base"), ("AdamW, Laplace, full", "mutual_information_base"),
    ("IVON, full", "mutual_information_base"),
)  # fmt: skip


def detection_table(records: Records) -> str:
    """AUROC of every score of every predictor; of those with draws without the highest probability."""
    lines = []
    for predictor in PREDICTORS:
        drawn = not np.isnan(values(records, predictor, "auroc", QUESTIONS[0], "mutual_information")).all()
        for score, shown in SCORES.items():
            if drawn and score == "max_probability":
                continue
            found = [values(records, predictor, "auroc", question, score) for question in QUESTIONS]
            if not all(np.isnan(numbers).all() for numbers in found):
                lines.append([predictor, shown, *(number(mean(numbers)) for numbers in found)])
    return markdown(["predictor", "score", *QUESTIONS], lines)


def difference_table(records: Records, question: str) -> str:
    """Our scores less every baseline that was run, paired by world."""
    lines = []
    found = {pair: values(records, pair[0], "auroc", question, pair[1]) for pair in BASELINES}
    ran = {pair: numbers for pair, numbers in found.items() if not np.isnan(numbers).all()}
    for ours, score in OURS:
        own = values(records, ours, "auroc", question, score)
        cells = [interval(own - numbers) for numbers in ran.values()]
        lines.append([f"{ours}, {SCORES[score]}", *cells])
    return markdown(["", *(f"− {name}, {SCORES[other]}" for name, other in ran)], lines)


def attribution_table(records: Records) -> str:
    """What rises where: expected entropy and information by group."""
    lines = []
    for predictor in PREDICTORS:
        for key, shown in (("expected_entropy", "expected entropy"), ("mutual_information", "information")):
            found = [values(records, predictor, "groups", group, f"mean_{key}") for group in GROUPS]
            if not np.isnan(found[0]).all():
                asked = ("unknown vs ambiguous", "ambiguous vs clean")
                areas = [values(records, predictor, "auroc", question, key) for question in asked]
                lines.append([predictor, shown, *(number(mean(v)) for v in [*found, *areas])])
    header = ["predictor", "nats", *GROUPS, "AUROC unknown vs ambiguous", "AUROC ambiguous vs clean"]
    return markdown(header, lines)


def calibration_table(records: Records) -> str:
    """Accuracy, NLL and ECE by group, and confident answers about nobody."""
    lines = []
    for predictor in PREDICTORS:
        cells = [number(mean(values(records, predictor, "seen", "accuracy")), 1, 100.0)]
        if cells == ["—"]:
            continue
        for group in ("clean", "ambiguous", "base"):
            nll, ece, floor = (
                mean(values(records, predictor, "groups", group, key)) for key in ("nll", "ece", "ece_floor")
            )
            cells.append(f"{number(nll)} / {number(ece)} ({number(floor)})")
        confident = [
            values(records, predictor, "groups", group, "confident") for group in ("unknown", "near_miss")
        ]
        lines.append([predictor, *cells, *(number(mean(numbers), 0, 100.0) for numbers in confident)])
    groups = (f"{group}: NLL / ECE (floor)" for group in ("clean", "ambiguous", "base"))
    return markdown(
        ["predictor", "accuracy, %", *groups, "confident on unknown, %", "on near misses, %"], lines
    )


def abstention_table(records: Records) -> str:
    """What a threshold for 5 % errors lets through, mean over the adapters that have one."""
    keys = ("coverage", "risk", "unknown_answered", "near_miss_answered")
    lines = []
    for predictor, (arm, name) in PREDICTORS.items():
        for score, shown in ABSTENTION.items():
            scores = [records.get(f"main/{arm}_{w}", {}).get("scores", {}).values() for w in worlds(records)]
            own = [one[name]["abstention"].get(score) for some in scores for one in some if name in one]
            some = [found for found in own if found and found["coverage"] > 0]
            if some:
                cells = [number(mean([found[key] for found in some]), 1, 100.0) for key in keys]
                lines.append([predictor, shown, *cells, f"{len(some)} of {len(own)}"])
    header = ["predictor", "score", "known answered, %", "of them wrong, %", "unknown answered, %"]
    return markdown([*header, "near misses answered, %", "adapters with a threshold"], lines)


def merge_table(records: Records) -> str:
    """Recall and calibration after merging."""
    lines = []
    for source, shown in (("adamw", "AdamW"), ("ivon", "IVON")):
        alone = [r["recall"] for name, r in records.items() if name.startswith(f"merge/{source}_alone_")]
        if alone:
            own = [mean([r[a][a] for r in alone]) for a in ("a", "b")]
            base = mean([r[a]["base"] for r in alone for a in ("a", "b")])
            lines.append([shown, "each alone", *(number(v, 1, 100.0) for v in [*own, base]), *["—"] * 9])
        for method, name in METHODS.items():
            found = [r for key, r in records.items() if key.startswith(f"merge/{source}_{method}_")]
            drawn = [r for key, r in records.items() if key.startswith(f"posterior/{source}_")]
            if found:
                lines.append([shown, name, *_merged(found, drawn if method == "gradient_matching" else [])])
    header = ["adapters", "merge", "A, %", "B, %", "base, %", "NLL seen", "ECE seen (floor)", "+ temperature"]
    areas = ["entropy", "information", "entropy × base", "information × base"]
    areas += ["unknown vs ambiguous: entropy", "information"]
    return markdown([*header, *areas], lines)


def merge_differences(records: Records) -> str:
    """Gradient matching minus every other merge, paired by world: recall of A and B, NLL of all known people."""

    def of(source: str, method: str, *keys: str) -> np.ndarray:
        return np.array(
            [dig(records.get(f"merge/{source}_{method}_{w}", {}), *keys) for w in worlds(records)]
        )

    lines = []
    for source, shown in (("adamw", "AdamW"), ("ivon", "IVON")):
        for method, name in METHODS.items():
            if method != "gradient_matching":
                gains = [
                    of(source, one, "recall", "mean", "a") + of(source, one, "recall", "mean", "b")
                    for one in ("gradient_matching", method)
                ]
                nll = [
                    of(source, one, "scores", "mean", "seen", "nll") for one in ("gradient_matching", method)
                ]
                cells = [interval(50 * (gains[0] - gains[1]), 1), interval(nll[0] - nll[1])]
                lines.append([shown, name, *cells])
    return markdown(["adapters", "gradient matching minus", "recall of A and B, points", "NLL seen"], lines)


def _merged(found: Sequence[dict[str, Any]], drawn: Sequence[dict[str, Any]]) -> list[str]:
    """Cells of one merge: at its mean, and of its posterior where that was looked at."""

    def of(*keys: str, records: Sequence[dict[str, Any]] = found) -> float:
        return mean([dig(record, *keys) for record in records])

    best = "linearised, full"
    seen = ("scores", "mean", "seen")
    unknown = ("auroc", "unknown vs seen")
    return [
        *(number(of("recall", "mean", group), 1, 100.0) for group in ("a", "b", "base")),
        number(of(*seen, "nll")),
        f"{number(of(*seen, 'ece'))} ({number(of(*seen, 'ece_floor'))})",
        number(of("scores", "mean + temperature", "seen", "nll")),
        number(of("scores", "mean", *unknown, "entropy")),
        number(of("scores", best, *unknown, "mutual_information", records=drawn)),
        number(of("scores", "mean", *unknown, "entropy_base")),
        number(of("scores", best, *unknown, "mutual_information_base", records=drawn)),
        number(of("scores", "mean", "auroc", "unknown vs ambiguous", "entropy")),
        number(of("scores", best, "auroc", "unknown vs ambiguous", "mutual_information", records=drawn)),
    ]


def block(folder: Path) -> str:
    """Everything between the markers."""
    records = read_results(folder)
    if not worlds(records):
        return "No results yet.\n"
    first = next(iter(records.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    minutes = sum(record["cpu_seconds"] for record in records.values()) / 60
    parts = [
        f"{len(worlds(records))} worlds, two adapters each; {minutes:.0f} CPU minutes in all; {versions}.",
        "**Telling unknown people from known ones, before merging** (AUROC, higher is better).",
        detection_table(records),
        *(
            _titled(records, question)
            for question in ("unknown vs seen", "unknown vs ambiguous", "near miss vs seen")
        ),
        "**Data or model?** Mean of each part by group.",
        attribution_table(records),
        "**Probabilities of known people, and confident answers (above .5) about nobody.**",
        calibration_table(records),
        "**Answers at 5 % risk**, threshold fitted on other people.",
        abstention_table(records),
        "**After merging A and B**; AUROC columns: unknown vs seen, but where they say otherwise.",
        merge_table(records),
        "Paired by world:",
        merge_differences(records),
        "**Settings tried** (mean NLL of the tuning worlds' known people).",
        tune_table(records),
    ]
    return "\n\n".join(parts) + "\n"


def _titled(records: Records, question: str) -> str:
    return f"**{question[0].upper()}{question[1:]}: AUROC, paired by world.**\n\n{difference_table(records, question)}"


def tune_table(records: Records) -> str:
    """Settings of the tuning worlds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, record in records.items():
        if name.startswith("tune/"):
            shown = ", ".join(f"{k} {v}" for k, v in record["optimizer"].items() if k != "name")
            found.setdefault(f"{record['optimizer']['name']}: {shown}", []).append(record)
    keys = ("mean", "draws")
    lines = [
        [name, *(number(mean([r["nll"].get(k, math.nan) for r in own])) for k in keys)]
        for name, own in found.items()
    ]
    return markdown(["setting", "mean", "8 draws"], lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    make: Callable[[Path], str] = block
    write_tables(HERE, make, "Tables of closed_world from its JSON files.", arguments)


if __name__ == "__main__":
    main()
