"""The fitted width against minima that are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.posterior_scale import DEFAULT_LADDER, fit_std_scale


@settings(max_examples=60, deadline=None)
@given(st.floats(0.15, 7.0), st.integers(0, 12))
def test_a_smooth_minimum_is_bracketed_ever_tighter(minimum, refine):
    calls = []

    def nll(scale):
        calls.append(scale)
        return 0.3 + (math.log(scale) - math.log(minimum)) ** 2

    fit = fit_std_scale(nll, refine=refine)
    assert fit.nll == min(value for _, value in fit.evaluated) == nll(fit.std_scale)
    assert len(calls) - 1 == len(DEFAULT_LADDER) + (0 if fit.at_bound else refine)
    if not fit.at_bound:  # each golden section leaves at most .62 of an interval of two octaves
        assert abs(math.log2(fit.std_scale / minimum)) <= 2 * 0.6181**refine + 1e-9


def test_the_width_of_a_gaussian_location_posterior_is_recovered():
    """y ~ N(theta, 1), theta ~ N(0, v): draws of N(0, v/9) predict best when their std is multiplied by 3."""
    rng = np.random.default_rng(0)
    y = rng.normal(0, math.sqrt(1 + 4), 20_000)
    noise = rng.normal(size=2_000)
    noise = np.concatenate([noise, -noise])

    def nll(scale):
        edges = np.linspace(-12, 12, 241)  # the mixture on a grid, read off by interpolation
        theta = scale * (2 / 3) * noise
        density = np.exp(-((edges[:, None] - theta) ** 2) / 2).mean(1) / math.sqrt(2 * math.pi)
        return -np.interp(y, edges, np.log(density)).mean()

    fit = fit_std_scale(nll, refine=8)
    assert fit.std_scale == pytest.approx(3.0, rel=0.04)
    assert not fit.at_bound


def test_scores_at_known_scales_are_enough():
    scores = {0.5: 0.4, 1.0: 0.35, 2.0: 0.5}
    fit = fit_std_scale(scores.__getitem__, list(scores), refine=0)
    assert (fit.std_scale, fit.nll, fit.at_bound) == (1.0, 0.35, False)
    assert fit.evaluated == tuple(scores.items())


@pytest.mark.parametrize(("sign", "end"), [(1, 0.25), (-1, 4.0)])
def test_a_minimum_beyond_the_ladder_is_said_to_be_so(sign, end):
    fit = fit_std_scale(lambda scale: sign * scale, (0.25, 1.0, 4.0))
    assert (fit.std_scale, fit.at_bound) == (end, True)


def test_one_is_always_tried_and_infinite_values_lose():
    fit = fit_std_scale(lambda c: math.inf if c < 0.9 else c, (0.5, 2.0, 3.0), refine=3)
    assert fit.std_scale < 1.2 and dict(fit.evaluated)[1.0] == 1.0
    with pytest.raises(DataError, match="infinite at every scale"):
        fit_std_scale(lambda c: math.inf)


def test_bad_input_is_named():
    for ladder in ((), (2.0, 1.0), (1.0,), (-1.0, 2.0), (1.0, 1.0, 2.0), (1.0, math.inf)):
        with pytest.raises(DataError, match="two or more positive scales in rising order"):
            fit_std_scale(lambda c: c, ladder)
    with pytest.raises(DataError, match=r"NLL at std_scale 0.125 is NaN"):
        fit_std_scale(lambda c: math.nan)
