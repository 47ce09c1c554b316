"""Attribution, calibration and abstention before and after the merge: means over worlds, and how many these are."""

import numpy as np

from benchmarks.closed_world.cells import (
    ABSTENTION,
    ABSTENTION_HEADER,
    GROUPS,
    abstention_lines,
    markdown,
    mean,
    number,
)
from benchmarks.closed_world.stages import BEFORE, Stage
from benchmarks.readme_table import Records, with_half_width

__all__ = ["abstention_table", "attribution_table", "calibration_table"]


def attribution_table(records: Records, stage: Stage = BEFORE) -> str:
    """What rises where: expected entropy and information by group."""
    lines = []
    for predictor in stage.predictors:
        worlds = stage.count(records, predictor)
        for key, shown in (("expected_entropy", "expected entropy"), ("mutual_information", "information")):
            found = [stage.values(records, predictor, "groups", group, f"mean_{key}") for group in GROUPS]
            if not np.isnan(found[0]).all():
                asked = ("unknown vs ambiguous", "ambiguous vs clean")
                areas = [stage.values(records, predictor, "auroc", question, key) for question in asked]
                lines.append([predictor, shown, worlds, *map(with_half_width, [*found, *areas])])
    header = [
        "predictor",
        "nats",
        "worlds",
        *GROUPS,
        "AUROC unknown vs ambiguous",
        "AUROC ambiguous vs clean",
    ]
    return markdown(header, lines)


def calibration_table(records: Records, stage: Stage = BEFORE) -> str:
    """Accuracy, NLL and ECE by group, and confident answers about nobody."""
    lines = []
    for predictor in stage.predictors:
        accuracy = stage.values(records, predictor, "seen", "accuracy")
        if np.isnan(accuracy).all():
            continue
        cells = [stage.count(records, predictor), with_half_width(accuracy, 1, 100.0)]
        for group in ("clean", "ambiguous", "base"):
            nll, ece = (
                with_half_width(stage.values(records, predictor, "groups", group, k)) for k in ("nll", "ece")
            )
            floor = mean(stage.values(records, predictor, "groups", group, "ece_floor"))
            cells.append(f"{nll} / {ece} ({number(floor)})")
        confident = [
            stage.values(records, predictor, "groups", group, "confident")
            for group in ("unknown", "near_miss")
        ]
        lines.append([predictor, *cells, *(with_half_width(numbers, 0, 100.0) for numbers in confident)])
    groups = (f"{group}: NLL / ECE (floor)" for group in ("clean", "ambiguous", "base"))
    return markdown(
        ["predictor", "worlds", "accuracy, %", *groups, "confident on unknown, %", "on near misses, %"], lines
    )


def abstention_table(records: Records, stage: Stage = BEFORE) -> str:
    """What a threshold for 5 % errors lets through, mean over the adapters, or merges, that have one."""
    lines = []
    for predictor in stage.predictors:
        found = [one for some in stage.found(records, predictor) for one in some]
        for score, shown in ABSTENTION.items():
            own = [one.get("abstention", {}).get(score) for one in found]
            lines += abstention_lines([predictor, shown], own)
    whose = "adapters" if stage.adapters else "merges"
    return markdown(["predictor", "score", *ABSTENTION_HEADER, f"{whose} with a threshold"], lines)
