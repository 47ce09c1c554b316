"""The format of ``results.json`` of choices and texts as types, and the JSON Schema that is made from them.

``results.schema.json`` beside this file is that schema, for programs that read results without vlora; a test keeps
the two equal and validates real results against them. ``python -m vlora.eval.results_schema`` prints it. It allows
keys that it does not know, since a reader should ignore them; :class:`Results` itself does not, so that nothing is
written that is not described. Results of answers have a schema of their own, :mod:`vlora.eval.generation.schema`.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vlora.eval.schema_parts import Baseline, Cost, Measured, Model, Strict, open_schema

__all__ = ["SCHEMA_FILE", "Results", "results_schema"]

SCHEMA_FILE = Path(__file__).parent / "results.schema.json"
"""The published schema."""


class Row(Strict):
    """Metrics of one predictor of one model on one group."""

    model: str
    predictor: str
    group: str
    metrics: dict[str, Measured]


class Detection(Strict):
    """How well a score tells two sets of groups apart."""

    model: str
    predictor: str
    score: str
    name: str
    positive: list[str]
    negative: list[str]
    auroc: Measured
    fpr95: Measured
    aupr: Measured


class WrongAnswers(Strict):
    """How well a score finds a predictor's wrong answers among all labelled test rows; of texts, its wrong tokens."""

    model: str
    predictor: str
    score: str
    auroc: Measured
    aurc: Measured
    prr: Measured = Field(description="prediction-rejection ratio")
    auroc_gain: Measured | None = Field(description="auroc minus that of max_probability, paired")


class Comparison(Strict):
    """A paired difference, metric(a) - metric(b)."""

    a: str
    b: str
    predictor: str
    predictor_a: str
    predictor_b: str
    group: str
    metric: str
    difference: Measured


class Coverage(Strict):
    """How often prediction sets hold the right choice, with an exact 95 % interval."""

    method: Literal["lac", "aps"]
    alpha: float = Field(description="share that may be missed")
    coverage: float
    low: float
    high: float
    expected_low: float = Field(description="95 % of thresholds from as many rows cover at least this")
    expected_high: float
    mean_size: float
    empty_share: float
    holds: bool = Field(description="false where the interval contradicts the promise")


class Risk(Strict):
    """Error rate of what is answered, with an exact 95 % interval."""

    answered: int
    wrong: int
    coverage: float
    promised: float
    risk: float | None
    low: float
    high: float
    holds: bool


class Unanswerable(Strict):
    """Rows without a right answer: how many are answered."""

    rows: int
    answered: int
    mean_set_size: dict[str, float]


class Promise(Strict):
    """Prediction sets and abstention fitted on validation rows, on one reported set."""

    model: str
    predictor: str
    fitted_on: int
    set: str
    rows: int
    labelled: int
    accuracy: float | None = None
    nll: float | None = None
    ece_15_equal_width: float | None = None
    ece_floor: float | None = None
    conformal: list[Coverage] | None = None
    abstention: Risk | None = None
    unanswerable: Unanswerable | None = None


class Bin(Strict):
    """An occupied bin of a reliability diagram."""

    lower: float
    upper: float
    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


class Reliability(Strict):
    """One reliability diagram."""

    model: str
    predictor: str
    group: str
    bins: list[Bin]


class Curve(Strict):
    """One risk-coverage curve."""

    model: str
    predictor: str
    group: str
    coverage: list[float]
    risk: list[float]


class Points(Strict):
    """Entropy and mutual information of a subsample of a group."""

    model: str
    predictor: str
    group: str
    entropy: list[float]
    mutual_information: list[float]
    shown: int
    n: int


class Answer(Strict):
    """One answer for people to read."""

    model: str
    predictor: str
    group: str
    item: str
    text: str
    choices: list[str] | None
    label: int | None
    prediction: int
    confidence: float
    entropy: float
    mutual_information: float | None


class Figures(Strict):
    """The numbers behind the plots."""

    reliability: list[Reliability]
    risk_coverage: list[Curve]
    entropy_mi: list[Points]
    mistakes: list[Answer]
    unanswerable: list[Answer]


class Results(Strict):
    """``results.json`` of ``vlora eval``, format 1."""

    format: Literal[1]
    task: str
    created: str
    num_samples: int = Field(description="posterior draws S")
    antithetic: bool = Field(description="draws 2j and 2j+1 mirror each other")
    num_bootstrap: int
    seed: int
    models: list[Model]
    rows: list[Row]
    wrong_answers: list[WrongAnswers] | None = None
    detection: list[Detection]
    baselines: list[Baseline] | None = None
    comparisons: list[Comparison]
    promises: list[Promise] | None = None
    figures: Figures
    cost: Cost | None = None
    settings: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    hardware: dict[str, Any] | None = None
    truncated: dict[str, int] | None = Field(
        None, description="items that lost tokens to data.max_length, by set"
    )
    repeated: int | None = Field(None, description="rows that repeat an earlier row of their set")


def results_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json``, open to keys that it does not know."""
    return open_schema(Results)


if __name__ == "__main__":
    print(json.dumps(results_schema(), indent=1))
