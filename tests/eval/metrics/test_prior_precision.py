"""The prior of a linearised posterior: the choice on a grid, and its NLL against quadrature."""

import math

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.prior_precision import DEFAULT_PRIORS, fit_prior_precision, linearised_nll


def test_the_nll_of_two_classes_equals_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    gap, sd, label = np.array([0.5, -1.0, 2.0]), np.array([0.4, 1.0, 1.5]), [0, 1, 1]
    p = weights @ (1 / (1 + np.exp(-(gap + np.outer(nodes, sd)))))
    expected = -np.mean(np.log(np.where(np.array(label) == 0, p, 1 - p)))
    logits = np.stack([gap, np.zeros(3)], axis=1)
    covariance = sd[:, None, None] ** 2 * np.array([[1.0, 0.0], [0.0, 0.0]])
    assert linearised_nll(logits, covariance, label) == pytest.approx(
        expected, abs=0.02
    )  # the rare answer of item 2


def test_the_fitted_prior_is_that_of_the_simulated_world():
    """Logistic regression with a known spread of weights: the NLL is lowest at the precision that made the labels."""
    rng = np.random.default_rng(0)
    count, truth = 1500, 3.0
    x = rng.normal(size=(count, 4)) * 3
    weights = rng.normal(size=(count, 4)) / math.sqrt(truth)  # a new draw for every item, the mean is zero
    label = (rng.random(count) < 1 / (1 + np.exp(-(1.0 + (x * weights).sum(1))))).astype(int)
    logits = np.stack([np.zeros(count), np.ones(count)], axis=1)
    square = (x**2).sum(1)[:, None, None] * np.array([[0.0, 0.0], [0.0, 1.0]])
    fit = fit_prior_precision(lambda alpha: linearised_nll(logits, square / alpha, label), (0.3, 3, 30))
    assert fit.precision == truth and not fit.at_bound
    assert fit.nll == min(nll for _, nll in fit.evaluated)
    # alpha -> infinity is the mean
    at_mean = -np.mean(np.log(np.where(label == 1, 1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(-1)))))
    assert linearised_nll(logits, square / 1e12, label) == pytest.approx(at_mean, abs=1e-4)


def test_ties_take_the_widest_and_ends_are_told():
    assert fit_prior_precision({1.0: 0.5, 3.0: 0.4, 10.0: 0.4}.__getitem__, (1, 3, 10)).precision == 3.0
    for sign, end in ((1, DEFAULT_PRIORS[0]), (-1, DEFAULT_PRIORS[-1])):
        fit = fit_prior_precision(lambda alpha, sign=sign: sign * alpha)
        assert (fit.precision, fit.at_bound) == (end, True)
    assert fit_prior_precision(lambda alpha: math.inf if alpha < 5 else 0.1, (1, 3, 10, 30)).precision == 10.0


def test_bad_input_is_refused():
    for grid in ((), (1.0,), (3.0, 1.0), (0.0, 1.0), (1.0, 1.0), (1.0, math.inf)):
        with pytest.raises(DataError, match="two or more positive numbers in rising order"):
            fit_prior_precision(lambda alpha: alpha, grid)
    with pytest.raises(DataError, match="NLL under prior precision 1 is NaN"):
        fit_prior_precision(lambda alpha: math.nan)
    with pytest.raises(DataError, match="infinite under every prior"):
        fit_prior_precision(lambda alpha: math.inf)
