"""The world of ``eval_world`` for linearised predictives: calibrated and evaluated without draws, records as arrays."""

from pathlib import Path

import eval_world
import numpy as np

from vlora.eval.calibrate import run_calibration
from vlora.eval.records import read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval

GRID = [0.5, 5.0, 50.0, 500.0]
NAME = "first"


def calibrate(folder: Path, *, predictor: str, **changes):
    """Calibrate without draws: the priors and their decisions alone."""
    rules = {"prior_grid": GRID, "alpha": [0.3], "risk": 0.9, "delta": 0.5, "predictor": predictor}
    rules |= changes.pop("calibration", {})
    changes = {"model": str(folder / NAME), "num_samples": 0, "calibration": rules, **changes}
    return run_calibration(eval_world.config(folder, folder / "c", **changes))


def evaluated(folder: Path, output: Path, **changes):
    """Records and results."""
    changes = {"model": str(folder / NAME), "num_samples": 0, **changes}
    run_eval(eval_world.config(folder, output, overwrite=True, **changes))
    return read_records(output / "records.jsonl"), read_results(output / "results.json")


def arrays(records, width: int = 3):
    """Log-probabilities at the mean, covariances and labels, padded."""
    log_probs = np.full((len(records), width), -np.inf)
    covariance = np.zeros((len(records), width, width))
    for row, record in enumerate(records):
        size = len(record.log_probs)
        log_probs[row, :size], covariance[row, :size, :size] = record.log_probs, record.linearised_covariance
    return log_probs, covariance, [record.label for record in records]
