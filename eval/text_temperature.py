"""Temperature scaling of texts, the baseline: one number for the next token's logits, fitted on other texts.

    p_T(v | y_<t) ~ p(v | y_<t)^(1/T),      T* = argmin_T NLL per token      (Guo et al. 2017, arXiv:1706.04599)

of the mean, and of the draws' per-token mixture; tried on a grid of temperatures, with the minimum of a parabola in
log T through the best three. Which texts it is fitted on is said in :mod:`vlora.eval.text_stages`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.eval.metrics.intervals import Interval, bootstrap, percentile_interval
from vlora.eval.metrics.temperature import TemperatureFit, temperature_from_grid
from vlora.eval.records import TokenScores
from vlora.eval.tables import Resampler

__all__ = ["TOKEN_TEMPERATURES", "fit_token_temperature", "refitted"]

TOKEN_TEMPERATURES = tuple(np.geomspace(0.25, 4.0, 25).tolist())
"""Logit temperatures tried for texts, a factor of 1.12 apart."""


def fit_token_temperature(texts: Sequence[Mapping[str, Any]], name: str) -> TemperatureFit:
    """Temperature with the smallest NLL per token of some texts.

    Args:
        texts: Scores of texts under ``TOKEN_TEMPERATURES``, see :mod:`vlora.eval.token_stream`.
        name: ``nll_tempered`` of the mean, or ``nll_samples_tempered`` of the per-token mixture.
    """
    tokens = sum(text["num_tokens"] for text in texts)
    total = np.sum([text[name] for text in texts], axis=0)
    return temperature_from_grid(texts[0]["temperatures"], total / tokens)


def refitted(value: float, texts: Sequence[TokenScores], of: str, resampler: Resampler) -> Interval:
    """A fitted temperature with a bootstrap interval over the texts that it was fitted on.

    Args:
        value: The temperature.
        texts: Validation texts; without scores under many temperatures there is no interval.
        of: ``mean`` or ``samples``.
        resampler: Source of the resamples.
    """
    name = "nll_tempered" if of == "mean" else "nll_samples_tempered"
    found = [getattr(text, name) for text in texts]
    if not found or any(one is None for one in found):
        return Interval(value, float("nan"), float("nan"), len(texts))
    nll, size = np.stack(found), np.array([text.num_tokens for text in texts])
    sums = bootstrap(lambda weights: weights @ nll / (weights @ size)[:, None], resampler.counts(len(texts)))
    refits = [temperature_from_grid(texts[0].temperatures, row).temperature for row in sums]
    return percentile_interval(value, refits, len(texts))
