"""Numbers of items and draws: textbook values, and the power they really give."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.paired_tests import mcnemar
from vlora.eval.metrics.sample_size import (
    draws_for_width,
    items_for_accuracy,
    items_for_mean,
    items_for_width,
)


def test_textbook_values():
    # (1.959964 + .841621)^2 = 7.848880, so sd 1 and effect .5 need 31.4 pairs.
    assert items_for_mean([-1.0, 1.0], 0.5**0.5) == 32  # sd of two points at +-1 is sqrt(2)
    assert items_for_mean([-1.0, 1.0], -(0.5**0.5)) == 32
    assert items_for_accuracy(0.2, 0.05) == 626
    assert items_for_width(0.02, 0.02, 400) == pytest.approx(400 * 1.959964**2, abs=1)


def test_power_is_what_was_asked_for():
    rng = np.random.default_rng(0)
    n = items_for_accuracy(0.3, 0.1, power=0.8)
    hits = 0
    for _ in range(300):
        kind = rng.choice(3, size=n, p=[0.2, 0.1, 0.7])  # only a, only b, both or none
        hits += mcnemar(kind == 0, kind == 1).mid_p <= 0.05
    assert hits / 300 == pytest.approx(0.8, abs=0.07)


def test_more_items_do_not_help_against_the_error_of_draws():
    assert items_for_width(0.02, 0.01, 500, draw_error=0.02) is None
    alone, together = items_for_width(0.02, 0.01, 500), items_for_width(0.02, 0.01, 500, draw_error=0.005)
    assert alone is not None and together is not None and together > alone
    assert draws_for_width(0.02, 0.01, 8, item_error=0.005) == draws_for_width(0.02, 0.01, 8, 0.005)
    z = 1.959964
    assert draws_for_width(0.02, 0.01, 8, 0.005) == int(np.ceil(0.01**2 * 8 / ((0.02 / z) ** 2 - 0.005**2)))
    assert draws_for_width(0.5, 0.0, 8) == 1


def test_bad_input_is_named():
    with pytest.raises(DataError, match="the effect is 0"):
        items_for_mean([1.0, -1.0])
    with pytest.raises(DataError, match="at least 2 items"):
        items_for_mean([1.0])
    with pytest.raises(DataError, match="differ by 0.3 at most"):
        items_for_accuracy(0.2, 0.3)
    with pytest.raises(DataError, match=r"level and power must lie in \(0, 1\), got 1"):
        items_for_mean([1.0, 2.0], 0.5, power=1)
    with pytest.raises(DataError, match="expected half_width > 0"):
        draws_for_width(0, 0.1, 8)


def test_one_model_may_win_every_discordant_item():
    """All one-sided tables below 400 items: the difference of two means may exceed their share by a residue."""
    above = 0
    for size in range(2, 400):
        for wins in range(1, size + 1):
            both = (size - wins) // 2
            share, difference = wins / size, (both + wins) / size - both / size
            above += difference > share
            assert abs(items_for_accuracy(share, difference) - items_for_accuracy(share, share)) <= 1
    assert above > 1000
    assert items_for_accuracy(1.0, 1.0) == 4  # z^2
