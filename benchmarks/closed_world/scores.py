"""From what a model says about every question to numbers.

Three scores of uncertainty, higher for less certain: minus the highest log-probability, entropy, and for models of
several draws the mutual information of answer and weights (epistemic), beside the expected entropy (aleatoric). Entropy
and information are also multiplied with the entropy of the base model without an adapter: an adapter's posterior knows
what the adapter was taught, and only the base model knows what it knew before.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.closed_world.worlds import KNOWN, Questions
from vlora.eval.metrics.calibration import calibration, calibration_floor
from vlora.eval.metrics.linearised import softmax_moments
from vlora.eval.metrics.proper_scores import correctness, negative_log_likelihood
from vlora.eval.metrics.ranking import auroc
from vlora.eval.metrics.risk_control import controlled_threshold, likely_start, threshold_grid
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import entropy, expected_entropy, mixture_log_probs, mutual_information

__all__ = ["CHOSEN", "DETECTION", "RISK", "Said", "detection", "nll_of", "recall", "score", "tempered"]

RISK, DELTA = 0.05, 0.1
CONFIDENT = 0.5
GATE = 0.95
"""Share of known people within the limit of a second score."""
GATES = ("mutual_information", "entropy_base", "mutual_information_base")
CHOSEN = ", chosen start"
"""Ending of the rules whose first test is chosen on the rows for fits, as ``vlora calibrate`` does; the others share
delta between five starts."""
NEVER = 1e3
"""Uncertainty above all others."""
DETECTION = {
    "unknown vs seen": (("unknown",), KNOWN),
    "unknown vs clean": (("unknown",), ("clean",)),
    "unknown vs ambiguous": (("unknown",), ("ambiguous",)),
    "unknown vs base": (("unknown",), ("base",)),
    "near miss vs seen": (("near_miss",), KNOWN),
    "near miss vs ambiguous": (("near_miss",), ("ambiguous",)),
    "ambiguous vs clean": (("ambiguous",), ("clean",)),
}
"""Question -> groups that should be less certain, groups that should be more certain."""


@dataclass(frozen=True)
class Said:
    """What a predictor says about N questions.

    Attributes:
        log_probs: ``(N, K)``, of the mixture where there are draws.
        aleatoric: Expected entropy in nats, ``(N,)``; None without draws.
        epistemic: Mutual information in nats, ``(N,)``; None without draws.
    """

    log_probs: np.ndarray
    aleatoric: np.ndarray | None = None
    epistemic: np.ndarray | None = None

    @classmethod
    def of_draws(cls, draws: Any, *, antithetic: bool) -> "Said":
        """From log-probabilities ``(S, N, K)``."""
        draws = np.asarray(draws, dtype=np.float64)
        information = mutual_information(draws, antithetic=antithetic)
        return cls(mixture_log_probs(draws), expected_entropy(draws), information)

    @classmethod
    def of_covariance(cls, mean: Any, covariance: Any) -> "Said":
        """From Gaussian logits: log-probabilities at the mean ``(N, K)`` and covariances ``(N, K, K)``."""
        found = softmax_moments(mean, covariance, num_pairs=64)
        return cls(found.log_probs, found.expected_entropy, found.mutual_information)

    def uncertainty(self) -> dict[str, np.ndarray]:
        """Scores of uncertainty by name."""
        scores = {"max_probability": -self.log_probs.max(-1), "entropy": entropy(self.log_probs)}
        if self.epistemic is not None and self.aleatoric is not None:
            scores |= {"mutual_information": self.epistemic, "expected_entropy": self.aleatoric}
        return scores


def tempered(said: Said, asked: Questions) -> tuple[Said, float]:
    """With one temperature on the log-probabilities, fitted on the rows for fits; and that temperature."""
    rows = [i for i, part in enumerate(asked.part) if part == "fit"]
    label = [asked.rows[i]["answer"] for i in rows]
    temperature = float(fit_temperature(said.log_probs[rows], label).temperature)
    return Said(temper(said.log_probs, temperature)), temperature


def nll_of(said: Said, asked: Questions, part: str, groups: Sequence[str] = KNOWN) -> float:
    """NLL in nats on the labelled rows of a part."""
    rows = [
        i for i, (p, g) in enumerate(zip(asked.part, asked.group, strict=True)) if p == part and g in groups
    ]
    return float(negative_log_likelihood(said.log_probs[rows], [asked.rows[i]["answer"] for i in rows]).mean)


def recall(said: Said, asked: Questions) -> dict[str, float]:
    """Share of test facts whose most probable answer is the one taught most often, by A, B and base."""
    right: dict[str, list[bool]] = {}
    for best, row, part in zip(said.log_probs.argmax(-1), asked.rows, asked.part, strict=True):
        if part == "test" and row["answer_probs"] is not None:
            right.setdefault(row["group"].partition("_")[0], []).append(
                best == np.argmax(row["answer_probs"])
            )
    return {name: float(np.mean(values)) for name, values in right.items()}


def score(said: Said, asked: Questions, base: Said) -> dict[str, Any]:
    """Numbers of one predictor on the test rows; thresholds come from the rows for fits and for thresholds.

    Args:
        said: What the predictor says.
        asked: The questions.
        base: What the model says to them without an adapter.
    """
    group, part = np.array(asked.group), np.array(asked.part)
    label = np.array([-1 if row["answer"] is None else row["answer"] for row in asked.rows])
    scores = said.uncertainty()
    ignorance = entropy(base.log_probs)
    for key in ("entropy", "mutual_information"):
        if key in scores:
            scores[f"{key}_base"] = scores[key] * ignorance
    test = part == "test"
    return {
        "groups": {
            name: _group(said, label, test & (group == name), scores) for name in dict.fromkeys(group)
        },
        "seen": _group(said, label, test & np.isin(group, KNOWN), scores),
        "auroc": detection(scores, asked),
        "abstention": {
            f"{key}{ending}": _abstention(value, said, label, group, part, chosen=bool(ending))
            for key, value in (
                {"max_probability": scores["max_probability"]} | _gated(scores, label, part)
            ).items()
            for ending in ("", CHOSEN)
        },
    }


def detection(scores: Mapping[str, np.ndarray], asked: Questions) -> dict[str, dict[str, float]]:
    """AUROC of some scores of uncertainty on the test rows: question -> score -> number."""
    group, test = np.array(asked.group), np.array(asked.part) == "test"
    return {
        name: {key: _auroc(value, test, group, *sides) for key, value in scores.items()}
        for name, sides in DETECTION.items()
    }


def _group(
    said: Said, label: np.ndarray, rows: np.ndarray, scores: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Means over some rows, and what needs right answers where there are any."""
    log_probs, confidence = said.log_probs[rows], np.exp(said.log_probs[rows].max(-1))
    found = {
        f"mean_{key}": float(value[rows].mean()) for key, value in scores.items() if key != "max_probability"
    }
    found |= {"confident": float((confidence > CONFIDENT).mean()), "n": int(rows.sum())}
    if (label[rows] >= 0).all():
        correct = correctness(log_probs, label[rows])
        found |= {
            "accuracy": float(correct.mean()),
            "nll": float(negative_log_likelihood(log_probs, label[rows]).mean),
            "ece": float(calibration(confidence, correct).ece),
            "ece_floor": float(calibration_floor(confidence, num_simulations=200).mean),
        }
    return found


