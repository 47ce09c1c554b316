"""Records of one model as arrays: what classification and language-modelling results have in common.

N is the number of items (documents for language modelling) of the model, ``rows`` are indices into them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.crossed import crossed_fields
from vlora.eval.metrics.intervals import Counts, Interval, percentile_interval, resample_counts
from vlora.eval.records import Record

__all__ = [
    "ALL",
    "PREDICTORS",
    "DrawReplicates",
    "Measured",
    "Metrics",
    "ModelTable",
    "Resampler",
    "ScoreNumbers",
    "at_the_mean",
    "entry",
    "finite_or_none",
    "measured",
    "replicates_of",
]

ALL = "all"
"""Name of the group of all labelled test rows."""
PREDICTORS = (
    "mean",
    "samples",
    "linearised",
    "mean+temperature",
    "samples+temperature",
    "linearised+temperature",
    "samples+draw_temperature",
)
"""Predictors in their order of appearance."""

Metrics = dict[str, dict[str, Any]]
Ratio = tuple[Array, Array]
ScoreNumbers = Callable[[Mapping[str, Array], Array], Mapping[str, float]]
"""Scores of uncertainty of some rows by name, and whether their answers are right, to numbers by name."""


def at_the_mean(predictor: str) -> str:
    """What stands for a predictor in a model without draws: one parameter vector knows one kind of temperature."""
    return "mean+temperature" if "+" in predictor else "mean"


class Resampler:
    """Bootstrap resamples of one run, drawn once per number of items.

    Groups of one size share their counts: their items differ, so each interval is as good as with its own.
    """

    def __init__(self, num_resamples: int = 1000, seed: int = 0) -> None:
        """Prepare; without resamples there are values and no intervals, floors or fits of them."""
        self.num_resamples = num_resamples
        self.seed = seed
        self._drawn: dict[tuple[int, int], Counts] = {}

    def counts(self, num_items: int, stream: int = 0) -> Counts:
        """Counts of shape ``(B, num_items)``; another ``stream`` gives independent ones."""
        key = (num_items, stream)
        if not self.num_resamples:
            return np.empty((0, num_items), dtype=np.uint16)
        if key not in self._drawn:
            self._drawn[key] = resample_counts(num_items, self.num_resamples, (self.seed, stream))
        return self._drawn[key]


@dataclass(frozen=True)
class DrawReplicates:
    """Numbers of one predictor on resampled draws, with all items."""

    numbers: Mapping[str, Array]
    """By name, ``(R,)``."""
    num_units: int
    """Draws that were resampled, pairs where they mirror each other."""

    def add_to(self, found: dict[str, Any], name: str, items: Array) -> dict[str, Any]:
        """The entry ``found`` with the error of the draws, and the interval over items and draws.

        Args:
            found: The entry.
            name: Of the same number on resampled draws.
            items: The same number on resamples of the items, ``(B,)``.
        """
        return found | crossed_fields(found, items, self.numbers[name], found["n"], self.num_units)


class ModelTable(ABC):
    """Everything one model said, with the metrics of any part of it.

    Attributes:
        model: Name of the model.
        records: Its records, in order of appearance.
        split: Split of every record, shape ``(N,)``.
        group: Group of every record, shape ``(N,)``.
        num_tokens: Prompt length of every record, shape ``(N,)``.
        row_of: Row of every item, for pairing with other models.
        num_samples: Posterior draws S, 0 without any.
    """

    def __init__(self, model: str, records: Sequence[Record]) -> None:
        self.model = model
        self.records = list(records)
        self.split: NDArray[Any] = np.array([record.split for record in records])
        self.group: NDArray[Any] = np.array([record.group for record in records])
        self.num_tokens: Array = np.array([record.num_tokens for record in records], dtype=np.float64)
        self.num_samples = 0
        self.row_of = {record.item: row for row, record in enumerate(self.records)}
        if len(self.row_of) < len(self.records):
            raise DataError(
                f"model {model!r} has {len(self.records)} records but only {len(self.row_of)} different items; "
                "was it evaluated twice into one file, or do two models share a name?"
            )

    @property
    @abstractmethod
    def labelled(self) -> NDArray[np.bool_]:
        """Whether each record has a right answer, shape ``(N,)``."""

    @property
    @abstractmethod
    def predictors(self) -> tuple[str, ...]:
        """Predictors this model has, a part of ``PREDICTORS``."""

    @abstractmethod
    def summarise(
        self, predictor: str, rows: IntArray, resampler: Resampler, *, full: bool = False
    ) -> Metrics:
        """Compute the metrics of ``rows`` with their intervals; all that there are where ``full``."""

    @abstractmethod
    def ratios(self, predictor: str) -> dict[str, Ratio]:
        """Metrics that are sums over sums, by name: numerators and denominators ``(N,)``, NaN where undefined."""

    @abstractmethod
    def scores(self, predictor: str) -> dict[str, Array]:
        """Scores of uncertainty by name, ``(N,)``, higher being less certain."""

    def on_resampled_draws(
        self,
        predictor: str,
        rows: IntArray,
        numbers: ScoreNumbers,
        *,
        seed: int | None = None,
        refit: bool = True,
    ) -> DrawReplicates | None:
        """Numbers of the scores of ``rows`` on resampled draws; None for a predictor that has no draws of its own.

        Args:
            predictor: Its name.
            rows: The items.
            numbers: What is made of their scores.
            seed: Seed of the resampling of draws; None takes the run's.
            refit: Whether a temperature is fitted again in every resample, or stays as it is.
        """
        return None

    def length_scores(self) -> dict[str, Array]:
        """Scores that know nothing of the model, ``(N,)``: ``length``, the prompt's number of tokens."""
        return {"length": self.num_tokens}

    @abstractmethod
    def reliability(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """Confidence and correctness of all answers in ``rows``."""

    def groups(self) -> list[str]:
        """Groups apart from the validation split, in order of appearance."""
        return list(dict.fromkeys(self.group[self.split != "validation"].tolist()))

    def rows(self, group: str) -> IntArray:
        """Rows of a group without its validation part; ``all`` is every labelled test row."""
        if group == ALL:
            return np.flatnonzero((self.split == "test") & self.labelled)
        return np.flatnonzero((self.split != "validation") & (self.group == group))


class Measured(dict[str, Any]):
    """One number of ``results.json`` that remembers its replicates, for intervals over more than items."""

    replicates: Array


def measured(value: float, replicates: Array, n: int, **more: Any) -> dict[str, Any]:
    """A number with its percentile interval.

    Args:
        value: The number.
        replicates: The same on resamples of the items, ``(B,)``.
        n: Items.
        **more: Further fields of the entry.
    """
    found = Measured(entry(percentile_interval(value, replicates, n), **more))
    found.replicates = replicates
    return found


def replicates_of(found: Mapping[str, Any]) -> Array | None:
    """The replicates of a number; None where it does not remember any."""
    return found.replicates if isinstance(found, Measured) else None


def finite_or_none(value: float) -> float | None:
    """The value as JSON can hold it: None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def entry(interval: Interval, **more: Any) -> dict[str, Any]:
    """One number of ``results.json``; None stands for what is not defined."""
    numbers: Mapping[str, float] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {**{key: finite_or_none(value) for key, value in numbers.items()}, "n": interval.n, **more}
