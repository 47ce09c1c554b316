"""Metrics of all labelled test items beyond the headline, each with its interval.

The headline (:mod:`vlora.eval.summaries`) has one number per question. These are the others that people publish, so
that a result can be set beside theirs: further calibration errors, the parts of the Brier score of the confidence,
further selective and ranking metrics, and classes one by one. They are computed on the group ``all`` alone.

Calibration errors of resamples are higher than those of the data (fewer different items), so read them against the
floor of the ECE and of the smooth ECE, not against the lower end of their interval.
"""

from collections.abc import Callable, Mapping

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import bin_index, debiased_gaps, width_gaps
from vlora.eval.metrics.classwise import classwise_ece
from vlora.eval.metrics.decomposition import isotonic_decomposition
from vlora.eval.metrics.intervals import bootstrap
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.metrics.selective import Kept
from vlora.eval.metrics.smooth_calibration import smooth_ece, smooth_ece_floor, smooth_ece_resampled
from vlora.eval.summaries import NUM_BINS
from vlora.eval.tables import Metrics, Resampler, measured

__all__ = ["HEADLINE", "MIN_BIN", "class_metrics", "further_metrics", "headline_statistic"]

MIN_BIN = 10
"""Fewest items in a bin that may set the maximum calibration error."""
_SELECTIVE = (
    *("augrc", "prediction_rejection_ratio", "accuracy_at_50_coverage", "accuracy_at_90_coverage"),
    *("coverage_at_5_risk", "aupr_error", "aupr_correct", "fpr95_error"),
)
HEADLINE = ("accuracy", "nll", "brier", "ece_15_equal_width", "auroc_correctness", "aurc", "augrc")
"""Metrics of ``headline_statistic``, in the order of its columns."""
_SLOW_ITEMS = 2e5  # items of all resamples together behind the intervals of the costly metrics


