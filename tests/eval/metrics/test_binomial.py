"""Binomial tails against exact fractions, and the bounds that follow from them."""

from fractions import Fraction
from math import comb

import pytest

from vlora.errors import DataError
from vlora.eval.metrics.binomial import beta_quantile, binomial_tail, clopper_pearson, upper_bound


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("p", [Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)])
def test_tail_equals_exact_fractions(n, p):
    for k in range(-1, n + 1):
        exact = sum((comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k + 1)), Fraction(0))
        assert binomial_tail(k, n, float(p)) == pytest.approx(float(exact), rel=1e-10)


def test_edges():
    assert binomial_tail(0, 0, 0.3) == 1.0
    assert binomial_tail(2, 5, 0.0) == 1.0 and binomial_tail(2, 5, 1.0) == 0.0
    assert upper_bound(5, 5, 0.1) == 1.0 and upper_bound(0, 0, 0.1) == 1.0


def test_no_event_in_n_trials_is_the_rule_of_three():
    assert upper_bound(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(0, 59, 0.05) < 0.05 < upper_bound(0, 58, 0.05)


def test_interval_of_five_in_twenty():
    # Tabulated Clopper-Pearson interval: .0866 to .4910.
    assert clopper_pearson(5, 20) == pytest.approx((0.08657147, 0.49104587), abs=1e-7)
    low, high = clopper_pearson(15, 20)
    assert (1 - high, 1 - low) == pytest.approx(clopper_pearson(5, 20))


def test_coverage_is_never_below_the_level():
    for p in (0.03, 0.2, 0.47):
        inside = [
            k for k in range(13) if clopper_pearson(k, 12, 0.9)[0] <= p <= clopper_pearson(k, 12, 0.9)[1]
        ]
        assert sum(comb(12, k) * p**k * (1 - p) ** (12 - k) for k in inside) >= 0.9


def test_beta_quantiles_with_closed_forms():
    assert beta_quantile(0.3, 1, 1) == pytest.approx(0.3)
    assert beta_quantile(0.3, 4, 1) == pytest.approx(0.3**0.25)
    assert beta_quantile(0.3, 1, 4) == pytest.approx(1 - 0.7**0.25)
    assert beta_quantile(0.5, 6, 6) == pytest.approx(0.5)


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"p in \[0, 1\], got n = 3, p = 1.5"):
        binomial_tail(1, 3, 1.5)
    with pytest.raises(DataError, match="got k = 4, n = 3"):
        upper_bound(4, 3, 0.1)
    with pytest.raises(DataError, match="got a = 0"):
        beta_quantile(0.5, 0, 1)
