r"""Does the linearised predictive agree with the draws? Measured on the items of an evaluation, with a verdict.

First order in the weights is exact for a classifier head alone and good for a narrow posterior; it misses curvature,
among it the product of the two LoRA factors' deviations. Where draws are at hand, both are compared item by item, at
the width of the draws and with their covariance (independent entries, unless ``covariance: leading``). That is so
also where the predictive itself has other correlations or a prior of its own: the verdict is about first order and
says nothing of a wider posterior.

Choices: mutual information and predictive probabilities. Texts: the variance of the log-probability, per token squared
so that a text's length does not do the ranking, :math:`g^\top \Sigma g / T^2` against :math:`\mathrm{sd}_s^2 / T^2`. A
variance from few draws is noisy itself: with d degrees of freedom it is :math:`\chi^2_d / d` times the true one. So the
rank correlation is asked for only as far as an exact variance would reach it, simulated with noise of its own for every
text.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.linearised import softmax_moments
from vlora.eval.metrics.uncertainty import mixture_log_probs, mutual_information
from vlora.eval.records import Record
from vlora.posterior.ranks import spearman

__all__ = ["Agreement", "TextAgreement", "linearised_agreement", "text_agreement"]

_ITEMS = 1000
_LEAST_CORRELATION = 0.7
_MOST_DISTANCE = 0.05
_MOST_RATIO = 2.0
_SIMULATIONS = 200


@dataclass(frozen=True)
class Agreement:
    """Linearised predictive against the mixture of the draws.

    Attributes:
        items: Items compared.
        correlation: Spearman's rank correlation of the mutual information; higher is better, NaN for constants.
        distance: Mean total variation distance of the two predictives, in [0, 1]; lower is better.
        ratio: Mean mutual information of the linearised predictive over that of the draws.
    """

    items: int
    correlation: float
    distance: float
    ratio: float

    @property
    def passed(self) -> bool:
        """Whether the ranking of the items and their probabilities are those of the draws."""
        return self.correlation >= _LEAST_CORRELATION and self.distance <= _MOST_DISTANCE

    def describe(self) -> str:
        """One line for people."""
        return (
            f"rank correlation of mutual information {self.correlation:.2f}, mean distance {self.distance:.3f}, "
            f"mutual information x {self.ratio:.2f} of the draws', on {self.items} items"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with what was asked for."""
        asked = {"least_correlation": _LEAST_CORRELATION, "most_distance": _MOST_DISTANCE}
        return _plain("mutual_information", self, asked)


@dataclass(frozen=True)
class TextAgreement:
    """Linearised variance of a text's log-probability per token against that of the draws.

    Attributes:
        items: Texts compared.
        correlation: Spearman's rank correlation of the two; higher is better, NaN for constants.
        attainable: What an exact variance would reach against draws as few as these, 5 % quantile.
        ratio: Mean linearised variance over that of the draws; 1 is best.
    """

    items: int
    correlation: float
    attainable: float
    ratio: float

    @property
    def least_correlation(self) -> float:
        """What is asked for: no more than an exact variance would reach."""
        return min(_LEAST_CORRELATION, self.attainable)

    @property
    def passed(self) -> bool:
        """Whether the ranking and the size of the variances are those of the draws, as far as these can tell."""
        ordered = self.correlation >= self.least_correlation
        return ordered and 1 / _MOST_RATIO <= self.ratio <= _MOST_RATIO

    def describe(self) -> str:
        """One line for people."""
        return (
            f"rank correlation of the variance of log p {self.correlation:.2f} (exact ones would reach at least "
            f"{self.attainable:.2f} with so few draws), variance x {self.ratio:.2f} of the draws', "
            f"on {self.items} texts"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with what was asked for."""
        asked = {"least_correlation": self.least_correlation, "most_ratio": _MOST_RATIO}
        return _plain("log_prob_variance", self, asked)


def _plain(compared: str, agreement: Agreement | TextAgreement, asked: dict[str, float]) -> dict[str, Any]:
    """A comparison as JSON can hold it: None for what is not defined."""
    numbers = {**asdict(agreement), **asked}
    found = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"compared": compared, **found, "passed": agreement.passed}


def text_agreement(
    records: Sequence[Record], variances: Sequence[float] | Array, num_samples: int
) -> TextAgreement | None:
    """Compare both variances on the first texts that have both; None where there are fewer than three.

    Mirrored draws average to the mean to first order, so their variance divides by S and has S / 2 degrees of freedom.

    Args:
        records: Records of one model, with ``lm``.
        variances: Of every text the variance of its log-probability to first order, at the width of the draws.
        num_samples: Posterior draws S.
    """
    both = [
        (variance / record.lm.num_tokens**2, record.lm.nll_std**2 / record.lm.num_tokens**2)
        for record, variance in zip(records, variances, strict=True)
        if record.lm is not None and record.lm.nll_std is not None
    ][:_ITEMS]
    if len(both) < 3 or num_samples < 2:
        return None
    ours, drawn = (np.array(column) for column in zip(*both, strict=True))
    freedom = num_samples - 1.0
    if records[0].antithetic:
        freedom, drawn = num_samples / 2, drawn * (num_samples - 1) / num_samples
    noise = np.random.default_rng(0).chisquare(freedom, (_SIMULATIONS, len(ours))) / freedom
    attainable = float(np.quantile([_correlation(ours, ours * row) for row in noise], 0.05))
    ratio = float(ours.mean() / drawn.mean()) if drawn.mean() > 0 else float("nan")
    return TextAgreement(len(both), _correlation(ours, drawn), attainable, ratio)


def _correlation(left: Array, right: Array) -> float:
    found = spearman(torch.from_numpy(left), torch.from_numpy(right))
    return float("nan") if found is None else found


def linearised_agreement(
    records: Sequence[Record], covariances: Sequence[Any] | None = None
) -> Agreement | None:
    """Compare both predictives on the first items that have both; None where there are fewer than three.

    Args:
        records: Records of one model.
        covariances: Of every record the covariance of its logits at the width of the draws, at least [K, K]; None takes
            those of the records.
    """
    given = [r.linearised_covariance for r in records] if covariances is None else covariances
    both = [
        (record, covariance)
        for record, covariance in zip(records, given, strict=True)
        if covariance is not None and record.log_probs is not None and record.sample_log_probs is not None
    ][:_ITEMS]
    if len(both) < 3 or min(len(r.sample_log_probs) for r, _ in both if r.sample_log_probs is not None) < 2:
        return None
    found = [_compare(record, covariance) for record, covariance in both]
    ours, drawn, distance = (np.array(column) for column in zip(*found, strict=True))
    ratio = float(ours.mean() / drawn.mean()) if drawn.mean() > 0 else float("nan")
    return Agreement(len(both), _correlation(ours, drawn), float(distance.mean()), ratio)


def _compare(record: Record, covariance: Any) -> tuple[float, float, float]:
    """Mutual information both ways, and the distance of the two predictives, of one item."""
    assert record.log_probs is not None and record.sample_log_probs is not None
    size = len(record.log_probs)
    own = np.asarray(covariance, dtype=np.float64)[:size, :size]
    moments = softmax_moments(record.log_probs[None], own[None])
    samples = record.sample_log_probs[:, None]
    drawn = float(mutual_information(samples, antithetic=record.antithetic)[0])
    gap = np.exp(moments.log_probs[0]) - np.exp(mixture_log_probs(samples)[0])
    return float(moments.mutual_information[0]), drawn, float(np.abs(gap).sum() / 2)
