"""Our metrics against what other packages said about the same arrays, frozen by peers/make_peers.py."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from vlora.eval.metrics.calibration import calibration, debiased_l2
from vlora.eval.metrics.classwise import marginal_debiased_l2
from vlora.eval.metrics.compat import smooth_ece_as
from vlora.eval.metrics.ranking import auroc, average_precision
from vlora.eval.metrics.rejection import rejection_area
from vlora.eval.metrics.selective import aurc
from vlora.eval.metrics.smooth_calibration import smooth_ece

FOLDER = Path(__file__).parent / "peers"
FROZEN = json.loads((FOLDER / "peers.json").read_text())


def generated_cases():
    """The arrays of make_peers.py, so that both sides read one definition."""
    spec = importlib.util.spec_from_file_location("make_peers", FOLDER / "make_peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: (probs, label) for name, probs, label in module.cases()}


@pytest.fixture(scope="module")
def ours():
    """Every number of ours that a peer has a counterpart of."""
    found = {}
    for case in ("medium", "small"):
        probs, label = generated_cases()[case]
        confidence, right = probs.max(1), (probs.argmax(1) == label).astype(float)
        width, mass = calibration(confidence, right), calibration(confidence, right, scheme="equal_mass")
        found[case] = {
            "ece": width.ece,
            "ece_mass": mass.ece,
            "l2": width.error(2),
            "max": width.maximum_error(1),
            "debiased_l2_mass": debiased_l2(mass),
            "marginal_debiased_l2": marginal_debiased_l2(np.log(probs), label),
            "auroc": auroc(-confidence, 1 - right),
            "ap": average_precision(-confidence, 1 - right),
            "smooth_ece": smooth_ece(confidence, right),
            "ece_20": calibration(confidence, right, 20).ece,
            "aurc": aurc(-confidence, right),
            "auroc_right_low": auroc(-confidence, right),
            **{f"area_{share}": rejection_area(-confidence, right, share) for share in (1.0, 0.5)},
            **{f"oracle_{share}": rejection_area(-right, right, share) for share in (1.0, 0.5)},
            "smooth_ece_class_0": smooth_ece(probs[:, 0], label == 0),
        }
    return found


# Ours, theirs, and how close: torchmetrics computes in float32; bins of equal mass put the odd items elsewhere where
# N is no multiple of the bins; relplot's mesh moves the third digit (see smooth_calibration).
AGREEMENT = [
    ("ece", "torchmetrics", "ece_l1", 1e-6),
    ("l2", "torchmetrics", "ece_l2", 1e-6),
    ("max", "torchmetrics", "ece_max", 1e-6),
    ("auroc", "torchmetrics", "auroc_error", 1e-6),
    ("ap", "torchmetrics", "ap_error", 1e-6),
    ("ece", "netcal", "ece_15", 1e-12),
    ("ece_mass", "netcal", "ece_15_mass", 1e-12),
    ("max", "netcal", "mce_15", 1e-12),
    ("ece", "calibration", "ece_15", 1e-12),
    ("ece_mass", "calibration", "ece_15_mass", 1e-12),
    ("debiased_l2_mass", "calibration", "debiased_l2_mass", 1e-4),
    ("marginal_debiased_l2", "calibration", "marginal_debiased_l2", 4e-4),
    ("ece_20", "lm_polygraph", "ece_20", 1e-12),
    ("aurc", "lm_polygraph", "aurc", 1e-12),
    ("auroc_right_low", "lm_polygraph", "auroc", 1e-12),
    *((name, "lm_polygraph", name, 1e-12) for name in ("area_1.0", "area_0.5", "oracle_1.0", "oracle_0.5")),
    ("smooth_ece", "relplot", "smooth_ece", 1e-3),
    ("smooth_ece_class_0", "relplot", "smooth_ece_class_0", 5e-3),
]


@pytest.mark.parametrize(("ours_name", "peer", "theirs_name", "tolerance"), AGREEMENT)
@pytest.mark.parametrize("case", ["medium", "small"])
def test_agreement(ours, case, ours_name, peer, theirs_name, tolerance):
    theirs = FROZEN[peer]["cases"][case][theirs_name]
    assert ours[case][ours_name] == pytest.approx(theirs, abs=tolerance)


def test_the_gap_to_relplot_is_its_discretisation():
    for case in ("medium", "small"):
        probs, label = generated_cases()[case]
        theirs, right = FROZEN["relplot"]["cases"][case], (probs.argmax(1) == label).astype(float)
        assert smooth_ece_as("relplot", probs.max(1), right) == pytest.approx(theirs["smooth_ece"], abs=1e-6)
        of_class = smooth_ece_as("relplot", probs[:, 0], label == 0)
        assert of_class == pytest.approx(theirs["smooth_ece_class_0"], abs=1e-6)
    probs, label = generated_cases()["medium"]
    confidence, right = probs.max(1), (probs.argmax(1) == label).astype(float)
    assert smooth_ece_as("relplot", confidence, right) == pytest.approx(0.160351, abs=6e-7)
    # Every region is over-confident here, so the integral is the plain gap, at any bandwidth.
    assert smooth_ece(confidence, right) == pytest.approx(float((confidence - right).mean()), abs=1e-5)