def _auroc(
    value: np.ndarray, test: np.ndarray, group: np.ndarray, high: Sequence[str], low: Sequence[str]
) -> float:
    above, below = value[test & np.isin(group, high)], value[test & np.isin(group, low)]
    return float(auroc(np.concatenate([above, below]), np.arange(len(above) + len(below)) < len(above)))


def _gated(scores: Mapping[str, np.ndarray], label: np.ndarray, part: np.ndarray) -> dict[str, np.ndarray]:
    """The highest probability as a score, but no answer above the 95 % quantile of known people's other score."""
    known, found = (label >= 0) & (part == "fit"), {}
    for key in GATES:
        if key in scores:
            allowed = scores[key] <= np.quantile(scores[key][known], GATE)
            found[f"max_probability, {key}"] = np.where(allowed, scores["max_probability"], NEVER)
    return found


def _abstention(
    value: np.ndarray, said: Said, label: np.ndarray, group: np.ndarray, part: np.ndarray, *, chosen: bool
) -> dict[str, float]:
    """A threshold that keeps the error rate at ``RISK``, and what it lets through among the test rows."""
    wrong = np.zeros(len(label))
    known = label >= 0
    wrong[known] = correctness(said.log_probs[known], label[known]) < 0.5
    fitting, deciding, test = (known & (part == "fit"), known & (part == "threshold"), part == "test")
    grid = threshold_grid(value[fitting])
    start = None
    if chosen:
        start = likely_start(value[fitting], wrong[fitting], grid, num_items=int(deciding.sum()), risk=RISK)
    rule = controlled_threshold(value[deciding], wrong[deciding], grid, risk=RISK, delta=DELTA, start=start)
    answered = value <= rule.threshold
    kept = answered & test & known
    found = {"coverage": float(answered[test & known].mean()), "answered_wrong": float(wrong[kept].sum())}
    found["risk"] = float(wrong[kept].mean()) if kept.any() else math.nan
    for name in ("unknown", "near_miss"):
        found[f"{name}_answered"] = float(answered[test & (group == name)].mean())
    return found
