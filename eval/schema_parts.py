"""What the published schemas of results have in common: numbers with intervals, models, costs, and openness."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Baseline",
    "Cost",
    "EstimatorCost",
    "LinearisedAgreement",
    "Measured",
    "Model",
    "Strict",
    "open_schema",
]


class Strict(BaseModel):
    """A part that holds what is described and nothing else."""

    model_config = ConfigDict(extra="forbid")


class Measured(Strict):
    """A number with its 95 % interval; null stands for what is not defined."""

    value: float | None
    low: float | None = Field(description="2.5 % quantile of the bootstrap over items")
    high: float | None = Field(description="97.5 % quantile")
    n: int = Field(description="items (documents for language modelling) that were resampled")
    tokens: int | None = None
    infinite: int | None = Field(None, description="infinite items; value is null then")
    finite_mean: float | None = Field(None, description="mean of the other items")
    floor: float | None = Field(None, description="mean of the error for a perfectly calibrated model")
    floor_high: float | None = Field(None, description="95 % quantile of the same")
    chance: float | None = Field(None, description="value of a score that knows nothing")
    floor_simulations: int | None = Field(None, description="simulations behind the floor where they are few")
    resamples: int | None = Field(None, description="resamples behind the interval where not num_bootstrap")
    item_error: float | None = Field(None, description="standard error from the items")
    draw_error: float | None = Field(None, description="standard error from the posterior draws")
    crossed_low: float | None = Field(None, description="interval over new items and new draws")
    crossed_high: float | None = None


class LinearisedAgreement(Strict):
    """Linearised predictive against the draws, at their width and with their covariance; null: not defined."""

    compared: Literal["mutual_information", "log_prob_variance"] = Field(
        description="choices: mutual information and predictives; texts: variance of log p per token"
    )
    covariance: Literal["independent", "leading"] = Field(
        description="that of the draws, whatever the predictive has"
    )
    items: int
    correlation: float | None = Field(description="Spearman's rank correlation; higher is better")
    least_correlation: float = Field(description="asked for")
    attainable: float | None = Field(
        None, description="correlation of an exact variance with as few draws, 5 % quantile"
    )
    distance: float | None = Field(None, description="mean total variation distance; lower is better")
    most_distance: float | None = Field(None, description="asked for")
    ratio: float | None = Field(description="mean of what is compared over that of the draws; 1 is best")
    most_ratio: float | None = Field(None, description="asked for, and no less than its inverse")
    passed: bool = Field(description="whether everything asked for holds")


class Model(BaseModel):
    """One evaluated model; what is known of it may be more."""

    model_config = ConfigDict(extra="allow")
    name: str
    linearised_agreement: LinearisedAgreement | None = Field(
        None, description="of linearised: true with draws"
    )
    share_left_precision: float | None = Field(
        None,
        description="of linearised: leading, the prior precision of the score share_left, in 1 / weight^2",
    )


class Baseline(Strict):
    """One of the baselines that stand beside every posterior, or why it does not."""

    name: Literal["max_probability", "entropy", "temperature_scaling", "length", "ensemble"]
    where: str = Field(description="where its numbers are")
    models: list[str] = Field(description="models that have it")
    missing: dict[str, str] = Field(description="model to the reason why not; an empty name where none could")


class EstimatorCost(Strict):
    """What one estimator of one model took, per item where it says so."""

    model: str
    estimator: str
    passes: float = Field(description="parameter vectors, decodes, scored strings or judged pairs per item")
    forwards: float | None = Field(
        description="forward-equivalents per item; null for another model's tokens"
    )
    tokens: int = Field(description="tokens through the model, padding included")
    seconds: float


class Cost(BaseModel):
    """Time, memory and tokens; there may be more."""

    model_config = ConfigDict(extra="allow")
    by_estimator: list[EstimatorCost] | None = None


def open_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a type, open to keys that it does not know."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_opened(model.model_json_schema())}


def _opened(part: Any) -> Any:
    """The schema without the ban on other keys and without titles made from names."""
    if isinstance(part, dict):
        dropped = (
            ("title", "additionalProperties") if part.get("additionalProperties") is False else ("title",)
        )
        kept = {key: value for key, value in part.items() if key not in dropped or not _is_annotation(value)}
        return {key: _opened(value) for key, value in kept.items()}
    return [_opened(value) for value in part] if isinstance(part, list) else part


def _is_annotation(value: Any) -> bool:
    """Whether a key is the schema's own and not a property of that name."""
    return isinstance(value, (str, bool))
