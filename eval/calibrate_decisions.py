"""The part of ``vlora calibrate`` that fits decisions on their rows and verifies them on others.

Sets and the threshold are fitted on the rows for thresholds. Where the tests of the threshold begin, its grid where its
score has no scale of its own, and the gate come from the rows that width and temperatures were fitted on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vlora.config import to_plain
from vlora.data import RowFormat
from vlora.eval.calibrate_parts import Parts
from vlora.eval.config import CalibrationConfig
from vlora.eval.decide import ABSTENTION_GRID, above, fit_gate, fit_rules, verify
from vlora.eval.decision_scores import SHARE, needs_base
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.risk_control import items_for_risk, likely_start, threshold_grid
from vlora.eval.metrics.temperature import temper
from vlora.eval.predictive import base_entropy, decision_scores, predictive
from vlora.eval.prepare import Evaluation
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior
from vlora.posterior.decisions import Abstention, Conformal, Decisions, Gate

__all__ = ["BaseEntropies", "base_entropies", "fit_and_verify"]

logger = logging.getLogger(__name__)


BaseEntropies = tuple[Array | None, Array | None]
"""Entropy of the base model on the rows of widths, and on all others; None where no rule needs it."""


def base_entropies(parts: Parts, tick: Callable[[int], object]) -> BaseEntropies:
    """What the base model knew before any adapter, where a rule compares a score that needs it."""
    if parts.others is None or not needs_base(list(parts.fit.config.calibration.rule_scores.values())):
        return None, None
    fit, others = (base_entropy(part.scorer, part.host, tick) for part in (parts.fit, parts.others))
    return fit, others


def fit_and_verify(
    parts: Parts,
    model: nn.Module,
    posterior: Posterior,
    *,
    predictor: str,
    temperature: float,
    base: BaseEntropies,
    name: str,
    tick: Callable[[int], object],
) -> dict[str, Any]:
    """The ``decisions`` section of one adapter.

    Args:
        parts: Rows for widths, for thresholds, and every set to verify on.
        model: The model that wears the adapter.
        posterior: The adapter at its fitted width, or under its fitted prior.
        predictor: Whose probabilities decide: ``samples``, ``mean``, ``linearised``, ``kronecker`` or ``leading``.
        temperature: Logit temperature of this predictor, fitted on other rows.
        base: From :func:`base_entropies`.
        name: Name of the adapter, for messages.
        tick: Called with the number of rows done.

    Raises:
        DataError: The model gives NaN.
    """
    evaluation, num_threshold = parts.others, len(parts.threshold)
    assert evaluation is not None
    config = evaluation.config
    draws = config.num_samples if predictor == "samples" else 0
    antithetic = config.antithetic and draws > 0
    settings = {"num_samples": draws, "antithetic": antithetic, "scoring": config.scoring, "tick": tick}
    settings |= {"share": SHARE in config.calibration.rule_scores.values()}
    found = predictive(evaluation.scorer, model, posterior, predictor, **settings)
    scores = decision_scores(found, temperature=temperature, base=base[1])
    label = [item.example.label for item in evaluation.items]
    on_fit = predictive(parts.fit.scorer, model, posterior, predictor, **settings)
    known = decision_scores(on_fit, temperature=temperature, base=base[0])
    right = on_fit.log_probs.argmax(axis=1) == [item.example.label for item in parts.fit.items]
    held = {key: value[:num_threshold] for key, value in scores.items()}
    tempered = temper(found.log_probs[:num_threshold], temperature)
    sets, abstention, gate = _fit(config.calibration, tempered, label[:num_threshold], known, right, held)
    decisions = Decisions(
        task=config.task,
        predictor=predictor,
        num_samples=draws,
        antithetic=antithetic,
        temperature=temperature,
        covariance=posterior.covariance if draws else "independent",
        conformal=sets,
        abstention=abstention,
        gate=gate,
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
        own = {key: value[rows] for key, value in scores.items()}
        verified.append(verify(decisions, found.log_probs[rows], [label[row] for row in rows], group, own))
    return replace(decisions, verified=verified).to_json()


def _fit(
    rules: CalibrationConfig,
    log_probs: Array,
    label: Sequence[int | None],
    known: Mapping[str, Array],
    right: NDArray[np.bool_],
    held: Mapping[str, Array],
) -> tuple[tuple[Conformal, ...], Abstention, Gate | None]:
    """Sets and threshold on the scores of the rows for thresholds; gate, grid and start on those of the others."""
    gate = rules.gate and fit_gate(rules.gate.score, known[rules.gate.score], rules.gate.quantile)
    grid = ABSTENTION_GRID
    if rules.score != "max_probability":
        grid = threshold_grid(known[rules.score], rules.num_thresholds)
    before, values = (
        np.where(above(gate, scores, len(scores[rules.score])), np.inf, scores[rules.score])
        for scores in (known, held)
    )
    start = likely_start(before, ~right, grid, num_items=len(values), risk=rules.risk)
    limits = {"alphas": rules.alpha, "risk": rules.risk, "delta": rules.delta}
    chosen = {"score": rules.score, "values": values, "grid": grid, "start": start}
    sets, abstention = fit_rules(log_probs, label, **limits, **chosen)
    return sets, abstention, gate


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
            '%s: no threshold on %s could be shown to keep the error rate at %g, so everything is "don\'t know"; it '
            "takes at least %d right answers in a row among the most confident ones, or a larger calibration.risk",
            *(name, rule.score, rule.risk, items_for_risk(rule.risk, rule.delta)),
        )
