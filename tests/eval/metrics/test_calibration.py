"""Calibration errors against published anchors, hand-computed bins, and the simulated floor."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.errors import DataError
from vlora.eval.metrics.calibration import (
    bin_index,
    calibration,
    calibration_floor,
    calibration_gap,
    debiased_l1,
    debiased_l2,
    mass_ece,
    width_gaps,
)
from vlora.eval.metrics.ranking import Ranking

P = [0.25, 0.25, 0.55, 0.75, 0.75]
Y = [0, 0, 1, 1, 1]


def test_torchmetrics_docstring_two_bins():
    bins = calibration(P, Y, 2)
    assert bins.error(1) == pytest.approx(0.29)
    assert bins.error(2) == pytest.approx(0.29183, abs=5e-6)
    assert bins.maximum_error(min_count=1) == pytest.approx(0.31667, abs=5e-6)
    assert calibration(P, Y, 2, "equal_mass").ece == pytest.approx(0.11)


def test_torchmetrics_docstring_three_classes():
    bins = calibration([0.55, 0.55, 0.60, 0.90], [0, 0, 1, 1], 3)
    assert bins.error(1) == pytest.approx(0.2)
    assert bins.error(2) == pytest.approx(0.2082, abs=5e-5)
    assert bins.maximum_error(1) == pytest.approx(0.2333, abs=5e-5)


def test_confidence_one_belongs_to_the_last_bin():
    assert calibration([0.95, 1.0], [1, 0], 10).ece == pytest.approx(0.475)


def test_confidence_zero_is_kept_in_the_first_bin():
    bins = calibration([1, 1, 1, 1, 0], [0, 0, 1, 1, 1], 2)
    assert bins.ece == pytest.approx(0.6)
    assert bins.count.tolist() == [1, 4]


@pytest.mark.parametrize("norm", [1, 2, 3])
@pytest.mark.parametrize("num_bins", [2, 9])
def test_one_bin_per_value_anchor(norm, num_bins):
    bins = calibration(
        [0.5, 0.5, 0.5, 0.6, 0.5, 0.6, 0.6, 0.6, 0.6], [0, 1, 0, 1, 0, 1, 1, 1, 0], num_bins, "equal_mass"
    )
    expected = (4 / 9 * 0.25**norm + 5 / 9 * 0.2**norm) ** (1 / norm)
    assert bins.error(norm) == pytest.approx(expected)


def test_bins_are_right_closed_on_every_representable_edge():
    for num_bins in (3, 10, 15):
        edges = np.arange(1, num_bins + 1) / num_bins
        assert bin_index(edges, num_bins).tolist() == list(range(num_bins))
        assert bin_index(np.nextafter(edges[:-1], 2), num_bins).tolist() == list(range(1, num_bins))


def test_equal_mass_never_splits_ties_and_fills_bins_evenly():
    rng = np.random.default_rng(0)
    assert np.bincount(bin_index(rng.random(150), 15, "equal_mass")).tolist() == [10] * 15
    tied = rng.integers(4, size=200) / 4
    index = bin_index(tied, 15, "equal_mass")
    assert all(len(set(index[tied == value])) == 1 for value in np.unique(tied))


def test_gap_is_signed_and_bins_are_returned():
    assert calibration_gap([0.9, 0.9], [0, 1]) == pytest.approx(0.4)
    assert calibration_gap([0.6, 0.6], [1, 1]) == pytest.approx(-0.4)
    bins = calibration([0.05, 0.9, 0.94], [0, 1, 0], 10)
    assert bins.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert np.isnan(bins.accuracy[1]) and bins.confidence[9] == pytest.approx(0.94)


def test_maximum_error_ignores_small_bins():
    confidence, correct = [0.95] * 20 + [0.1], [1] * 19 + [0] + [1]
    assert calibration(confidence, correct, 10).maximum_error(min_count=1) == pytest.approx(0.9)
    assert calibration(confidence, correct, 10).maximum_error(min_count=10) == pytest.approx(0.0)
    assert np.isnan(calibration([0.5], [1]).maximum_error())


def test_debiased_error_is_smaller_and_clamped():
    rng = np.random.default_rng(1)
    confidence = rng.random(300)
    calibrated = calibration(confidence, rng.random(300) < confidence)
    assert debiased_l2(calibrated) < calibrated.error(2)
    assert debiased_l2(calibration([0.5] * 10, [0, 1] * 5)) == 0.0


def test_debiased_l1_by_hand():
    # one bin of 4: accuracy 1/2 and confidence 1/2, so sd 1/4 and E|sd Z| = sqrt(2 / pi) / 4 is taken off: below 0
    assert debiased_l1(calibration([0.5] * 4, [0, 1] * 2)) == 0.0
    # accuracy 1/2, confidence .9, sd 1/4: E|-.4 + sd Z| of a folded normal
    z = 0.4 / 0.25
    folded = 0.25 * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + 0.4 * math.erf(z / math.sqrt(2))
    assert debiased_l1(calibration([0.9] * 4, [0, 1] * 2)) == pytest.approx(0.8 - folded)
    # without noise (all right) it is the ECE, and a bin of one counts zero
    assert debiased_l1(calibration([0.9] * 4, [1] * 4)) == pytest.approx(0.1)
    assert debiased_l1(calibration([0.9] * 4 + [0.1], [1] * 5)) == pytest.approx(0.4 / 5)


def test_debiased_l1_is_the_mean_over_gaussian_accuracies():
    rng = np.random.default_rng(4)
    confidence = rng.uniform(0.3, 1.0, 400)
    bins = calibration(confidence, rng.random(400) < confidence**2)
    used = bins.count > 1
    count, accuracy, level = bins.count[used], bins.accuracy[used], bins.confidence[used]
    sd = np.sqrt(accuracy * (1 - accuracy) / count)
    drawn = np.abs(accuracy + sd * rng.normal(size=(200_000, len(sd))) - level) @ count / 400
    assert debiased_l1(bins) == pytest.approx(2 * bins.ece - drawn.mean(), abs=2e-4)
    assert debiased_l1(bins) < bins.ece


def test_floor_has_the_published_size():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.25, 1.0, 200)
    floor = calibration_floor(confidence, seed=1)
    assert 0.06 < floor.mean < 0.1  # evaluation notes: about .083 at N = 200 with 15 bins
    assert floor.mean < floor.high < 0.15


@pytest.mark.parametrize("scheme", ["equal_width", "equal_mass"])
def test_floor_agrees_with_plain_simulation(scheme):
    rng = np.random.default_rng(2)
    confidence = rng.beta(4, 2, 120)
    plain = [calibration(confidence, rng.random(120) < confidence, 15, scheme).ece for _ in range(600)]
    floor = calibration_floor(confidence, 15, scheme, num_simulations=2000)
    assert floor.mean == pytest.approx(np.mean(plain), rel=0.03)
    assert floor.high == pytest.approx(np.quantile(plain, 0.95), rel=0.06)
    assert floor == calibration_floor(confidence, 15, scheme, num_simulations=2000)


def test_calibrated_error_falls_to_its_floor_like_one_over_root_n():
    rng = np.random.default_rng(3)
    means = []
    for size in (400, 6400):
        confidence = rng.random(size)
        floor = calibration_floor(confidence, num_simulations=300)
        assert calibration(confidence, rng.random(size) < confidence).ece < 1.5 * floor.high
        means.append(floor.mean)
    assert means[0] / means[1] == pytest.approx(4.0, rel=0.15)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31), st.booleans())
def test_properties(size, num_bins, seed, coarse):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(5, size=size) / 4 if coarse else rng.random(size)
    correct = rng.integers(2, size=size)
    order = rng.permutation(size)
    for scheme in ("equal_width", "equal_mass"):
        bins = calibration(confidence, correct, num_bins, scheme)
        assert 0 <= bins.ece <= bins.error(2) + 1e-12 <= 1 + 1e-12
        assert bins.ece >= abs(calibration_gap(confidence, correct)) - 1e-12
        assert bins.count.sum() == size
        assert calibration(confidence[order], correct[order], num_bins, scheme).ece == pytest.approx(
            bins.ece, abs=1e-12
        )


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(0, 2**31), st.booleans())
def test_resampled_forms_equal_the_metric_on_the_laid_out_resample(size, seed, coarse):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(5, size=size) / 4 if coarse else rng.random(size)
    correct = rng.integers(2, size=size).astype(float)
    drawn = rng.integers(size, size=(3, size))
    weights = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(float)
    ranking = Ranking.of(confidence)
    width = np.abs(weights @ width_gaps(confidence, correct)).sum(1) / size
    mass = mass_ece(ranking.collapse(weights), ranking.collapse(weights, correct - confidence))
    for row, items in enumerate(drawn):
        assert width[row] == pytest.approx(calibration(confidence[items], correct[items]).ece, abs=1e-12)
        assert mass[row] == pytest.approx(
            calibration(confidence[items], correct[items], 15, "equal_mass").ece, abs=1e-12
        )


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5, 0.6], [1], "one entry per item"),
        ([], [], "non-empty"),
        ([-0.1], [1], "must lie in"),
        ([float("nan")], [1], "1 NaN of 1"),
        ([[0.5]], [[1]], "1-D"),
    ],
)
def test_bad_input_is_named(confidence, correct, message):
    with pytest.raises(DataError, match=message):
        calibration(confidence, correct)


def test_bad_number_of_bins_is_named():
    with pytest.raises(DataError, match="num_bins must be at least 1"):
        calibration([0.5], [1], 0)
