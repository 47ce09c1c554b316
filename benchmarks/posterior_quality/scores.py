"""From log-probabilities to numbers: the metrics of ``vlora.eval.metrics`` for every predictor of an arm.

A temperature is one scalar on the logits, fitted on the validation rows; of draws it divides the log-probabilities of
their mixture. Foreign rows (other tasks) are found by entropy and, for draws, by mutual information;
higher AUROC is better.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.proper_scores import brier_score, correctness, negative_log_likelihood
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.selective import aurc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information

__all__ = ["draws_nll", "quality", "score_all", "score_predictor"]


def draws_nll(draws: Tensor, label: Tensor) -> float:
    """NLL in nats of the mixture of draws ``(S, N, C)``."""
    mixture = torch.logsumexp(draws, 0) - math.log(len(draws))
    return -mixture[torch.arange(len(label)), label].mean().item()


def score_all(
    predictions: Mapping[str, Mapping[str, Tensor]], labels: Mapping[str, Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """``score_predictor`` of every predictor of an arm; draws come in pairs where noise was drawn for them."""
    return {
        name: score_predictor(value, labels, antithetic=name not in ("mean", "dropout", "members"))
        for name, value in predictions.items()
    }


def score_predictor(
    predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor], *, antithetic: bool
) -> dict[str, dict[str, float]]:
    """Metrics of one predictor, as it is (``raw``) and with a fitted temperature (``tempered``).

    Args:
        predictions: ``validation``, ``test`` and ``foreign``: log-probabilities (N, C) or (S, N, C).
        labels: Classes of ``validation`` and ``test``.
        antithetic: Whether draws come in pairs of opposite noise.
    """
    arrays = {split: value.double().numpy() for split, value in predictions.items()}
    several = arrays["test"].ndim == 3
    mixed = {split: mixture_log_probs(value) if several else value for split, value in arrays.items()}
    label = {split: value.numpy() for split, value in labels.items()}
    temperature = float(fit_temperature(mixed["validation"], label["validation"]).temperature)
    tempered = {split: temper(value, temperature) for split, value in mixed.items()}
    out = {"raw": _metrics(mixed, label["test"]), "tempered": _metrics(tempered, label["test"])}
    out["tempered"]["temperature"] = temperature
    if several:
        information = [
            mutual_information(arrays[split], antithetic=antithetic) for split in ("foreign", "test")
        ]
        out["raw"]["foreign_auroc_mutual_information"] = _foreign_auroc(*information)
    return out


def quality(log_probs: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Probabilities ``(N, C)`` and their ranking of errors."""
    confidence, correct = np.exp(log_probs.max(-1)), correctness(log_probs, label)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(negative_log_likelihood(log_probs, label).mean),
        "brier": float(brier_score(log_probs, label).mean()),
        "ece": float(calibration(confidence, correct).ece),
        "ece_floor": float(calibration_floor(confidence, num_simulations=200).mean),
        "auroc_correct": float(auroc(confidence, correct)) if 0 < correct.mean() < 1 else math.nan,
        "aurc": float(aurc(-confidence, correct)),
    }


def _metrics(log_probs: Mapping[str, np.ndarray], label: np.ndarray) -> dict[str, float]:
    test = log_probs["test"]
    return quality(test, label) | {
        "foreign_auroc_entropy": _foreign_auroc(entropy(log_probs["foreign"]), entropy(test)),
        "foreign_auroc_max_probability": _foreign_auroc(-log_probs["foreign"].max(-1), -test.max(-1)),
    }


def _foreign_auroc(foreign: Any, own: Any) -> float:
    scores = np.concatenate([foreign, own])
    return float(auroc(scores, np.arange(len(scores)) < len(foreign)))
