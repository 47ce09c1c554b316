"""Which part of the posterior, at which prior, finds foreign rows? On rows and a seed that no test has.

IVON's posterior with Kronecker factors; its whole covariance, and that of the factors A or B alone, at prior precisions
from hardly any to more than the likelihood would choose. Own rows are the calibration rows of the training file,
foreign ones stories (``tinystories_1k``).
"""

from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.classification_uq.arms import expected_nll, train_ivon
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.scores import of_mean, of_moments, separation
from benchmarks.classification_uq.tasks import EVERY, Task
from benchmarks.posterior_quality.linearised import by_prior, logit_moments
from benchmarks.posterior_quality.units import best_given

__all__ = ["PRACTICE_SEEDS", "PRIORS", "measure_practice"]

PRACTICE_SEEDS = (100,)
"""Runs on which no test row is looked at."""
PRIORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
PARTS = {"all": "", "A": "lora_A", "B": "lora_B"}


def measure_practice(task: Task, seed: int) -> dict[str, Any]:
    """AUROC of information and logit variance by part and prior, and the NLL of the calibration rows there."""
    network = Network(task.num_classes, seed)
    posterior, _, loss = train_ivon(network, task.train, seed, best_given("ivon_auto", task.name))
    spreads = {
        (part, prior): {key: own for key, own in spread.items() if inside in key}
        for prior, spread in by_prior(posterior, "kronecker", PRIORS).items()
        for part, inside in PARTS.items()
    }
    own, foreign = (logit_moments(network, task.splits[s], spreads) for s in ("calibration", "practice"))
    label = task.splits["calibration"].label.numpy()
    found: dict[str, Any] = {
        "mean": {
            "entropy": pairs(
                of_mean(_logs(own[0])).scores["entropy"], of_mean(_logs(foreign[0])).scores["entropy"]
            )
        }
    }
    for key in spreads:
        first, second = (of_moments(x.double().numpy(), c[key].numpy()).scores for x, c in (own, foreign))
        scores = {name: pairs(first[name], second[name]) for name in ("information", "logit_variance")}
        found[f"{key[0]}, {key[1]:g}"] = scores | {"nll": expected_nll(own[0], own[1][key], label)}
    return {"task": task.name, "seed": seed, "train_loss": loss, "scores": found}


def pairs(own: np.ndarray, foreign: np.ndarray) -> dict[str, float]:
    """Separation of foreign rows from own, clean and ambiguous ones."""
    marked = np.arange(len(own)) % EVERY == EVERY - 1
    return separation({"test": own, "clean": own[~marked], "ambiguous": own[marked], "near": foreign})


def _logs(logits: Tensor) -> np.ndarray:
    return logits.double().log_softmax(-1).numpy()
