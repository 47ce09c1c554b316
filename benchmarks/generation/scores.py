"""From what a model answered to numbers: rankings, what is told apart, calibration, and thresholds.

Everything is computed from the records of ``vlora eval`` (``answers.jsonl``). Held-out questions are about people that
were taught: a sixth fits temperatures and grids, a third thresholds. Nothing sees an unknown person before the test.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.closed_world.worlds import KNOWN
from vlora.eval.generation.columns import AnswerTable
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.risk_control import controlled_threshold, threshold_grid
from vlora.eval.semantic.entropy import cluster_shares, semantic_split

__all__ = ["DELTA", "DETECTION", "RISK", "plain_information", "score"]

RISK, DELTA = 0.05, 0.1
DETECTION = {
    "unknown vs known": (("unknown",), KNOWN),
    "unknown vs ambiguous": (("unknown",), ("ambiguous",)),
    "near miss vs known": (("near_miss",), KNOWN),
    "ambiguous vs clean": (("ambiguous",), ("clean",)),
}
"""Question -> groups that should be less certain, groups that should be more certain."""


def score(table: AnswerTable, held_parts: Sequence[str]) -> dict[str, Any]:
    """Numbers of one model.

    Args:
        table: Its records; the validation questions in the order of ``held_parts``.
        held_parts: ``fit`` or ``threshold`` of every validation question.
    """
    held = np.flatnonzero(table.split == "validation")
    part = np.full(len(table.records), "test", dtype=object)
    part[held] = list(held_parts)
    known = np.isin(table.group, KNOWN) | (part != "test")
    test = {"known": (part == "test") & known, "everybody": part == "test"}
    return {
        "groups": {name: _group(table, (part == "test") & (table.group == name)) for name in _names(table)},
        "errors": {
            name: {key: _errors(value[rows], table.correct[rows]) for key, value in table.scores.items()}
            for name, rows in test.items()
        },
        "auroc": {
            name: {
                key: _told_apart(value, table.group, part == "test", sides)
                for key, value in table.scores.items()
            }
            for name, sides in DETECTION.items()
        },
        "calibration": _calibration(table, part, test["known"]),
        "abstention": {key: _abstention(value, table, part) for key, value in table.scores.items()},
    }


def plain_information(records: Sequence[AnswerRecord]) -> dict[str, dict[str, float]] | None:
    """Semantic mutual information as counted, with what chance alone shows left in; None without draws.

    Returns:
        ``mean`` by group, in nats, and ``auroc`` by question.
    """
    asked = [record for record in records if record.split == "test"]
    if len({sample.draw for sample in asked[0].samples}) < 2:
        return None
    value, group = np.array([_counted(record) for record in asked]), np.array([r.group for r in asked])
    every = np.ones(len(asked), dtype=bool)
    return {
        "mean": {name: float(value[group == name].mean()) for name in dict.fromkeys(group.tolist())},
        "auroc": {name: _told_apart(value, group, every, sides) for name, sides in DETECTION.items()},
    }


def _counted(record: AnswerRecord) -> float:
    found = [record.pool[sample.pool].cluster for sample in record.samples]
    names = {cluster: number for number, cluster in enumerate(dict.fromkeys(found))}
    shares = cluster_shares([names[cluster] for cluster in found], [sample.draw for sample in record.samples])
    return semantic_split(shares, antithetic=record.antithetic)["mutual_information"]


def _names(table: AnswerTable) -> list[str]:
    return list(dict.fromkeys(table.group[table.split == "test"].tolist()))


def _group(table: AnswerTable, rows: np.ndarray) -> dict[str, float]:
    """Share of right answers and mean of every score."""
    means = {f"mean_{key}": float(value[rows].mean()) for key, value in table.scores.items()}
    return {"n": int(rows.sum()), "correct": float(table.correct[rows].mean()), **means}


def _errors(uncertainty: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """How well a score ranks wrong answers above right ones."""
    return {
        "auroc": float(auroc(uncertainty, 1 - correct)),
        "prr": float(prediction_rejection_ratio(uncertainty, correct)),
    }


def _told_apart(
    value: np.ndarray, group: np.ndarray, test: np.ndarray, sides: tuple[Sequence[str], Sequence[str]]
) -> float:
    above, below = (value[test & np.isin(group, names)] for names in sides)
    return float(auroc(np.concatenate([above, below]), np.arange(len(above) + len(below)) < len(above)))


def _calibration(table: AnswerTable, part: np.ndarray, known: np.ndarray) -> Mapping[str, dict[str, float]]:
    """Brier score and ECE of every confidence on known people, as it is and with a fitted temperature."""
    found, fit = {}, part == "fit"
    for name, values in table.confidences.items():
        power = fit_power(values[fit], table.correct[fit])
        for suffix, exponent in (("", 1.0), (" + temperature", power)):
            sure = np.minimum(sharpen(values[known], exponent), 1.0)
            found[name + suffix] = {
                "brier": float(np.square(sure - table.correct[known]).mean()),
                "ece": float(calibration(sure, table.correct[known]).ece),
                "ece_floor": float(calibration_floor(sure, num_simulations=200).mean),
                "temperature": 1 / exponent,
            }
    return found


def _abstention(value: np.ndarray, table: AnswerTable, part: np.ndarray) -> dict[str, float]:
    """A threshold that keeps the error rate at ``RISK``, and what it lets through among the test questions."""
    wrong = (table.correct < 1).astype(float)
    fitting, deciding, test = part == "fit", part == "threshold", part == "test"
    rule = controlled_threshold(
        value[deciding], wrong[deciding], threshold_grid(value[fitting]), risk=RISK, delta=DELTA
    )
    known, answered = test & np.isin(table.group, KNOWN), value <= rule.threshold
    kept = answered & known
    found = {"coverage": float(answered[known].mean())}
    found["risk"] = float(wrong[kept].mean()) if kept.any() else float("nan")
    for name in ("unknown", "near_miss"):
        found[f"{name}_answered"] = float(answered[test & (table.group == name)].mean())
    return found
