"""Numbers by the rules of other packages: by hand on their odd cases, and as frozen on whole arrays."""

import numpy as np
import pytest
from test_peers import FROZEN, generated_cases

from vlora.errors import DataError
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.compat import ece_as


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
