"""Scores that a rule for "don't know" may hold against a threshold or a gate, from a predictor's probabilities.

They are those by which ``vlora eval`` ranks items (:meth:`vlora.eval.predictions.ChoiceTable.scores`), higher for less
certain, before the logit temperature; only ``max_probability``, which is 1 minus the confidence, is at it.
``entropy_times_base`` and ``mutual_information_times_base`` are multiplied by the entropy of the base model without an
adapter: what was known before the adapter, only the base model can tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlora.errors import ConfigError
from vlora.eval.metrics.arrays import Array
from vlora.posterior.decisions import LINEARISED, SCORES, Decisions

__all__ = ["BASE", "SHARE", "check_scores", "needs_base", "rule_scores", "uncertainty"]

BASE = "_times_base"
"""Ending of the scores that take the base model's entropy."""
SHARE = "share_left"
"""The share of the prior variance that the data left, of the predictor ``leading`` alone."""
_SPLIT = ("expected_entropy", "mutual_information", "mutual_information_times_base")


def uncertainty(log_probs: Any) -> Array:
    """1 - confidence, without cancellation near certainty: the others' probabilities are summed.

    Args:
        log_probs: Logits or log-probabilities, ``(N, K)``, padded with ``-inf``.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    probs = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    probs /= probs.sum(axis=1, keepdims=True)
    probs[np.arange(len(probs)), log_probs.argmax(axis=1)] = 0.0
    return probs.sum(axis=1)


def rule_scores(decisions: Decisions) -> list[str]:
    """Names of the scores that decisions compare."""
    rules = [decisions.abstention, decisions.gate]
    return list(dict.fromkeys(rule.score for rule in rules if rule is not None))


def needs_base(names: Sequence[str]) -> bool:
    """Whether any of these scores takes the base model's entropy."""
    return any(name.endswith(BASE) for name in names)


def check_scores(names: Mapping[str, str], predictor: str, task: str, num_samples: int) -> None:
    """Refuse scores that cannot be had, before anything is scored.

    Args:
        names: Setting -> name of its score.
        predictor: Whose probabilities decide.
        task: Kind of task.
        num_samples: Draws, for the predictor ``samples``.

    Raises:
        ConfigError: There is no such score, or this predictor or task does not have it.
    """
    known = ["max_probability", "entropy", "entropy_times_base"]
    if predictor in LINEARISED:
        known += [*_SPLIT, "logit_variance", *([SHARE] if LINEARISED[predictor] == "leading" else [])]
    elif predictor == "samples" and num_samples > 1:
        known += [*_SPLIT, "variation_ratio"]
    for setting, name in names.items():
        if name not in SCORES:
            raise ConfigError(f"{setting} must be one of {', '.join(SCORES)}, got {name}")
        if name not in known:
            raise ConfigError(
                f"{setting}: {name} cannot be had: the predictor {predictor} with {num_samples} draws has "
                f"{', '.join(known)}"
            )
        if needs_base([name]) and task == "sequence_classification":
            raise ConfigError(
                f"{setting}: {name} cannot be had: the base model of a classifier has no trained head, so its entropy "
                "says nothing; leave _times_base out"
            )
