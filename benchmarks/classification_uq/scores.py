"""From what methods say to numbers: which rows a score separates, how good the probabilities are, when to be silent.

Scores of uncertainty, higher is less certain: ``max_probability`` (-log of it) and ``entropy`` of the prediction;
``expected_entropy`` (aleatoric) and ``information`` (mutual information, epistemic) of draws and of the linearised
model; ``logit_variance``, the trace of the covariance of the logits apart from a shift that they share; ``leverage``,
the same under the covariance of B alone and hardly any prior; ``distance``, ``length`` and the share that is left
(``ivon_left``, ``laplace_left``), which have no prediction.
AUROC of a pair "a over b" is the chance that a row of a scores higher.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.classification_uq.tasks import mixed
from benchmarks.posterior_quality.scores import quality as plain_quality
from vlora.eval.metrics.linearised import softmax_moments
from vlora.eval.metrics.proper_scores import correctness
from vlora.eval.metrics.ranking import auroc, fpr_at_tpr
from vlora.eval.metrics.risk_control import controlled_threshold, threshold_grid
from vlora.eval.metrics.selective import augrc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import entropy, expected_entropy, mixture_log_probs, mutual_information

__all__ = [
    "GATE",
    "GATES",
    "PAIRS",
    "RISKS",
    "Said",
    "of_draws",
    "of_moments",
    "score_task",
    "separation",
    "variance",
]

RISKS = (0.05, 0.1, 0.2)
"""Error rates allowed among the answers."""
GATE = 0.95
"""A gate declines the rows whose score is above this quantile of the validation rows."""
GATES = {
    "adamw": ("distance",),
    "ensemble": ("information",),
    "laplace_kronecker": ("information", "leverage"),
    "ivon_kronecker": ("information", "leverage"),
}
"""Predictor -> scores that gate it."""
PAIRS = {
    "ambiguous over clean": ("ambiguous", "clean"),
    "near over clean": ("near", "clean"),
    "far over clean": ("far", "clean"),
    "near over ambiguous": ("near", "ambiguous"),
    "far over ambiguous": ("far", "ambiguous"),
    "near over own": ("near", "test"),
    "far over own": ("far", "test"),
}
"""Pair of sets of rows -> which is to score higher, over which; ``test`` has the ambiguous rows of training."""
DRAWS = {"dropout": False, "laplace": True, "draws": True, "ensemble": False}
"""Predictors made of draws, and whether these are antithetic."""
GAUSSIAN = ("laplace_linearised", "laplace_kronecker", "ivon_linearised", "ivon_kronecker")
"""Predictors with Gaussian logits."""
ALONE = ("distance", "length", "ivon_left", "laplace_left")
"""Scores without a prediction."""
CONFIDENT = 0.9
Array = np.ndarray


@dataclass(frozen=True)
class Said:
    """What one predictor says about some rows."""

    log_probs: Array
    """``(N, C)``."""
    scores: dict[str, Array]
    """Uncertainties ``(N,)`` by name."""


def of_mean(log_probs: Array) -> Said:
    """From log-probabilities ``(N, C)``."""
    return Said(log_probs, {"max_probability": -log_probs.max(-1), "entropy": entropy(log_probs)})


def of_draws(draws: Array, *, antithetic: bool) -> Said:
    """From log-probabilities of draws ``(S, N, C)``."""
    plain = of_mean(mixture_log_probs(draws))
    information = mutual_information(draws, antithetic=antithetic)
    more = {"expected_entropy": expected_entropy(draws), "information": information}
    return Said(plain.log_probs, plain.scores | more)


def of_moments(logits: Array, covariance: Array) -> Said:
    """From logits ``(N, C)`` and their covariance ``(N, C, C)``."""
    moments = softmax_moments(logits, covariance)
    plain = of_mean(moments.log_probs)
    more = {
        "expected_entropy": moments.expected_entropy,
        "information": moments.mutual_information,
        "logit_variance": variance(covariance),
    }
    return Said(plain.log_probs, plain.scores | more)


def variance(covariance: Array) -> Array:
    """Trace of covariances ``(N, C, C)`` of logits without the shift that all logits share, ``(N,)``."""
    return np.trace(covariance, axis1=1, axis2=2) - covariance.sum((1, 2)) / covariance.shape[1]


def score_task(
    tensors: Mapping[str, Tensor], splits: Sequence[str], tempered: Sequence[str] = ("adamw",)
) -> dict[str, dict[str, Any]]:
    """Every number of every predictor of one task and seed.

    Args:
        tensors: ``<predictor>.<split>`` as :mod:`benchmarks.classification_uq.arms` has them, with the ensemble's.
        splits: ``validation``, ``calibration``, ``clean``, ``ambiguous``, ``near``, ``far`` and perhaps ``shift``.
        tempered: Predictors that are there with a fitted temperature too.

    Returns:
        Predictor -> ``quality`` on the test mix, ``quality of`` its two sorts of rows, shares of ``confident`` answers
        by split, ``separation`` and ``abstention``; of scores without a prediction ``separation`` only.
    """
    tensors = dict(tensors)
    for name in [name for name in tensors if name.endswith(".clean")]:
        stem = name.removesuffix(".clean")
        tensors |= _test_rows(tensors, stem)
    every = {
        split: {k: v.double() for k, v in _by_predictor(tensors, split).items()}
        for split in (*splits, "test")
    }
    label = {split: tensors[f"label.{split}"].numpy() for split in every}
    said = {split: predictions(every[split]) for split in every}
    for name in tempered:
        fitted = fit_temperature(said["validation"][name].log_probs, label["validation"])
        for own in said.values():
            own[f"{name}_tempered"] = of_mean(temper(own[name].log_probs, float(fitted.temperature)))
    out: dict[str, dict[str, Any]] = {}
    for predictor in said["test"]:
        own = {split: said[split][predictor] for split in said}
        out[predictor] = {
            "quality": quality(own["test"].log_probs, label["test"]),
            "quality of": {s: quality(own[s].log_probs, label[s]) for s in ("clean", "ambiguous")},
            "confident": {s: _confident(x.log_probs) for s, x in own.items()},
            "separation": {
                name: separation({s: x.scores[name] for s, x in own.items()}) for name in own["test"].scores
            },
            "abstention": {str(risk): abstention(own, label, risk) for risk in RISKS},
        }
        for gate in GATES.get(predictor, ()):
            if gate not in own["test"].scores and gate not in every["test"]:
                continue
            scores = {
                s: own[s].scores[gate] if gate in own[s].scores else every[s][gate].numpy() for s in own
            }
            out[predictor][f"gated by {gate}"] = {
                str(risk): abstention(own, label, risk, scores) for risk in RISKS
            }
    for name in (name for name in ALONE if name in every["test"]):
        scores = {s: own[name].numpy() for s, own in every.items() if name in own}
        out[name] = {"separation": {name: separation(scores)}}
    return out


def _confident(log_probs: Array) -> float:
    """Share of rows whose likeliest class has at least ``CONFIDENT``."""
    return float((log_probs.max(-1) >= math.log(CONFIDENT)).mean())


def _test_rows(tensors: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """The test rows as they come in training, of one predictor."""
    found = {}
    for end in ("", ".covariance"):
        clean, ambiguous = (tensors.get(f"{stem}.{split}{end}") for split in ("clean", "ambiguous"))
        if clean is None or ambiguous is None:
            continue
        rows = 1 if clean.ndim == 3 and not end and stem in DRAWS else 0
        found[f"{stem}.test{end}"] = mixed(clean.movedim(rows, 0), ambiguous.movedim(rows, 0)).movedim(
            0, rows
        )
    return found


def _by_predictor(tensors: Mapping[str, Tensor], split: str) -> dict[str, Tensor]:
    """``<predictor>`` and ``<predictor>.covariance`` of a split."""
    found = {}
    for name, value in tensors.items():
        stem, own, *end = name.split(".")
        if own == split and stem != "label":
            found[".".join([stem, *end])] = value
    return found


def predictions(tensors: Mapping[str, Tensor]) -> dict[str, Said]:
    """What every predictor says about the rows of a split."""
    arrays = {name: value.numpy() for name, value in tensors.items()}
    found = {name: of_mean(arrays[name]) for name in ("adamw", "ivon") if name in arrays}
    found |= {name: of_draws(arrays[name], antithetic=a) for name, a in DRAWS.items() if name in arrays}
    for name in (name for name in GAUSSIAN if name in arrays):
        found[name] = of_moments(arrays[name], arrays[f"{name}.covariance"])
        alone = arrays.get(name.replace("kronecker", "leverage") + ".covariance")
        if name.endswith("kronecker") and alone is not None:
            found[name].scores["leverage"] = variance(alone)
    return found


def quality(log_probs: Array, label: Array) -> dict[str, float]:
    """As in posterior_quality, with AUGRC; on the test rows, one in four of them ambiguous."""
    correct = correctness(log_probs, label)
    return plain_quality(log_probs, label) | {"augrc": float(augrc(-np.exp(log_probs.max(-1)), correct))}


def separation(score: Mapping[str, Array]) -> dict[str, float]:
    """AUROC of every pair of sets that is there, and FPR95 of foreign rows over own ones."""
    found = {}
    for name, (high, low) in PAIRS.items():
        if high not in score or low not in score:
            continue
        both = np.concatenate([score[high], score[low]])
        positive = np.arange(len(both)) < len(score[high])
        found[name] = float(auroc(both, positive))
        if low == "test":
            found[f"{name}, FPR95"] = float(fpr_at_tpr(both, positive))
    return found


def abstention(
    said: Mapping[str, Said],
    label: Mapping[str, Array],
    risk: float,
    gate: Mapping[str, Array] | None = None,
) -> dict[str, float | None]:
    """Answer when the confidence reaches a threshold that keeps the risk: what comes of it on every set of rows.

    The threshold is Learn then Test on the calibration rows, with delta .1, over quantiles of the validation rows.

    Args:
        said: By split.
        label: Classes by split.
        risk: Error rate allowed among the answers.
        gate: Score by split; what is above its ``GATE`` quantile of the validation rows is declined as well.

    Returns:
        ``threshold``, and by split the share ``answered`` and the error rate ``risk`` of the answers; None without any.
    """
    limit = math.inf if gate is None else float(np.quantile(gate["validation"], GATE))

    def score(split: str) -> Array:
        doubt = 1 - np.exp(said[split].log_probs.max(-1))
        return doubt if gate is None else np.where(np.asarray(gate[split]) > limit, 2.0, doubt)

    wrong = {split: 1 - correctness(said[split].log_probs, label[split]) for split in label}
    grid = threshold_grid(score("validation"))
    found = controlled_threshold(
        score("calibration"), np.ceil(wrong["calibration"]), grid[grid <= 1], risk=risk
    )
    out: dict[str, float | None] = {"threshold": found.threshold if found.answered else None}
    for split in (split for split in said if split not in ("validation", "calibration")):
        answered = score(split) <= found.threshold
        out[f"answered {split}"] = float(answered.mean())
        if split in ("test", "clean", "ambiguous", "shift"):
            out[f"risk {split}"] = float(wrong[split][answered].mean()) if answered.any() else None
    return out
