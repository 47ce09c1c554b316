"""All metrics of one group of items under one predictor, each with a bootstrap interval.

Metrics that need right answers are computed on the labelled items of the group, measures of certainty on all of them.
One pass over the resamples serves all metrics.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.calibration import Scheme, calibration_floor, mass_ece, width_gaps
from vlora.eval.metrics.intervals import Interval, bootstrap
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.metrics.selective import Kept
from vlora.eval.string_mixtures import mixture_metrics
from vlora.eval.tables import Metrics, Resampler, entry, measured

__all__ = ["NUM_BINS", "certainty_metrics", "floor_fields", "labelled_metrics", "summarise"]

NUM_BINS = 15
"""Bins of the reported calibration errors, stated in their names."""

_MEANS = {"accuracy": "correct", "nll": "nll", "brier": "brier"}
_CERTAINTY = {
    **{"mean_confidence": "confidence", "confident_share": "confident_share", "entropy": "entropy"},
    **{"expected_entropy": "expected_entropy", "mutual_information": "mutual_information"},
    **{name: name for name in ("reverse_mutual_information", "expected_pairwise_kl")},
    **{"variation_ratio": "variation_ratio", "disagreement": "disagreement"},
    **{"chosen_std": "chosen_std", "kl_from_mean": "kl_from_mean"},
}
_RANKED = (
    *("ece_15_equal_width", "ece_15_equal_mass", "auroc_correctness", "aurc", "excess_aurc"),
    "accuracy_at_80_coverage",
)
_FLOOR_DRAWS = 2e6  # simulated answers behind one floor, so that long texts cost no more than short ones


def summarise(
    columns: Mapping[str, Array],
    labelled: NDArray[np.bool_],
    temperature: Interval | None,
    resampler: Resampler,
) -> Metrics:
    """All metrics of the items that ``columns`` describe.

    Args:
        columns: Per-item values of one predictor on the group, by name, each ``(N,)``.
        labelled: Which items have a right answer, shape ``(N,)``.
        temperature: Temperature of the predictor, if it has one.
        resampler: Source of the bootstrap resamples.

    Returns:
        Entries with ``value, low, high, n`` by metric.
    """
    metrics: Metrics = {}
    if labelled.any():
        metrics |= labelled_metrics({name: column[labelled] for name, column in columns.items()}, resampler)
    metrics |= certainty_metrics(columns, resampler)
    if temperature is not None:
        metrics["temperature"] = entry(temperature)
    return metrics


def labelled_metrics(columns: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """Metrics that compare answers with right answers; ``columns`` hold labelled items only, each ``(N,)``."""
    # Items in order of confidence need no sorting per resample; a bootstrap does not care for their order.
    order = np.argsort(-columns["log_confidence"], kind="stable")
    ranked = {name: column[order] for name, column in columns.items()}
    counts = resampler.counts(len(order))
    means = _MEANS | {name: name for name in mixture_metrics() if name in ranked}
    metrics = _mean_metrics({name: ranked[column] for name, column in means.items()}, resampler)
    metrics |= _mean_metrics({"calibration_gap": ranked["confidence"] - ranked["correct"]}, resampler)

    statistic = _ranked_statistic(ranked)
    values, replicates = statistic(np.ones((1, len(order))))[0], bootstrap(statistic, counts)
    for column, name in enumerate(_RANKED):
        metrics[name] = measured(float(values[column]), replicates[:, column], len(order))
    for scheme in ("equal_width", "equal_mass") if resampler.num_resamples else ():
        metrics[f"ece_{NUM_BINS}_{scheme}"] |= floor_fields(ranked["confidence"], scheme, resampler.seed)
    return metrics


def certainty_metrics(columns: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """Measures that need no right answer, and the divergence to a known distribution of answers."""
    present = {name: columns[column] for name, column in _CERTAINTY.items() if column in columns}
    metrics = _mean_metrics(present, resampler)
    if "kl_to_truth" in columns:
        known = columns["kl_to_truth"][~np.isnan(columns["kl_to_truth"])]
        if len(known):
            metrics |= _mean_metrics({"kl_to_truth": known}, resampler)
    return metrics


def floor_fields(confidence: Array, scheme: Scheme, seed: int) -> dict[str, float]:
    """``floor`` and ``floor_high`` of a calibration error on these confidences."""
    simulations = int(np.clip(_FLOOR_DRAWS / len(confidence), 100, 1000))
    floor = calibration_floor(confidence, NUM_BINS, scheme, num_simulations=simulations, seed=seed)
    return {"floor": floor.mean, "floor_high": floor.high}


def _mean_metrics(values: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """Plain means with intervals. Infinite items are counted and make the value undefined, never a clipped number."""
    table = np.stack(list(values.values()), axis=1)
    finite = np.isfinite(table)
    clean = np.where(finite, table, 0.0)
    replicates = bootstrap(lambda weights: weights @ clean, resampler.counts(len(table))) / len(table)
    metrics: Metrics = {}
    for column, name in enumerate(values):
        infinite = int((~finite[:, column]).sum())
        if infinite:
            undefined = Interval(float("nan"), float("nan"), float("nan"), len(table))
            rest = clean[:, column].sum() / (len(table) - infinite) if infinite < len(table) else None
            metrics[name] = entry(undefined, infinite=infinite, finite_mean=rest)
        else:
            metrics[name] = measured(float(clean[:, column].mean()), replicates[:, column], len(table))
    return metrics


def _ranked_statistic(columns: Mapping[str, Array]) -> Callable[[Array], Array]:
    """Statistic of the order of confidences, ``(b, N)`` counts to ``(b, 6)`` in the order of ``_RANKED``."""
    confidence, correct, certainty = columns["confidence"], columns["correct"], columns["log_confidence"]
    ranking, gap = Ranking.of(-certainty), correct - confidence
    gaps = width_gaps(confidence, correct, NUM_BINS)

    def statistic(weights: Array) -> Array:
        kept = Kept.of(ranking, correct, weights)
        area = kept.aurc()
        group_gap = ranking.collapse(weights, gap)
        values = (
            np.abs(weights @ gaps).sum(axis=1) / len(gap),
            mass_ece(kept.count[:, ::-1], group_gap[:, ::-1], NUM_BINS),
            Separation(kept.count[:, ::-1] - kept.errors[:, ::-1], kept.errors[:, ::-1]).auroc(),
            area,
            np.maximum(area - kept.oracle_aurc(), 0.0),
            kept.accuracy_at(0.8),
        )
        return np.stack(values, axis=1)

    return statistic