def further_metrics(columns: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """All further metrics of labelled items; ``columns`` are those of one predictor, each ``(N,)``.

    Returns:
        Entries with ``value, low, high, n`` by metric; ``floor`` and ``floor_high`` for the smooth ECE, ``chance`` for
        areas under precision-recall curves, ``resamples`` where fewer than the others were taken.
    """
    order = np.argsort(-columns["log_confidence"], kind="stable")
    ranked = {name: columns[name][order] for name in ("log_confidence", "confidence", "correct")}
    metrics = _intervals(_SELECTIVE, _selective(ranked), resampler, len(order))
    wrong = float(1 - ranked["correct"].mean())
    metrics["aupr_error"]["chance"], metrics["aupr_correct"]["chance"] = wrong, 1 - wrong
    names = (
        f"l2_{NUM_BINS}_equal_width",
        f"debiased_l2_{NUM_BINS}_equal_width",
        f"debiased_l1_{NUM_BINS}_equal_width",
        f"mce_{NUM_BINS}_equal_width",
    )
    metrics |= _intervals(names, _binned(ranked), resampler, len(order))
    return metrics | _smooth(ranked, resampler) | _brier_parts(ranked, resampler)


def class_metrics(log_probs: Array, label: IntArray, resampler: Resampler) -> Metrics:
    """Class-wise calibration error, for items that share their classes: (1/K) sum_k ECE(p_k, 1[y = k]).

    Args:
        log_probs: Log-probabilities of shape ``(N, K)``.
        label: Index of the right class, shape ``(N,)``.
        resampler: Source of the bootstrap resamples.
    """
    probs = np.minimum(np.exp(log_probs), 1.0)
    right = np.eye(probs.shape[1])[label]
    gaps = [width_gaps(p, y, NUM_BINS) for p, y in zip(probs.T, right.T, strict=True)]

    def statistic(weights: Array) -> Array:
        return np.mean([np.abs(weights @ gap).sum(axis=1) for gap in gaps], axis=0) / len(label)

    value = float(classwise_ece(log_probs, label, NUM_BINS).mean())
    replicates = bootstrap(statistic, resampler.counts(len(label)))
    return {f"classwise_ece_{NUM_BINS}_equal_width": measured(value, replicates, len(label))}


def headline_statistic(probs: Array, label: IntArray) -> Callable[[Array], Array]:
    """Statistic of a predictor ``(N, K)``: counts ``(b, N)`` to ``(b, 7)`` in the order of ``HEADLINE``."""
    rows = np.arange(len(label))
    confidence = np.minimum(probs.max(axis=1), 1.0)
    top = probs == probs.max(axis=1, keepdims=True)
    correct = top[rows, label] / top.sum(axis=1)
    with np.errstate(divide="ignore"):
        nll = -np.log(probs[rows, label])
    brier = np.square(probs).sum(axis=1) - 2 * probs[rows, label] + 1
    means = np.stack([correct, nll, brier], axis=1)
    gaps, ranking = width_gaps(confidence, correct, NUM_BINS), Ranking.of(-confidence)

    def statistic(weights: Array) -> Array:
        kept = Kept.of(ranking, correct, weights)
        right = kept.count - kept.errors
        ece = np.abs(weights @ gaps).sum(axis=1) / len(label)
        area = Separation(right[:, ::-1], kept.errors[:, ::-1]).auroc()
        return np.column_stack([weights @ means / len(label), ece, area, kept.aurc(), kept.augrc()])

    return statistic


def _selective(columns: Mapping[str, Array]) -> Callable[[Array], Array]:
    """Statistic of the order of confidences, counts ``(b, N)`` to ``(b, 8)`` in the order of ``_SELECTIVE``."""
    ranking, correct = Ranking.of(-columns["log_confidence"]), columns["correct"]

    def statistic(weights: Array) -> Array:
        kept = Kept.of(ranking, correct, weights)
        right = kept.count - kept.errors
        errors = Separation(
            kept.errors, right
        )  # groups ascend in uncertainty: wrong answers should come last
        values = (
            *(kept.augrc(), kept.rejection_ratio(), kept.accuracy_at(0.5), kept.accuracy_at(0.9)),
            *(kept.coverage_at(0.05), errors.average_precision()),
            *(Separation(right[:, ::-1], kept.errors[:, ::-1]).average_precision(), errors.fpr_at_tpr(0.95)),
        )
        return np.stack(values, axis=1)

    return statistic


def _binned(columns: Mapping[str, Array]) -> Callable[[Array], Array]:
    """Root mean square, the same debiased, mean debiased, and maximum over equal-width bins.

    Counts ``(b, N)`` to ``(b, 4)``, in the order of their names in :func:`further_metrics`.
    """
    confidence, correct = columns["confidence"], columns["correct"]
    member = np.eye(NUM_BINS)[bin_index(confidence, NUM_BINS)]
    sums = np.concatenate([member, member * confidence[:, None], member * correct[:, None]], axis=1)

    def statistic(weights: Array) -> Array:
        count, sure, right = np.split(weights @ sums, 3, axis=1)
        size = np.maximum(count, 1.0)
        gap, accuracy = np.abs(right - sure) / size, right / size
        share = count / len(correct)
        noise = np.where(count > 1, accuracy * (1 - accuracy) / np.maximum(count - 1, 1.0), 0.0)
        square = (share * np.where(count > 1, gap**2 - noise, 0.0)).sum(axis=1)
        largest = np.where(count >= MIN_BIN, gap, -1.0).max(axis=1)
        plain = (share * gap**2).sum(axis=1)
        values = (
            *(np.sqrt(plain), np.sqrt(np.maximum(square, 0.0)), debiased_gaps(count, gap, accuracy)),
            np.where(largest < 0, np.nan, largest),
        )
        return np.stack(values, axis=1)

    return statistic


def _smooth(columns: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """Smooth ECE with its floor."""
    confidence, correct = columns["confidence"], columns["correct"]
    counts = resampler.counts(len(correct))[:200]
    if not len(counts):  # values alone, as one of many resamples of the draws
        value = smooth_ece_resampled(confidence, correct, np.ones((1, len(correct))))[0]
        return {"smooth_ece": measured(float(value), np.empty(0), len(correct))}
    replicates = bootstrap(lambda weights: smooth_ece_resampled(confidence, correct, weights), counts)
    floor = smooth_ece_floor(confidence, num_simulations=len(counts), seed=resampler.seed)
    more = {"floor": floor.mean, "floor_high": floor.high, "resamples": len(counts)}
    return {"smooth_ece": measured(smooth_ece(confidence, correct), replicates, len(correct), **more)}


def _brier_parts(columns: Mapping[str, Array], resampler: Resampler) -> Metrics:
    """Isotonic parts of the Brier score of the confidence, (confidence - correct)^2."""
    confidence, correct = columns["confidence"], columns["correct"]
    size = len(correct)
    counts = resampler.counts(size)[: int(np.clip(_SLOW_ITEMS / size, 20, 200))]

    def parts(rows: IntArray) -> tuple[float, float, float]:
        found = isotonic_decomposition(confidence[rows], correct[rows])
        return found.reliability, found.resolution, found.uncertainty

    replicates = np.array([parts(np.repeat(np.arange(size), row)) for row in counts]).reshape(-1, 3)
    names = ("reliability_isotonic", "resolution_isotonic", "uncertainty_isotonic")
    return {
        name: measured(value, replicates[:, i], size, resamples=len(counts))
        for i, (name, value) in enumerate(zip(names, parts(np.arange(size)), strict=True))
    }


def _intervals(
    names: tuple[str, ...], statistic: Callable[[Array], Array], resampler: Resampler, size: int
) -> Metrics:
    """Entries of a statistic's columns."""
    values = statistic(np.ones((1, size)))[0]
    replicates = bootstrap(statistic, resampler.counts(size))
    return {name: measured(float(values[i]), replicates[:, i], size) for i, name in enumerate(names)}
