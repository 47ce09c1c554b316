"""Numbers by the rules of other packages: by hand on their odd cases, and as frozen on whole arrays."""

import numpy as np
import pytest
from test_peers import FROZEN, generated_cases

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration, debiased_l2
from vlora.eval.metrics.compat import ece_as, mass_bins, smooth_ece_as, trapezoid_augrc, trapezoid_aurc


def confidences(case):
    probs, label = generated_cases()[case]
    return probs.max(1), (probs.argmax(1) == label).astype(float)


def test_the_hidden_bin_of_torchmetrics():
    assert ece_as("torchmetrics", [0.95, 1.0], [1, 0], 10) == pytest.approx(0.525)
    assert calibration([0.95, 1.0], [1, 0], 10).ece == pytest.approx(0.475)


@pytest.mark.parametrize("case", ["medium", "small", "sure", "edge"])
def test_torchmetrics_as_frozen(case):
    theirs = FROZEN["torchmetrics"]["cases"][case]["ece_l1"]
    assert ece_as("torchmetrics", *confidences(case), 15) == pytest.approx(theirs, abs=1e-6)


def test_the_edge_case_is_one():
    theirs = FROZEN["torchmetrics"]["cases"]["edge"]["ece_l1"]
    assert abs(calibration(*confidences("edge")).ece - theirs) > 1e-3


@pytest.mark.parametrize("case", ["medium", "small"])
def test_netcal_ace_as_frozen(case):
    theirs = FROZEN["netcal"]["cases"][case]["ace_15"]
    assert ece_as("netcal_ace", *confidences(case), 15) == pytest.approx(theirs, abs=1e-12)


def test_gpleiss_drops_zero():
    assert ece_as("gpleiss", [0.0, 0.6], [1, 1], 10) == pytest.approx(0.2)
    assert calibration([0.0, 0.6], [1, 1], 10).ece == pytest.approx(0.7)
    assert ece_as("gpleiss", [0.0], [1], 10) == 0.0


def test_helm_is_equal_mass():
    confidence, correct = confidences("medium")
    assert ece_as("helm", confidence, correct, 10) == pytest.approx(0.159567, abs=6e-7)


def test_an_unknown_package_is_named():
    with pytest.raises(DataError, match="expected torchmetrics, gpleiss, netcal_ace or helm, got 'x'"):
        ece_as("x", np.array([0.5]), np.array([1.0]), 10)  # type: ignore[arg-type]


def test_larger_bins_come_first_and_ties_are_parted():
    bins = mass_bins([0.3, 0.1, 0.5, 0.5, 0.5], [1, 0, 1, 0, 1], 2)
    assert bins.count.tolist() == [3, 2]
    assert bins.confidence == pytest.approx([0.3, 0.5]) and bins.accuracy == pytest.approx([2 / 3, 1 / 2])
    assert calibration([0.3, 0.1, 0.5, 0.5, 0.5], [1, 0, 1, 0, 1], 2, "equal_mass").count.tolist() == [2, 3]


@pytest.mark.parametrize("case", ["medium", "small"])
def test_debiased_error_of_uncertainty_calibration_as_frozen(case):
    theirs = FROZEN["calibration"]["cases"][case]["debiased_l2_mass"]
    assert debiased_l2(mass_bins(*confidences(case))) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("case", ["sure", "edge"])
def test_relplot_where_many_confidences_are_one(case):
    theirs = FROZEN["relplot"]["cases"][case]["smooth_ece"]
    assert smooth_ece_as("relplot", *confidences(case)) == pytest.approx(theirs, abs=1e-6)


def test_trapezoid_areas_by_hand():
    # right, wrong, right in order of certainty: R = 0, 1/2, 1/3 at coverages 1/3, 2/3, 1
    assert trapezoid_aurc([1, 2, 3], [1, 0, 1]) == pytest.approx((0.25 + 5 / 12) / 2)
    # R x coverage = 0, 1/3, 1/3
    assert trapezoid_augrc([1, 2, 3], [1, 0, 1]) == pytest.approx((1 / 6 + 1 / 3) / 2)


def test_bad_input_of_the_other_rules():
    with pytest.raises(DataError, match="num_bins must lie in 1 to 2, one item a bin, got 3"):
        mass_bins([0.1, 0.2], [0, 1], 3)
    with pytest.raises(DataError, match="expected relplot, got 'x'"):
        smooth_ece_as("x", [0.5], [1.0])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least 2 items, got 1"):
        trapezoid_aurc([0.5], [1])
