"""Calibration, attribution and abstention paired by world, with 95 % intervals of Student's t over worlds."""

import numpy as np

from benchmarks.closed_world.cells import (
    ABSTENTION,
    ABSTENTION_HEADER,
    interval,
    markdown,
    mean,
)
from benchmarks.closed_world.scores import CHOSEN
from benchmarks.closed_world.stages import BEFORE, Stage
from benchmarks.readme_table import Records

__all__ = ["abstention_differences", "attribution_differences", "calibration_differences", "gate_differences"]

_ANSWERED = ("coverage", "risk", "unknown_answered", "near_miss_answered")


def calibration_differences(records: Records, stage: Stage = BEFORE) -> str:
    """Every predictor less AdamW: accuracy, NLL and ECE by group, and confident answers about nobody."""
    columns: list[tuple[str, tuple[str, ...], int, float]] = [
        ("accuracy, points", ("seen", "accuracy"), 1, 100.0)
    ]
    for group in ("clean", "ambiguous", "base"):
        columns += [(f"{group}: {k.upper()}", ("groups", group, k), 3, 1.0) for k in ("nll", "ece")]
    for group, shown in (("unknown", "unknown"), ("near_miss", "near misses")):
        columns.append((f"confident on {shown}, points", ("groups", group, "confident"), 0, 100.0))
    lines = []
    for predictor in stage.predictors:
        pairs = [
            stage.values(records, predictor, *keys) - stage.values(records, stage.reference, *keys)
            for _, keys, _, _ in columns
        ]
        if predictor != stage.reference and not all(np.isnan(pair).all() for pair in pairs):
            cells = [
                interval(pair, digits, scale)
                for pair, (*_, digits, scale) in zip(pairs, columns, strict=True)
            ]
            lines.append([predictor, stage.count(records, predictor), *cells])
    return markdown([f"less {stage.reference}", "worlds", *(name for name, *_ in columns)], lines)


def attribution_differences(records: Records, stage: Stage = BEFORE) -> str:
    """Where each part of the entropy rises, and what information adds to expected entropy as a score."""
    steps = (("ambiguous", "clean"), ("unknown", "clean"), ("unknown", "ambiguous"))
    asked = ("unknown vs ambiguous", "ambiguous vs clean")
    lines = []
    for predictor in stage.predictors:
        parts = ("expected_entropy", "mutual_information")
        found = {
            (part, group): stage.values(records, predictor, "groups", group, f"mean_{part}")
            for part in parts
            for group in ("clean", "ambiguous", "unknown")
        }
        if np.isnan(found[parts[0], "clean"]).all():
            continue
        cells = [interval(found[part, high] - found[part, low]) for part in parts for high, low in steps]
        areas = [
            [stage.values(records, predictor, "auroc", question, part) for part in parts]
            for question in asked
        ]
        lines.append(
            [
                predictor,
                stage.count(records, predictor),
                *cells,
                *(interval(ours - entropy) for entropy, ours in areas),
            ]
        )
    heads = [f"{part}: {high} − {low}" for part in ("expected entropy", "information") for high, low in steps]
    return markdown(
        [
            "predictor",
            "worlds",
            *heads,
            *(f"AUROC {question}: information − expected entropy" for question in asked),
        ],
        lines,
    )


def abstention_differences(records: Records, stage: Stage = BEFORE) -> str:
    """Every rule less AdamW's highest probability with the same start, over the worlds in which both have a threshold.

    A number of one world is the mean over those of its adapters that have a threshold.
    """
    reference = {
        start: _answered(records, stage, stage.reference, f"max_probability{start}") for start in ("", CHOSEN)
    }
    lines = []
    for predictor in stage.predictors:
        for score, shown in ABSTENTION.items():
            start = _start(score)
            pairs = _answered(records, stage, predictor, score) - reference[start]
            if (predictor, score) != (stage.reference, f"max_probability{start}"):
                lines += _line([predictor, shown], pairs)
    heads = [name.replace("%", "points") for name in ABSTENTION_HEADER]
    return markdown([f"less {stage.reference}, max. probability", "score", *heads, "worlds with both"], lines)


def gate_differences(records: Records, stage: Stage = BEFORE) -> str:
    """Each rule with a second limit less the same predictor's without one, over the worlds in which both have one."""
    lines = []
    for predictor in stage.predictors:
        for score, shown in ABSTENTION.items():
            if "mutual_information" in score:
                alone = _answered(records, stage, predictor, f"max_probability{_start(score)}")
                lines += _line([predictor, shown], _answered(records, stage, predictor, score) - alone)
    heads = [name.replace("%", "points") for name in ABSTENTION_HEADER]
    return markdown(["less its own max. probability", "score", *heads, "worlds with both"], lines)


def _start(score: str) -> str:
    """Ending of a rule's name."""
    return CHOSEN if score.endswith(CHOSEN) else ""


def _line(head: list[str], pairs: np.ndarray) -> list[list[str]]:
    """Intervals of differences ``(worlds, 4)``; nothing where fewer than two worlds have both."""
    both = int((~np.isnan(pairs[:, 0])).sum()) if len(pairs) else 0
    if both < 2:
        return []
    return [[*head, *(interval(column, 1, 100.0) for column in pairs.T), f"{both} of {len(pairs)}"]]


def _answered(records: Records, stage: Stage, predictor: str, score: str) -> np.ndarray:
    """Of every world the four numbers of a rule, mean over its adapters with a threshold, ``(worlds, 4)``."""
    found = []
    for some in stage.found(records, predictor):
        rules = [one.get("abstention", {}).get(score) for one in some]
        own = [rule for rule in rules if rule and rule["coverage"] > 0]
        found.append([mean([rule[key] for rule in own]) for key in _ANSWERED])
    return np.array(found)
