"""The numbers behind the report's figures, as plain lists: nothing here draws.

Sizes are bounded, so that ``results.json`` stays small whatever the data: curves are thinned, points are a seeded
subsample, and of the mistakes only the most confident are kept.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.selective import risk_coverage
from vlora.eval.predictions import ChoiceTable
from vlora.eval.summaries import NUM_BINS
from vlora.eval.tables import ALL, ModelTable, finite_or_none
from vlora.eval.text_ensemble import TextEnsembleTable

__all__ = [
    "MAX_POINTS",
    "figure_data",
    "reliability_bins",
    "risk_points",
    "rounded",
    "some_rows",
    "wilson_interval",
]

MAX_POINTS = 600
"""Points of one model in the entropy figure, shared out evenly over its groups."""
CURVE_POINTS = 200
"""Points of one risk-coverage curve."""
MAX_MISTAKES = 10
"""Mistakes kept per model."""
_DECIMALS = 6


def figure_data(tables: Sequence[ModelTable], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Data of all figures, by name.

    Args:
        tables: Records of the models.
        seed: Seed of the subsample of points.

    Returns:
        ``reliability``, ``risk_coverage`` (group ``all``), ``entropy_mi`` (one entry per model and group), ``mistakes``
        (the most confident wrong answers) and ``unanswerable`` (the most confident answers where none is right).
    """
    figures: dict[str, list[dict[str, Any]]] = {
        **{"reliability": [], "risk_coverage": [], "entropy_mi": [], "mistakes": [], "unanswerable": []}
    }
    for table in tables:
        rows = table.rows(ALL)
        # Tempered draws would be one more line close to that of their tempered mixture.
        drawn = [name for name in table.predictors if name != "samples+draw_temperature"]
        for predictor in drawn if len(rows) else ():
            if not isinstance(table, TextEnsembleTable):  # which has no tokens' confidences
                figures["reliability"].append(_reliability(table, predictor, rows))
            if isinstance(table, ChoiceTable):
                figures["risk_coverage"].append(_risk_coverage(table, predictor, rows))
        figures["entropy_mi"] += _entropy_mi(table, seed)
        if isinstance(table, ChoiceTable):
            wrong, unanswerable = _mistaken_rows(table)
            figures["mistakes"] += [_answer(table, row) for row in wrong]
            figures["unanswerable"] += [_answer(table, row) for row in unanswerable]
    return figures


def wilson_interval(share: Array, count: Array, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson score interval of shares out of ``count`` (Wilson 1927, doi:10.1080/01621459.1927.10502953).

        (s + z²/2n ± z sqrt(s(1-s)/n + z²/4n²)) / (1 + z²/n)

    Args:
        share: Observed shares in [0, 1], any shape.
        count: Number of observations behind each, > 0.
        level: Coverage.

    Returns:
        Lower and upper bounds in [0, 1].
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z**2 / (2 * count)
    reach = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return np.clip((centre - reach) / scale, 0, 1), np.clip((centre + reach) / scale, 0, 1)


def reliability_bins(confidence: Array, correct: Array) -> list[dict[str, float]]:
    """Occupied bins of the equal-width reliability diagram, with Wilson intervals of their accuracies.

    Args:
        confidence: Probability of being right, ``(N,)``.
        correct: Whether it is, in [0, 1], ``(N,)``.
    """
    bins = calibration(confidence, correct, NUM_BINS)
    used = np.flatnonzero(bins.count)
    low, high = wilson_interval(bins.accuracy[used], bins.count[used].astype(np.float64))
    return [
        {
            "lower": index / NUM_BINS,
            "upper": (index + 1) / NUM_BINS,
            "confidence": float(bins.confidence[index]),
            "accuracy": float(bins.accuracy[index]),
            "low": float(low[place]),
            "high": float(high[place]),
            "n": int(bins.count[index]),
        }
        for place, index in enumerate(used.tolist())
    ]


def risk_points(uncertainty: Array, correct: Array) -> dict[str, list[float]]:
    """``coverage`` and ``risk`` of the risk-coverage curve, thinned evenly, both ends kept."""
    curve, size = risk_coverage(uncertainty, correct), len(correct)
    kept = np.unique(np.linspace(0, size - 1, min(CURVE_POINTS, size)).round().astype(int))
    return {"coverage": rounded(curve.coverage[kept]), "risk": rounded(curve.risk[kept])}


def some_rows(rows: IntArray, room: int, rng: np.random.Generator) -> IntArray:
    """At most ``room`` of some rows, drawn without replacement and in order."""
    return np.sort(rng.choice(rows, room, replace=False)) if len(rows) > room else rows


def _reliability(table: ModelTable, predictor: str, rows: IntArray) -> dict[str, Any]:
    head = {"model": table.model, "predictor": predictor, "group": ALL}
    return {**head, "bins": reliability_bins(*table.reliability(predictor, rows))}


def _risk_coverage(table: ChoiceTable, predictor: str, rows: IntArray) -> dict[str, Any]:
    columns = table.predictive(predictor).columns
    head = {"model": table.model, "predictor": predictor, "group": ALL}
    return {**head, **risk_points(-columns["log_confidence"][rows], columns["correct"][rows])}


def _entropy_mi(table: ModelTable, seed: int) -> list[dict[str, Any]]:
    """Entropy and mutual information of a subsample of each group; nothing without posterior draws."""
    scores = table.scores("samples") if "samples" in table.predictors else {}
    if "mutual_information" not in scores:
        return []
    groups, rng = table.groups(), np.random.default_rng(seed)
    room, found = max(MAX_POINTS // len(groups), 1), []
    for group in groups:
        rows = table.rows(group)
        kept = some_rows(rows, room, rng)
        points = {name: rounded(scores[name][kept]) for name in ("entropy", "mutual_information")}
        found.append(
            {"model": table.model, "predictor": "samples", "group": group, "shown": len(kept), **points}
        )
        found[-1]["n"] = len(rows)
    return found


def _best_predictor(table: ChoiceTable) -> str:
    return "samples" if "samples" in table.predictors else "mean"


def _mistaken_rows(table: ChoiceTable) -> tuple[list[int], list[int]]:
    """Rows of the most confident wrong answers, and of the most confident answers where none is right."""
    columns = table.predictive(_best_predictor(table)).columns
    reported = table.split != "validation"
    unanswerable = np.array([r.label is None and r.label_probs is None for r in table.records])
    wrong = reported & table.labelled & (np.nan_to_num(columns["correct"], nan=1.0) == 0.0)
    ranked = np.argsort(-columns["log_confidence"], kind="stable")
    picks = [ranked[mask[ranked]][:MAX_MISTAKES].tolist() for mask in (wrong, reported & unanswerable)]
    return picks[0], picks[1]


def _answer(table: ChoiceTable, row: int) -> dict[str, Any]:
    """One answer for people to read."""
    predictor, record = _best_predictor(table), table.records[row]
    predictive = table.predictive(predictor)
    information = predictive.columns.get("mutual_information")
    return {
        **{"model": table.model, "predictor": predictor, "group": record.group, "item": record.item},
        **{"text": record.text, "choices": None if record.choices is None else list(record.choices)},
        "label": record.label,
        "prediction": int(predictive.log_probs[row].argmax()),
        "confidence": float(predictive.columns["confidence"][row]),
        "entropy": float(predictive.columns["entropy"][row]),
        "mutual_information": None if information is None else finite_or_none(information[row]),
    }


def rounded(values: Array) -> list[float]:
    """Numbers with the digits that a figure needs."""
    return values.round(_DECIMALS).tolist()
