"""What is said about one row of classes or choices, and how it follows from what was decided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.decide import Decided
from vlora.eval.predictive import Predictive
from vlora.posterior.decisions import Decisions

__all__ = ["Prediction", "predictions_of"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is said about one row."""

    item: str
    """The row's ``id``, else its number."""
    answer: str | None
    """The most probable class or choice; None for "don't know"."""
    dont_know: bool
    """Whether the threshold says not to answer."""
    best: int
    """Index of the most probable choice, whether it is answered or not."""
    confidence: float
    """Its probability, at the fitted temperature."""
    probabilities: tuple[float, ...]
    """Of all choices, at the fitted temperature."""
    entropy: float
    """Predictive entropy in nats, before the temperature, as its parts below."""
    epistemic: float | None
    """Mutual information of answer and parameters in nats: high where more data would help; None without draws."""
    epistemic_share: float | None
    """Its part of the entropy, in [0, 1]: near 0 the question is ambiguous, near 1 the model has not learnt it."""
    prediction_set: tuple[str, ...] | None
    """Choices that hold the right one with probability ``1 - alpha``; None where no set was fitted."""
    reason: str | None
    """Why the rules say "don't know", also where it is answered nevertheless; None where they answer."""


def predictions_of(
    items: Sequence[str],
    decisions: Decisions,
    decided: Decided,
    found: Predictive,
    names: Sequence[Sequence[str]],
    *,
    kind: tuple[str, float] | None,
    answer_all: bool,
) -> list[Prediction]:
    """Predictions of all rows, in their order; padding behind a row's own choices is cut off.

    Args:
        items: Names of the rows.
        decisions: What was fitted.
        decided: What follows from it.
        found: What the predictor says.
        names: Of the choices of every row.
        kind: Method and alpha of the prediction set; None for none.
        answer_all: Answer also where the rules say "don't know".
    """
    entropy, columns = found.entropy, {"epistemic": found.mutual_information, "share": found.epistemic_share}
    predictions = []
    for row, (item, own) in enumerate(zip(items, names, strict=True)):
        best, silent = int(decided.answer[row]), not decided.answered[row] and not answer_all
        kept = None if kind is None else np.flatnonzero(decided.sets[kind][row][: len(own)]).tolist()
        parts = {name: None if column is None else float(column[row]) for name, column in columns.items()}
        predictions.append(
            Prediction(
                item=item,
                answer=None if silent else own[best],
                dont_know=bool(silent),
                best=best,
                confidence=float(decided.confidence[row]),
                probabilities=tuple(np.exp(decided.log_probs[row][: len(own)]).tolist()),
                entropy=float(entropy[row]),
                epistemic=parts["epistemic"],
                epistemic_share=parts["share"],
                prediction_set=None if kept is None else tuple(own[index] for index in kept),
                reason=_reason(row, decisions, decided),
            )
        )
    return predictions


def _reason(row: int, decisions: Decisions, decided: Decided) -> str | None:
    """Why the rules do not answer, by the gate first; None where they answer."""
    gate, rule = decisions.gate, decisions.abstention
    if gate is not None and decided.gated[row]:
        return f"{gate.score} {decided.scores[gate.score][row]:.4g} is above the gate at {gate.threshold:.4g}"
    if rule is None or decided.answered[row]:
        return None
    if np.isinf(rule.threshold):
        return f"no threshold on {rule.score} could be shown to keep the error rate at {rule.risk:g}"
    if rule.score == "max_probability":
        least = 1 - rule.threshold
        return f"confidence {decided.confidence[row]:.4g} is below the threshold at {least:.4g}"
    return (
        f"{rule.score} {decided.scores[rule.score][row]:.4g} is above the threshold at {rule.threshold:.4g}"
    )
