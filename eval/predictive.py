"""What one predictor says about items: probabilities, and how much of their entropy is ignorance.

Five predictors: ``samples`` (the mixture of posterior draws), ``mean``, and the linearised model with independent
entries (``linearised``), Kronecker factors (``kronecker``) or leading directions (``leading``), whose posterior is
under the prior that was fitted for it. Decisions are fitted to one of them and hold for that one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from vlora.errors import ConfigError, DataError
from vlora.eval.config import Scoring
from vlora.eval.decision_scores import BASE, SHARE, uncertainty
from vlora.eval.forward import Draws
from vlora.eval.host import Host
from vlora.eval.linearised import Wanted, WantedShare
from vlora.eval.linearised_prior import prior_obstacle
from vlora.eval.metrics.arrays import Array, normalised
from vlora.eval.metrics.linearised import logit_variance, softmax_moments
from vlora.eval.metrics.uncertainty import (
    entropy,
    expected_entropy,
    mixture_log_probs,
    mutual_information,
    variation_ratio,
)
from vlora.eval.score import Scorer, score_model
from vlora.eval.sink import Sink
from vlora.posterior import Posterior
from vlora.posterior.calibration import calibrated, fitted_prior, under_prior
from vlora.posterior.decisions import LINEARISED
from vlora.posterior.draws import DrawCovariance, check_draws
from vlora.posterior.kinds import missing

__all__ = [
    "Predictive",
    "base_entropy",
    "decision_scores",
    "logit_covariances",
    "posterior_of",
    "predictive",
]


@dataclass(frozen=True)
class Predictive:
    """Probabilities of N items over up to K choices, and the split of their entropy.

    Attributes:
        log_probs: Log-probabilities, ``(N, K)``, padded with ``-inf``.
        expected_entropy: Aleatoric part of the entropy in nats, ``(N,)``; None for the mean alone.
        mutual_information: Epistemic part in nats, ``(N,)``, corrected for few draws; None for the mean alone.
        logit_variance: Mean variance of the logits, ``(N,)``; of linearised predictors.
        variation_ratio: Share of draws that vote for another choice than most, ``(N,)``; of draws.
        share_left: Share of the prior variance that the data left, ``(N,)``; of leading directions, where asked for.
    """

    log_probs: Array
    expected_entropy: Array | None = None
    mutual_information: Array | None = None
    logit_variance: Array | None = None
    variation_ratio: Array | None = None
    share_left: Array | None = None

    @property
    def entropy(self) -> Array:
        """Entropy of the predictive in nats, ``(N,)``."""
        return entropy(self.log_probs)

    @property
    def epistemic_share(self) -> Array | None:
        """Epistemic part of the entropy, uncorrected, in [0, 1], ``(N,)``."""
        if self.expected_entropy is None:
            return None
        total = self.entropy
        gap = np.divide(total - self.expected_entropy, total, out=np.zeros_like(total), where=total > 0)
        return np.clip(gap, 0.0, 1.0)


def predictive(
    scorer: Scorer,
    model: nn.Module,
    posterior: Posterior,
    predictor: str,
    *,
    num_samples: int = 0,
    antithetic: bool = False,
    scoring: Scoring = "auto",
    share: bool = False,
    tick: Callable[[int], object] = int,
) -> Predictive:
    """What a predictor says about a scorer's items.

    Args:
        scorer: The items; not texts.
        model: PEFT model in eval mode that holds the posterior's mean.
        posterior: The posterior as this predictor takes it, see :func:`posterior_of`.
        predictor: ``samples``, ``mean``, ``linearised``, ``kronecker`` or ``leading``.
        num_samples: Draws, for ``samples``.
        antithetic: Whether draws come in mirrored pairs.
        scoring: How draws are run.
        share: Also ``share_left``, for the predictor ``leading``.
        tick: Called with the number of items times passes done; the linearised pass counts as one.

    Raises:
        DataError: The model gives NaN.
        ConfigError: The adapter cannot be linearised, or ``share_left`` cannot be had.
    """
    count = num_samples if predictor == "samples" else 0
    draws = Draws(model, posterior if count else None, count, antithetic and count > 0, scoring)
    scores = score_model(scorer, draws, tick)
    assert scores.log_probs is not None  # texts have no choices
    at_mean = scores.log_probs.numpy()
    if predictor in LINEARISED:
        shares = [WantedShare([posterior])] if share else []
        wanted = [Wanted([posterior], LINEARISED[predictor]), *shares]
        covariance, *left = logit_covariances(scorer, model, wanted, tick)
        moments = softmax_moments(at_mean, covariance)
        spread = logit_variance(covariance, np.isfinite(at_mean))
        split = (moments.expected_entropy, moments.mutual_information, spread)
        return Predictive(moments.log_probs, *split, share_left=left[0] if left else None)
    if scores.sample_log_probs is None:
        return Predictive(at_mean)
    samples = scores.sample_log_probs.transpose(0, 1).numpy()
    if count < 2:
        return Predictive(mixture_log_probs(samples))
    information = mutual_information(samples, antithetic=draws.antithetic)
    return Predictive(
        mixture_log_probs(samples),
        expected_entropy(samples),
        information,
        variation_ratio=variation_ratio(samples),
    )


def logit_covariances(
    scorer: Scorer,
    model: nn.Module,
    wanted: Sequence[Wanted | WantedShare],
    tick: Callable[[int], object] = int,
) -> list[Array]:
    """Covariances of the outputs of all items to first order, each ``(N, K, K)``, and shares ``(N,)``, as ``wanted``.

    Raises:
        ConfigError: The adapter cannot be linearised.
    """
    size, total = scorer.num_items, sum(map(len, wanted))
    names = [str(number) for number in range(total)]
    sink = Sink([str(item) for item in range(size)], names, tick=lambda done: tick(done // total))
    scorer.linearise(model, wanted, sink)
    results = [sink.result(item) for item in range(size)]
    return [np.array([result[number] for result in results], dtype=np.float64) for number in range(total)]


def posterior_of(
    posterior: Posterior, predictor: str, covariance: DrawCovariance = "independent"
) -> Posterior:
    """A posterior as a predictor takes it: at its fitted width, or under its fitted prior, where these were fitted.

    Args:
        posterior: As read from its folder.
        predictor: ``samples``, ``mean``, ``linearised``, ``kronecker`` or ``leading``.
        covariance: Of the draws, for ``samples``.

    Raises:
        PosteriorFormatError: What was fitted is damaged, newer, or belongs to another posterior.
        ConfigError: A linearised predictor for a plain adapter, one that does not know its number of examples, or one
            without the curvature or directions that it needs; draws without the directions that they need.
    """
    if predictor not in LINEARISED:
        drawing = posterior.drawing(covariance)
        check_draws(drawing)
        return calibrated(drawing)
    if not posterior.has_hess:
        raise ConfigError(f"predictor {predictor} needs a posterior; a plain adapter has its mean alone")
    kind = LINEARISED[predictor]
    if (lacking := missing(posterior, kind)) is not None:
        raise ConfigError(f"predictor {predictor} cannot be had: {lacking}")
    fitted: Any = fitted_prior(posterior, kind)
    if fitted is None:
        return posterior
    if (reason := prior_obstacle(posterior)) is not None:
        raise ConfigError(f"predictor {predictor} cannot be had: the posterior {reason}")
    return under_prior(posterior, float(fitted["prior_precision"]))


def decision_scores(
    found: Predictive, *, temperature: float = 1.0, base: Array | None = None
) -> dict[str, Array]:
    """All scores of N items that their predictor has, by name, each ``(N,)``.

    Args:
        found: What the predictor says.
        temperature: Logit temperature of the confidence.
        base: Entropy of the base model in nats, ``(N,)``; None leaves out the scores that need it.
    """
    columns = {
        "max_probability": uncertainty(found.log_probs / temperature),
        "entropy": found.entropy,
        "expected_entropy": found.expected_entropy,
        "mutual_information": found.mutual_information,
        "logit_variance": found.logit_variance,
        "variation_ratio": found.variation_ratio,
        SHARE: found.share_left,
    }
    scores = {name: column for name, column in columns.items() if column is not None}
    if base is not None:
        for name in ("entropy", "mutual_information"):
            if name in scores:
                scores[name + BASE] = scores[name] * base
    return scores


def base_entropy(scorer: Scorer, host: Host, tick: Callable[[int], object] = int) -> Array:
    """Entropy of the base model without an adapter in nats, of every item of a scorer, ``(N,)``.

    Args:
        scorer: The items.
        host: The base model; nothing may be worn.
        tick: Called with the number of items done.

    Raises:
        DataError: The model gives NaN.
    """
    with host.wearing(None) as model:
        log_probs = score_model(scorer, Draws(model), tick).log_probs
    assert log_probs is not None  # not texts
    if log_probs.isnan().any():
        raise DataError("the base model gives NaN instead of probabilities; check its weights")
    return entropy(normalised("log_probs", log_probs.numpy(), 2))
