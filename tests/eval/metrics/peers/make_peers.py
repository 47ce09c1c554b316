"""Compute the same metrics with other packages and freeze what they say in peers.json, next to this file.

To rebuild peers.json, in an environment of its own (lm-polygraph brings some 160 packages along):

    python -m venv peers && . peers/bin/activate
    pip install -e '.[peers]'
    python tests/eval/metrics/peers/make_peers.py
    git diff tests/eval/metrics/peers/peers.json      # empty: the extra pins the versions that the file names

Packages that are not installed are skipped; what they said before is kept. Only metric functions of lm-polygraph are
imported, so `pip install --no-deps lm-polygraph==0.7.0` beside the other packages and scikit-learn is enough.
"""

import functools
import importlib
import importlib.util
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def cases():
    """Probabilities and labels: the medium anchor, and a small calibrated set."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 4)) * 1.5
    label = np.array([rng.choice(4, p=softmax(row)) for row in truth])
    yield "medium", softmax(2 * truth), label
    rng = np.random.default_rng(7)
    small = softmax(rng.normal(size=(150, 3)))
    yield "small", small, np.array([rng.choice(3, p=row) for row in small])
    sure = small.copy()
    sure[::7] = np.eye(3)[small[::7].argmax(1)]  # confidence of exactly 1, as a bf16 softmax gives
    yield "sure", sure.copy(), np.array([rng.choice(3, p=row) for row in small])
    sure[1::7] = [0.95, 0.03, 0.02]  # beside them others that belong into the same bin, and are always right
    label = np.array([rng.choice(3, p=row) for row in small])
    label[1::7] = 0
    yield "edge", sure, label


def torchmetrics(probs, label):
    import torch
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        multiclass_calibration_error,
    )

    p, y = torch.tensor(probs, dtype=torch.float64), torch.tensor(label)
    wrong = (p.argmax(1) != y).long()
    error = {
        f"ece_{norm}": multiclass_calibration_error(p, y, probs.shape[1], n_bins=15, norm=norm).item()
        for norm in ("l1", "l2", "max")
    }
    score = 1 - p.max(1).values
    return error | {
        "auroc_error": binary_auroc(score, wrong).item(),
        "ap_error": binary_average_precision(score, wrong).item(),
    }


def netcal(probs, label):
    from netcal.metrics import ACE, ECE, MCE

    confidence, right = probs.max(1), (probs.argmax(1) == label).astype(int)
    found = {"ece_15": ECE(15).measure(confidence, right), "mce_15": MCE(15).measure(confidence, right)}
    if len(np.unique(confidence)) == len(confidence):  # its bins of equal count fail on ties
        found["ece_15_mass"] = ECE(15, equal_intervals=False).measure(confidence, right)
        found["ace_15"] = ACE(15).measure(confidence, right)
    return {name: float(value) for name, value in found.items()}


def calibration(probs, label):
    import calibration as other

    return {
        "ece_15": other.get_ece(probs, label, num_bins=15),
        "ece_15_mass": other.get_ece_em(probs, label, num_bins=15),
        "debiased_l2_mass": other.get_calibration_error(probs, label, p=2, debias=True, mode="top-label"),
        "marginal_debiased_l2": other.get_calibration_error(probs, label, p=2, debias=True, mode="marginal"),
    }


def relplot(probs, label):
    import relplot as other

    value, width = other.smECE(probs.max(1), (probs.argmax(1) == label) * 1.0, return_width=True)
    class_zero = other.smECE(probs[:, 0], (label == 0) * 1.0)
    return {"smooth_ece": float(value), "bandwidth": float(width), "smooth_ece_class_0": float(class_zero)}


def lm_polygraph(probs, label):
    other = polygraph_metrics()
    uncertainty, right = -probs.max(1), (probs.argmax(1) == label).astype(float)
    found = {"aurc": other.RiskCoverageCurveAUC()(uncertainty, right)}
    for share in (1.0, 0.5):
        area = other.PredictionRejectionArea(share)
        found[f"area_{share}"] = area(uncertainty, right)
        found[f"oracle_{share}"] = area(-right, right)
    found["ece_20"] = other.ECE()(list(uncertainty), list(right))
    found["auroc"] = other.ROCAUC()(list(uncertainty), list(right))
    return {name: float(value) for name, value in found.items()}


@functools.cache
def polygraph_metrics():
    """lm-polygraph's metric classes alone: its packages import every API client and judge they know."""
    spec = importlib.util.find_spec("lm_polygraph")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("lm_polygraph is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("lm_polygraph", "lm_polygraph.ue_metrics"):
        shell = types.ModuleType(name)
        shell.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = shell
    modules = ("risk_cov_curve", "pred_rej_area", "roc_auc", "ece")
    found = types.SimpleNamespace()
    for name in modules:
        vars(found).update(vars(importlib.import_module(f"lm_polygraph.ue_metrics.{name}")))
    return found


PEERS = {
    "torchmetrics": (torchmetrics, "torchmetrics"),
    "netcal": (netcal, "netcal"),
    "calibration": (calibration, "uncertainty-calibration"),
    "relplot": (relplot, "relplot"),
    "lm_polygraph": (lm_polygraph, "lm-polygraph"),
}


def main():
    path = HERE / "peers.json"
    frozen = json.loads(path.read_text()) if path.exists() else {}
    for name, (compute, package) in PEERS.items():
        try:
            values = {case: compute(probs, label) for case, probs, label in cases()}
        except ImportError as error:
            print(f"{name}: kept as it was ({error})", file=sys.stderr)
            continue
        frozen[name] = {"package": f"{package} {version(package)}", "cases": values}
    path.write_text(json.dumps(frozen, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
