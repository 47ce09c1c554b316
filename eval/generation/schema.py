"""The format of ``results.json`` of answers (``kind: generation``) as types, and the JSON Schema made from them.

``results.schema.json`` beside this file is that schema; a test keeps the two equal and validates real results against
both. ``python -m vlora.eval.generation.schema`` prints it. It is open to keys that it does not know, as that of
:mod:`vlora.eval.results_schema`; programs tell the two kinds of results apart by ``kind``, which only this one has.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlora.eval.schema_parts import Baseline, Cost, Measured, Model, Strict, open_schema

__all__ = ["SCHEMA_FILE", "AnswerResults", "answers_schema"]

SCHEMA_FILE = Path(__file__).parent / "results.schema.json"
"""The published schema."""


class Answers(Strict):
    """How right one model's answers to one group are."""

    model: str
    group: str
    questions: int
    ungraded: int = Field(description="answers that the judge could not grade; not in the metrics")
    judge_failures: int = Field(description="pairs of texts without a verdict")
    metrics: dict[str, Measured] = Field(
        description="correct, not_attempted, accuracy_given_attempted, f_score, penalised_score; empty without grades"
    )


class EstimatorRow(Strict):
    """How well one uncertainty tells the wrong answers of one group."""

    model: str
    estimator: str
    family: Literal["baseline", "answer", "samples", "posterior"]
    group: str
    missing: int = Field(description="answers without this uncertainty; they rank as the least certain ones")
    metrics: dict[str, Measured] = Field(
        description="auroc, aurc, accuracy_at_80, aupr, prr; with draw_error where draws speak of the judged answer"
    )


class ConfidenceRow(Strict):
    """How well one confidence fits the share of right answers."""

    model: str
    confidence: str = Field(description="with +temperature where fitted on the validation questions")
    group: str
    temperature: float = Field(description="T of p^(1/T); 1 as it is")
    metrics: dict[str, Measured] = Field(
        description="answered, penalised_score, brier, ece_15_equal_width, ece_floor; of draws with draw_error"
    )


class DetectionRow(Strict):
    """How well one uncertainty tells two sets of groups apart."""

    model: str
    estimator: str
    family: Literal["baseline", "answer", "samples", "posterior"]
    question: str
    auroc: Measured


class Mistake(Strict):
    """A wrong answer that the model found probable."""

    model: str
    item: str
    group: str
    question: str
    said: str
    references: list[str]
    answerable: bool | None = Field(None, description="whether the question has an answer")
    confidence: float
    disagreement: float | None = Field(description="share of sampled answers of another meaning")
    entropy: float | None = Field(
        None, description="over meanings, in nats; counted where there are no draws to score under"
    )
    mutual_information: float | None = Field(None, description="of meaning and draw, in nats")


class Bin(Strict):
    """One occupied bin of a reliability diagram."""

    lower: float
    upper: float
    confidence: float = Field(description="mean")
    accuracy: float
    low: float = Field(description="Wilson interval of the accuracy, 95 %")
    high: float
    n: int


class Reliability(Strict):
    """Accuracy against confidence."""

    model: str
    confidence: str = Field(description="with +temperature where fitted on the validation questions")
    group: str
    bins: list[Bin]


class Threshold(Strict):
    """What a threshold that was fitted on the validation questions lets through among the attempts."""

    at: float | None = Field(description="answered up to this score; null answers nothing")
    fitted_on: int = Field(description="attempts that the threshold was fitted on")
    answered: int
    wrong: int
    coverage: float
    promised: float = Field(description="error rate that was to be kept")
    risk: float | None = Field(description="wrong among the answered; null when nothing is")
    low: float = Field(description="exact 95 % interval of the risk")
    high: float
    holds: bool = Field(description="whether the interval allows for what was promised")


class Curve(Strict):
    """Risk against coverage over the attempts at all test questions."""

    model: str
    estimator: str
    group: str
    coverage: list[float]
    risk: list[float]
    threshold: Threshold | None = Field(description="null without enough validation questions")


class Points(Strict):
    """Entropy over meanings and its epistemic part, of some questions of a group, scored, in nats."""

    model: str
    group: str
    entropy: list[float]
    mutual_information: list[float]
    shown: int
    n: int


class Figures(Strict):
    """The numbers behind the plots."""

    reliability: list[Reliability]
    risk_coverage: list[Curve]
    entropy_mi: list[Points]


class AnswerResults(Strict):
    """``results.json`` of ``vlora eval`` with ``kind: generation``, format 1."""

    format: Literal[1]
    kind: Literal["generation"]
    task: str
    task_sha256: str = Field(description="hash of the task file and of the examples in its prompts")
    task_file: dict[str, Any] = Field(description="the task file as read")
    shots: list[str] = Field(description="solved examples in front of the prompts")
    created: str
    num_samples: int = Field(description="posterior draws S")
    num_answers: int = Field(description="answers per draw M")
    antithetic: bool = Field(description="draws 2j and 2j+1 mirror each other")
    clusters_by: Literal["token_f1", "text", "entailment"] = Field(description="how meanings were told apart")
    num_bootstrap: int
    seed: int
    models: list[Model]
    answers: list[Answers]
    estimators: list[EstimatorRow]
    confidences: list[ConfidenceRow]
    detection: list[DetectionRow]
    baselines: list[Baseline] | None = None
    mistakes: list[Mistake]
    figures: Figures | None = None
    truncated: dict[str, int] | None = Field(None, description="questions whose prompts lost tokens, by set")
    repeated: int | None = Field(None, description="questions that repeat an earlier one of their set")
    cost: Cost
    settings: dict[str, Any]
    versions: dict[str, Any]
    hardware: dict[str, Any]


def answers_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json`` of answers, open to keys that it does not know."""
    return open_schema(AnswerResults)


if __name__ == "__main__":
    print(json.dumps(answers_schema(), indent=1))
