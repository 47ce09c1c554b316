"""The part of ``vlora calibrate`` that fits the width of a posterior, and logit temperatures as baselines.

All draws of one width run side by side, as in ``vlora eval``. The width of leading directions as trained,
:math:`T / l_k`, says little (the last eigenvalue depends on how many there are), so there the ladder stands around the
width that is best for the linearised model, where that was fitted.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from vlora.eval.calibrate_parts import Parts
from vlora.eval.forward import Draws
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.posterior_scale import ScaleFit, fit_std_scale
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.temperature import TemperatureFit, fit_temperature
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.prepare import Evaluation
from vlora.eval.score import Scores, score_draws
from vlora.eval.tables import finite_or_none
from vlora.eval.text_temperature import TOKEN_TEMPERATURES, fit_token_temperature
from vlora.posterior import Posterior
from vlora.posterior.kinds import source_identity

__all__ = ["Trials", "fit_width", "logit_temperatures", "scored_on", "token_temperatures"]

logger = logging.getLogger(__name__)


@dataclass
class Trials:
    """NLL of one posterior on the held-out rows at any width; keeps the mixtures for the logit temperature."""

    evaluation: Evaluation
    model: nn.Module
    posterior: Posterior
    tick: Callable[[int], object]
    mixtures: dict[float, Array] = field(default_factory=dict)

    @property
    def label(self) -> list[int | None]:
        """Right answers."""
        return [item.example.label for item in self.evaluation.items]

    def nll(self, std_scale: float) -> float:
        """Mean NLL of the mixture of draws, per item, or per token for texts; in nats."""
        config = self.evaluation.config
        scores = self._scores(self.posterior.scaled(std_scale), config.num_samples)
        if scores.texts is not None:
            return _per_token(scores.texts, "nll_samples")
        assert scores.sample_log_probs is not None
        self.mixtures[std_scale] = mixture_log_probs(scores.sample_log_probs.transpose(0, 1).numpy())
        return negative_log_likelihood(self.mixtures[std_scale], self.label).mean

    def at_mean(self) -> tuple[float, Array | None]:
        """NLL of the mean, and its log-probabilities where there are choices."""
        scores = self._scores(None, 0)
        if scores.texts is not None:
            return _per_token(scores.texts, "nll"), None
        assert scores.log_probs is not None
        log_probs = scores.log_probs.numpy()
        return negative_log_likelihood(log_probs, self.label).mean, log_probs

    def token_temperature(self, std_scale: float | None) -> TemperatureFit:
        """Logit temperature of the next token's probabilities: of the mixture at a width, of the mean for None."""
        scorer: Any = self.evaluation.scorer
        scorer.temperatures = TOKEN_TEMPERATURES
        try:
            if std_scale is None:
                scores, name = self._scores(None, 0), "nll_tempered"
            else:
                scaled = self.posterior.scaled(std_scale)
                scores, name = (
                    self._scores(scaled, self.evaluation.config.num_samples),
                    "nll_samples_tempered",
                )
        finally:
            scorer.temperatures = ()
        return fit_token_temperature(scores.texts or [], name)

    def _scores(self, posterior: Posterior | None, count: int) -> Scores:
        config = self.evaluation.config
        draws = Draws(self.model, posterior, count, config.antithetic and count > 0, config.scoring)
        return score_draws(self.evaluation.scorer, draws, self.tick)


def fit_width(
    parts: Parts, trials: Trials, name: str, nll_mean: float, precision: float | None = None
) -> tuple[ScaleFit, dict[str, Any]]:
    """The best width and its section of ``calibration.json``.

    Args:
        parts: The rows.
        trials: The posterior on the rows of the fit.
        name: Name of the adapter, for messages.
        nll_mean: NLL of its mean on them.
        precision: Best one of what the leading directions leave out in the linearised model; None: not fitted.
    """
    config, posterior = parts.fit.config, trials.posterior
    start = _start(posterior, precision)
    ladder = [start * rung for rung in config.calibration.ladder]
    fit = fit_std_scale(trials.nll, ladder, refine=config.calibration.refine)
    if fit.at_bound:
        logger.warning(
            "%s: the best width x %g is the end of calibration.ladder; %s",
            name,
            fit.std_scale,
            "the mean predicts as well" if fit.std_scale < 1 else "a longer ladder may find a better one",
        )
    return fit, {
        "std_scale": fit.std_scale,
        "temperature": posterior.scaled(fit.std_scale).temperature,
        "covariance": posterior.covariance,
        **({} if posterior.covariance == "independent" else source_identity(posterior, posterior.covariance)),
        "at_bound": fit.at_bound,
        "nll": {"mean": nll_mean, "as_trained": dict(fit.evaluated)[1.0], "fitted": fit.nll},
        "evaluated": [list(pair) for pair in fit.evaluated],
        "num_samples": config.num_samples,
        "antithetic": config.antithetic,
        **scored_on(parts),
    }


def _start(posterior: Posterior, precision: float | None) -> float:
    """Factor on the width as trained that the ladder stands around."""
    leading, temperature = posterior.directions, posterior.temperature
    if posterior.covariance != "leading" or precision is None or leading is None or not temperature:
        return 1.0
    return math.sqrt(float(leading.values[-1]) / (temperature * precision))


def scored_on(parts: Parts) -> dict[str, Any]:
    """What a fit was made on: rows, task, number format."""
    config = parts.fit.config
    return {
        "rows": len(parts.fit.items),
        "task": config.task,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "split": parts.described,
    }


def logit_temperatures(predictors: Mapping[str, Array], label: Any) -> dict[str, Any]:
    """Temperature scaling of every predictor on the same rows; a baseline, and what may be added on top."""
    return {name: _entry(fit_temperature(log_probs, label)) for name, log_probs in predictors.items()}


def token_temperatures(trials: Trials, std_scale: float) -> dict[str, Any]:
    """The same for the tokens of texts: of the mean and of the per-token mixture as trained and at the fitted width."""
    widths = {"mean": None, "samples": 1.0, "samples_fitted": std_scale}
    return {name: _entry(trials.token_temperature(width)) for name, width in widths.items()}


def _entry(fit: TemperatureFit) -> dict[str, Any]:
    """The fit as ``calibration.json`` holds it; the NLL is null where no right answer has a probability above zero."""
    found = {"temperature": fit.temperature, "nll": finite_or_none(fit.nll), "at_bound": fit.at_bound}
    return {**found, "num_infinite": fit.num_infinite}


def _per_token(texts: list[dict[str, Any]], name: str) -> float:
    return float(np.sum([text[name] for text in texts]) / np.sum([text["num_tokens"] for text in texts]))
