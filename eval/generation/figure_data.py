"""The numbers behind the figures of a report of answers, and what a threshold would do: nothing here draws.

Where there are validation questions, a risk-controlled threshold is fitted on them for every drawn score, as ``vlora
calibrate`` does, and held against the test questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.figure_data import MAX_POINTS, reliability_bins, risk_points, rounded, some_rows
from vlora.eval.generation.columns import ALL, AnswerTable
from vlora.eval.generation.confidence import sharpen
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.decide import fit_answers, risk_of, validation_parts
from vlora.eval.generation.estimators import SCORED_INFORMATION, SCORED_TOTAL
from vlora.eval.metrics.arrays import Array, IntArray

__all__ = ["DRAWN", "SHOWN", "answer_figures", "answer_mistakes"]

DRAWN = ("max_probability", "token_nll", "semantic_entropy", "mixture")
"""Scores with a risk-coverage curve and, where there are validation questions, a threshold; not chosen on data."""
NUM_MISTAKES = 8
"""Confident mistakes kept of every model, of questions with and without an answer."""
SHOWN = 200
"""Characters of a text that results show."""


def answer_figures(
    tables: Sequence[AnswerTable], rules: AnswerCalibrationConfig, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Data of all figures, by name.

    Args:
        tables: Records of the models.
        rules: Risk of the thresholds; its score, if it names one, takes part beside :data:`DRAWN`.
        seed: Of the division of the validation questions and of the subsample of points.

    Returns:
        ``reliability`` (one entry per model and confidence), ``risk_coverage`` (per model and score, over the attempts
        at all test questions, with ``threshold``) and ``entropy_mi`` (per model and group).
    """
    figures: dict[str, list[dict[str, Any]]] = {"reliability": [], "risk_coverage": [], "entropy_mi": []}
    for table in tables:
        groups = table.groups()
        rows = groups.get(ALL, np.empty(0, dtype=np.int64))
        rows = rows[table.ranked[rows]]
        if len(rows):
            figures["reliability"] += _reliability(table, rows)
            figures["risk_coverage"] += _risk_coverage(table, rows, rules, seed)
        figures["entropy_mi"] += _entropy_mi(table, groups, seed)
    return figures


def _reliability(table: AnswerTable, rows: IntArray) -> list[dict[str, Any]]:
    """Bins of every confidence, as it is and with its temperature."""
    found = []
    for name, values in table.confidences.items():
        for suffix, power in {"": 1.0, "+temperature": table.fitted_power(name)}.items():
            if power is not None:
                sure = np.minimum(sharpen(values[rows], power), 1.0)
                bins = reliability_bins(sure, table.correct[rows])
                found.append({"model": table.model, "confidence": name + suffix, "group": ALL, "bins": bins})
    return found


def _risk_coverage(
    table: AnswerTable, rows: IntArray, rules: AnswerCalibrationConfig, seed: int
) -> list[dict[str, Any]]:
    found = []
    for name in dict.fromkeys(one for one in (*DRAWN, rules.score) if one):
        if name in table.scores:
            values = table.scores[name][rows]
            finite = np.where(np.isfinite(values), values, _beyond(values))
            entry = {"model": table.model, "estimator": name, "group": ALL}
            entry |= risk_points(finite, table.correct[rows])
            found.append({**entry, "threshold": _threshold(table, rows, name, rules, seed)})
    return found


def _beyond(values: Array) -> float:
    """A score above all that are known: what lacks it is the least certain."""
    known = values[np.isfinite(values)]
    return float(known.max() + 1) if len(known) else 0.0


def _threshold(
    table: AnswerTable, rows: IntArray, score: str, rules: AnswerCalibrationConfig, seed: int
) -> dict[str, Any] | None:
    """What a threshold of the validation questions lets through among the attempts at the test questions."""
    held_out = [record for record in table.records if record.split == "validation"]
    try:
        first, second = validation_parts(len(held_out), rules.threshold_share, seed)
        changed = AnswerCalibrationConfig(**{**vars(rules), "score": score})
        _, rule = fit_answers([held_out[i] for i in first], [held_out[i] for i in second], changed)
    except DataError:
        return None  # too few questions, or none that has the score
    given = rows[table.scores[score][rows] <= rule.threshold]
    wrong = int((table.correct[given] < 1).sum())
    at = rule.threshold if np.isfinite(rule.threshold) else None
    return {"at": at, "fitted_on": rule.n, **risk_of(rule, len(given), wrong, len(rows))}


def _entropy_mi(table: AnswerTable, groups: Mapping[str, IntArray], seed: int) -> list[dict[str, Any]]:
    """Entropy over meanings and its mutual information with the draws, of some questions of every group."""
    if SCORED_INFORMATION not in table.scores:
        return []
    own = {name: rows for name, rows in groups.items() if name != ALL or len(groups) == 1}
    rng, room, found = np.random.default_rng(seed), max(MAX_POINTS // len(own), 1), []
    total, information = table.scores[SCORED_TOTAL], table.scores[SCORED_INFORMATION]
    for name, rows in own.items():
        rows = rows[np.isfinite(total[rows]) & np.isfinite(information[rows])]
        kept = some_rows(rows, room, rng)
        points = {"entropy": rounded(total[kept]), "mutual_information": rounded(information[kept])}
        found.append({"model": table.model, "group": name, **points, "shown": len(kept), "n": len(rows)})
    return found


def answer_mistakes(table: AnswerTable) -> list[dict[str, Any]]:
    """Wrong answers of highest probability: of questions that have an answer, then of those that have none."""
    reported = np.flatnonzero((table.split != "validation") & table.ranked)
    sure = table.confidences["max_probability"]
    wrong = sorted((int(row) for row in reported if table.correct[row] < 0.5), key=lambda row: -sure[row])
    answerable = [bool(r.references) or r.answer.given for r in table.records]
    kinds = ([row for row in wrong if answerable[row] is kind][:NUM_MISTAKES] for kind in (True, False))
    return [_mistake(table, row) for rows in kinds for row in rows]


def _mistake(table: AnswerTable, row: int) -> dict[str, Any]:
    """One answer for people to read."""
    record = table.records[row]
    return {
        "model": table.model,
        "item": record.item,
        "group": record.group,
        "question": record.question[:SHOWN],
        "said": record.answer.text[:SHOWN],
        "references": [reference[:SHOWN] for reference in record.references[:3]],
        "answerable": bool(record.references) or record.answer.given,
        "confidence": float(table.confidences["max_probability"][row]),
        "disagreement": _known(table, "disagreement", row),
        "entropy": _known(table, SCORED_TOTAL if SCORED_TOTAL in table.scores else "semantic_entropy", row),
        "mutual_information": _known(table, SCORED_INFORMATION, row),
    }


def _known(table: AnswerTable, name: str, row: int) -> float | None:
    """A score of one question, None where it has none."""
    values = table.scores.get(name)
    return None if values is None or not np.isfinite(values[row]) else float(values[row])
