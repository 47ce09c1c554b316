"""The part of ``vlora calibrate`` that fits decisions on their rows and verifies them on others."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from torch import nn

from vlora.config import to_plain
from vlora.data import RowFormat
from vlora.eval.decide import fit_rules, verify
from vlora.eval.metrics.risk_control import items_for_risk
from vlora.eval.metrics.temperature import temper
from vlora.eval.predictive import predictive
from vlora.eval.prepare import Evaluation
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior
from vlora.posterior.decisions import Decisions

__all__ = ["fit_and_verify"]

logger = logging.getLogger(__name__)


def fit_and_verify(
    evaluation: Evaluation,
    num_threshold: int,
    model: nn.Module,
    posterior: Posterior,
    *,
    predictor: str,
    temperature: float,
    name: str,
    tick: Callable[[int], object],
) -> dict[str, Any]:
    """The ``decisions`` section of one adapter.

    Args:
        evaluation: Rows to fit on, then every set to verify on.
        num_threshold: How many of them are to fit on.
        model: The model that wears the adapter.
        posterior: The adapter at its fitted width, or under its fitted prior.
        predictor: Whose probabilities decide: ``samples``, ``mean``, ``linearised``, ``kronecker`` or ``leading``.
        temperature: Logit temperature of this predictor, fitted on other rows.
        name: Name of the adapter, for messages.
        tick: Called with the number of rows done.

    Raises:
        DataError: The model gives NaN.
    """
    config = evaluation.config
    draws = config.num_samples if predictor == "samples" else 0
    antithetic = config.antithetic and draws > 0
    settings = {"num_samples": draws, "antithetic": antithetic, "scoring": config.scoring, "tick": tick}
    log_probs = predictive(evaluation.scorer, model, posterior, predictor, **settings).log_probs
    label = [item.example.label for item in evaluation.items]
    rules = config.calibration
    sets, abstention = fit_rules(
        temper(log_probs[:num_threshold], temperature),
        label[:num_threshold],
        alphas=rules.alpha,
        risk=rules.risk,
        delta=rules.delta,
    )
    decisions = Decisions(
        task=config.task,
        predictor=predictor,
        num_samples=draws,
        antithetic=antithetic,
        temperature=temperature,
        conformal=sets,
        abstention=abstention,
        row_format=_row_format(evaluation),
        **_task(evaluation),
        dtype=config.dtype,
        quantization=config.quantization,
    )
    _warn(decisions, name)
    groups = [_set_of(item) for item in evaluation.items]
    verified = []
    for group in dict.fromkeys(groups[num_threshold:]):
        rows = [row for row in range(num_threshold, len(groups)) if groups[row] == group]
        verified.append(verify(decisions, log_probs[rows], [label[row] for row in rows], group))
    return replace(decisions, verified=verified).to_json()


def _set_of(item: Any) -> str:
    """Name of the set a row is verified under: ``test``, or the out-of-distribution set's own."""
    return item.example.group if item.split == "ood" else item.split


def _row_format(evaluation: Evaluation) -> dict[str, Any]:
    """How rows become tokens, with the class names as resolved."""
    plain = to_plain(evaluation.config.data)
    chosen = {field.name: plain[field.name] for field in fields(RowFormat)}
    return {**chosen, "labels": list(evaluation.classes) if evaluation.classes else chosen["labels"]}


def _task(evaluation: Evaluation) -> dict[str, Any]:
    """The task file that made the rows, so that predictions read theirs by it."""
    data = evaluation.config.data
    if data.task_file is None:
        return {}
    return {"task_file": data.task_file, "task_sha256": TaskReader(data.task_file, data.fewshot).sha256}


def _warn(decisions: Decisions, name: str) -> None:
    """Say which promises the held-out rows were too few for."""
    loose = sorted({rule.alpha for rule in decisions.conformal if np.isinf(rule.threshold)})
    if loose:
        logger.warning(
            "%s: %d rows are too few for prediction sets that miss at most %s; those sets hold every choice",
            *(name, decisions.conformal[0].n, ", ".join(f"{alpha:g}" for alpha in loose)),
        )
    rule = decisions.abstention
    if rule is not None and np.isinf(rule.threshold):
        logger.warning(
            '%s: no threshold could be shown to keep the error rate at %g, so everything is "don\'t know"; it takes '
            "at least %d right answers in a row among the most confident ones, or a larger calibration.risk",
            *(name, rule.risk, items_for_risk(rule.risk, rule.delta / 5)),
        )
