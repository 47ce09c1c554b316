"""Tables of ``benchmarks/closed_world``, made from its JSON files and put into the README between two markers.

    python -m benchmarks.closed_world.table [--print]

A number of one world is the mean over its two adapters. Means are over worlds; intervals are 95 % of Student's t over
worlds, of differences that are paired by world where two things are set against each other; ± is half of the interval
of one thing alone.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_world.after_tables import (
    after_differences,
    after_table,
    extra_table,
    features_table,
    left_table,
    votes_table,
)
from benchmarks.closed_world.cells import (
    QUESTIONS,
    SCORES,
    interval,
    markdown,
    mean,
    number,
)
from benchmarks.closed_world.merge_tables import merge_differences, merge_table
from benchmarks.closed_world.paired_tables import (
    abstention_differences,
    attribution_differences,
    calibration_differences,
    gate_differences,
)
from benchmarks.closed_world.road_tables import road_table
from benchmarks.closed_world.stage_tables import abstention_table, attribution_table, calibration_table
from benchmarks.closed_world.stages import AFTER, DEFAULT, PREDICTORS, Stage, values, worlds
from benchmarks.closed_world.sweep_tables import sweep_table, unlearning_table
from benchmarks.closed_world.ways import APART, METHODS
from benchmarks.readme_table import Records, read_results, with_half_width, write_tables

HERE = Path(__file__).parent

BASELINES = (
    ("AdamW", "max_probability"), ("AdamW", "entropy"), ("AdamW + temperature", "entropy"),
    ("AdamW, MC dropout, 8", "entropy"), ("AdamW, MC dropout, 8", "mutual_information"),
    ("AdamW, ensemble of 4", "entropy"), ("AdamW, ensemble of 4", "mutual_information"), ("AdamW", "entropy_base"),
    ("AdamW, MC dropout, 8", "entropy_base"), ("AdamW, MC dropout, 8", "mutual_information_base"),
    ("AdamW, ensemble of 4", "mutual_information_base"),
)  # fmt: skip
OURS = (
    ("IVON, 8 draws", "mutual_information"), ("AdamW, Laplace, linearised", "mutual_information"),
    ("AdamW, Laplace, Kronecker", "mutual_information"), ("AdamW, Laplace, full", "mutual_information"),
    ("AdamW, Laplace, full, 64 draws", "mutual_information"), ("IVON, Kronecker", "mutual_information"),
    ("IVON, full", "mutual_information"), ("IVON, full, 64 draws", "mutual_information"),
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
                lines.append([predictor, shown, *map(with_half_width, found)])
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
        "Paired by world, in nats: where each part rises, and whether information ranks better than expected entropy.",
        attribution_differences(records),
        "**Probabilities of known people, and confident answers (above .5) about nobody.**",
        calibration_table(records),
        "Paired by world:",
        calibration_differences(records),
        "**Answers at 5 % risk**, threshold fitted on other people.",
        abstention_table(records),
        "Paired by world:",
        abstention_differences(records),
        "What a second limit changes, paired by world with the same predictor's highest probability alone:",
        gate_differences(records),
        "**By the package's own commands**: % answered at 5 % risk; .5 is the default share.",
        road_table(records),
        "**After merging A and B**; AUROC columns: unknown vs seen, but where they say otherwise.",
        merge_table(records),
        "Paired by world:",
        merge_differences(records),
        "**Two adapters at the default and at the best factor on the update.**",
        sweep_table(records, "scales", METHODS),
        "**Four adapters**, taught 100 other people and two other relations each.",
        sweep_table(records, "merge4", METHODS),
        "**The curvature taken apart**, two adapters. Gradient matching with:",
        sweep_table(records, "scales", APART),
        "The same with four adapters:",
        sweep_table(records, "merge4", APART),
        *_after(records, DEFAULT, "the default merge"),
        *_after(records, AFTER, "the merge with equal votes"),
        "**Distance of hidden states** (AUROC).",
        features_table(records),
        "**The share that the data left** (AUROC; tuning world 100).",
        left_table(records),
        "**A taken out again** (AdamW's adapters).",
        unlearning_table(records),
        "**What else the full matrix could be** (tuning world 100, AdamW; AUROC of information).",
        extra_table(records),
        "**Kronecker factors with either votes** (AUROC of information).",
        votes_table(records),
        "**Settings tried** (mean NLL of the tuning worlds' known people).",
        tune_table(records),
    ]
    return "\n\n".join(parts) + "\n"


def _after(records: Records, stage: Stage, merge: str) -> list[str]:
    """What a merge of A and B knows it does not know, and the tables of single adapters once more."""
    return [
        f"**After {merge}: what it knows it does not know** (gradient matching of A and B; AUROC).",
        after_table(records, stage),
        "Paired by world, entropy of the same adapters' merge at its mean:",
        after_differences(records, stage),
        f"**After {merge}: data or model?** Mean of each part by group.",
        attribution_table(records, stage),
        "Paired by world, in nats: where each part rises, and whether information ranks better than expected entropy.",
        attribution_differences(records, stage),
        f"**After {merge}: probabilities of known people, and confident answers (above .5) about nobody.**",
        calibration_table(records, stage),
        "Paired by world, over the worlds that both have:",
        calibration_differences(records, stage),
        f"**After {merge}: answers at 5 % risk**, where rows suffice for a threshold.",
        abstention_table(records, stage),
        "Paired by world:",
        abstention_differences(records, stage),
        "What a second limit changes, paired by world with the same predictor's highest probability alone:",
        gate_differences(records, stage),
    ]


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
