"""Class-wise calibration: by hand, with two classes, and bad input."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.classwise import classwise_ece, marginal_debiased_l2


def test_two_classes_mirror_each_other():
    rng = np.random.default_rng(0)
    p, label = rng.uniform(0.01, 0.99, 200), rng.integers(2, size=200)
    errors = classwise_ece(np.log(np.stack([1 - p, p], axis=1)), label, 1)
    assert errors == pytest.approx([calibration(p, label, 1).ece] * 2)


def test_by_hand_with_one_bin_each():
    log_probs = np.log([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    assert classwise_ece(log_probs, [0, 0], 1) == pytest.approx([0.5, 0.25, 0.25])


def test_constant_calibrated_classes_have_no_marginal_error():
    log_probs = np.log(np.tile([0.5, 0.25, 0.25], (40, 1)))
    assert marginal_debiased_l2(log_probs, [0] * 20 + [1] * 10 + [2] * 10) == 0.0
    expected = ((0.5**2 + 0.25**2 + 0.25**2) / 3) ** 0.5  # every label 0: no variance to take off
    assert marginal_debiased_l2(log_probs, [0] * 40) == pytest.approx(expected)


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"must sum to 1 over the choices, got 0\.7 in 1 of 2 rows"):
        classwise_ece(np.log([[0.5, 0.5], [0.3, 0.4]]), [0, 1])
    with pytest.raises(DataError, match="labels must lie in 0…1, got 2 to 2"):
        classwise_ece(np.log([[0.5, 0.5]]), [2])
