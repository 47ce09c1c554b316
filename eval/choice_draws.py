"""What the posterior draws add to the intervals of choices: every metric of a sampled predictor on resampled draws.

The draws of one model are resampled (:mod:`vlora.eval.metrics.crossed`), and everything that follows from them is
computed again: the mixture, the split of its entropy, the temperature that the validation rows ask for, and every
metric of these. One resample is held at a time: memory is that of the draws once more, whatever the number of
resamples, of which there are fewer where items, draws and choices are many.

A temperature of every draw (``samples+draw_temperature``) leaves draws behind, so the split of their entropy is made
again too; a temperature of the mixture does not.

What records do not keep by draw has no error of draws: the two mixtures of strings of several tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vlora.eval.item_columns import item_columns, sample_columns, score_columns
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.crossed import crossed_fields, draw_spread, draw_weights
from vlora.eval.metrics.draw_temperature import draw_temperatures, temper_draws
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.tables import Metrics, replicates_of

__all__ = ["DRAWN", "ChoiceDraws", "Drawn", "Values"]

DRAWN = ("samples", "samples+temperature", "samples+draw_temperature")
"""Predictors that are made of draws."""


@dataclass(frozen=True)
class Drawn:
    """One predictor on one resample of the draws."""

    log_probs: Array
    """Shape ``(N, K)``."""
    temperature: float | None
    """The temperature, if it has one."""


Values = Callable[[dict[str, Array], Drawn], Mapping[str, float | None]]
"""Per-item columns of some rows and what they are of, to numbers by name."""
_RESAMPLES = (25, 100)
_RANKED = 40  # resamples of what ranks items, whose error needs no third digit
_ENTRIES = 1e8  # probabilities of all resamples together


@dataclass
class ChoiceDraws:
    """Draws of one model, resampled one set at a time."""

    samples: Array
    """Log-probabilities, ``(S, N, K)``."""
    at_mean: Array
    """The same at the mean, ``(N, K)``."""
    label: IntArray
    """Right choices, negative where there is none, ``(N,)``."""
    truth: Array
    """Known distributions of the answer, rows of NaN where there is none, ``(N, K)``."""
    held_out: IntArray
    """Rows that a temperature is fitted on."""
    antithetic: bool
    """Whether draws 2j and 2j+1 mirror each other."""
    seed: int = 0
    """Seed of the resampling."""
    _temperatures: dict[tuple[int, int], float] = field(default_factory=dict)
    _of_draws: dict[int, Array] = field(default_factory=dict)

    @property
    def num_units(self) -> int:
        """Independent draws, pairs where they are antithetic."""
        return len(self.samples) // 2 if self.antithetic else len(self.samples)

    def add_errors(self, metrics: Metrics, predictor: str, rows: IntArray, values: Values) -> None:
        """Add the draws' error, and the interval over items and draws, to every entry that has one.

        Args:
            metrics: Entries of ``predictor`` on ``rows``, changed in place.
            predictor: One of ``DRAWN``.
            rows: The items.
            values: The same metrics from columns of these rows.
        """
        replicates = self.replicates(predictor, rows, values)
        for name, found in metrics.items():
            drawn, items = replicates.get(name), replicates_of(found)
            if drawn is None:
                continue
            if items is not None:
                metrics[name] = found | crossed_fields(found, items, drawn, found["n"], self.num_units)
            else:
                metrics[name] = found | {"draw_error": draw_spread(drawn, self.num_units)}

    def replicates(
        self,
        predictor: str,
        rows: IntArray,
        values: Values,
        *,
        ranks: bool = False,
        seed: int | None = None,
        temperature: float | None = None,
    ) -> dict[str, Array]:
        """Numbers on resampled draws with all items, ``(R,)`` by name, NaN where not defined; R = 1 for one unit.

        Args:
            predictor: One of ``DRAWN``.
            rows: The items.
            values: The numbers, from columns of these rows.
            ranks: Whether the columns of scores are enough (:func:`~vlora.eval.item_columns.score_columns`); fewer
                resamples are taken then.
            seed: Seed of the resampling; None takes that of all others.
            temperature: What a tempered predictor is held at; None fits it again in every resample.
        """
        entries = self.samples.size * len(rows) / self.samples.shape[1]
        size = int(np.clip(_ENTRIES / max(entries, 1), *_RESAMPLES)) if self.num_units > 1 else 1
        size = min(size, _RANKED) if ranks else size
        seed = self.seed if seed is None else seed
        weights = draw_weights(len(self.samples), size, antithetic=self.antithetic, seed=seed)
        found: dict[str, list[float]] = {}
        for number, row in enumerate(weights):
            own = self._temperature(predictor, number, weights, seed) if temperature is None else temperature
            each = predictor.endswith("+draw_temperature")
            columns, drawn = self._columns(_chosen(row), rows, own, ranks, each=each)
            for name, value in values(columns, drawn).items():
                found.setdefault(name, []).append(np.nan if value is None else value)
        return {name: np.array(numbers) for name, numbers in found.items() if len(numbers) == size}

    def _columns(
        self,
        chosen: IntArray,
        rows: IntArray,
        temperature: float | None,
        ranks: bool = False,
        *,
        each: bool = False,
    ) -> tuple[dict[str, Array], Drawn]:
        """Per-item values of the mixture of these draws, ``each`` of them or the mixture at a temperature."""
        samples = self.samples[chosen][:, rows]
        if temperature is not None and each:
            samples = temper_draws(samples, temperature)
        mixture, label, truth = mixture_log_probs(samples), self.label[rows], self.truth[rows]
        split = None if temperature is not None and not each else samples
        if temperature is not None and not each:
            mixture = temper(mixture, temperature)
        drawn = Drawn(mixture, temperature)
        if ranks:
            return score_columns(mixture, split, label, self.antithetic), drawn
        columns = item_columns(mixture, label, truth)
        if split is not None:
            at_mean = None if each else self.at_mean[rows]
            columns |= sample_columns(split, at_mean, self.antithetic)
        return columns, drawn

    def _temperature(self, predictor: str, number: int, weights: Array, seed: int) -> float | None:
        """The temperature that the validation rows ask of resample ``number``, if the predictor has one."""
        if predictor.endswith("+draw_temperature"):
            if len(self._of_draws.get(seed, ())) < len(weights):  # fewer resamples are the first of more
                held_out = self.samples[:, self.held_out]
                self._of_draws[seed] = draw_temperatures(held_out, self.label[self.held_out], weights)
            return float(self._of_draws[seed][number])
        if not predictor.endswith("+temperature"):
            return None
        if (seed, number) not in self._temperatures:
            mixture = mixture_log_probs(self.samples[_chosen(weights[number])][:, self.held_out])
            fitted = fit_temperature(mixture, self.label[self.held_out]).temperature
            self._temperatures[seed, number] = fitted
        return self._temperatures[seed, number]


def _chosen(weights: Array) -> IntArray:
    """Draws of one resample, each as often as it was drawn."""
    return np.repeat(np.arange(len(weights)), np.round(weights * len(weights)).astype(int))
