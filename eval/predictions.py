"""Classification and multiple choice: the records of one model as arrays, and the predictors made from them.

Predictors: ``mean`` (the posterior mean), ``samples`` (the mixture of the draws), ``linearised`` (Gaussian logits, to
first order in the weights), and each with a temperature fitted on the validation rows of the same model. The
temperature of ``samples+temperature`` acts on the log of the mixture; entropies of single draws have no place in it.
That of ``samples+draw_temperature`` acts on every draw before they are mixed, so the entropy is split there, as for
``samples`` and ``linearised``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlora.eval.choice_arrays import (
    covariances,
    known_answers,
    log_probs_at_mean,
    log_probs_of_draws,
    record_numbers,
)
from vlora.eval.choice_draws import DRAWN, ChoiceDraws, Drawn
from vlora.eval.further_metrics import class_metrics, further_metrics
from vlora.eval.item_columns import item_columns, sample_columns
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.draw_temperature import draw_temperature_interval, temper_draws
from vlora.eval.metrics.intervals import Interval
from vlora.eval.metrics.linearised import logit_variance, softmax_moments
from vlora.eval.metrics.temperature import temper, temperature_interval
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.records import Record
from vlora.eval.string_mixtures import mixture_columns
from vlora.eval.summaries import summarise
from vlora.eval.tables import (
    PREDICTORS,
    DrawReplicates,
    Metrics,
    ModelTable,
    Ratio,
    Resampler,
    ScoreNumbers,
)

__all__ = ["ChoiceTable", "Predictive"]


@dataclass(frozen=True)
class Predictive:
    """One predictor of one model: log-probabilities and what follows from them item by item."""

    log_probs: Array
    """Shape ``(N, K)``, padded with ``-inf``."""
    columns: dict[str, Array]
    """Per-item values by name, each ``(N,)``, NaN where an item has none."""
    temperature: Interval | None = None
    """The fitted temperature."""


class ChoiceTable(ModelTable):
    """Records with log-probabilities over K choices."""

    def __init__(self, model: str, records: Sequence[Record], resampler: Resampler) -> None:
        super().__init__(model, records)
        self.label: IntArray = np.array([-1 if r.label is None else r.label for r in records], dtype=np.int64)
        at_mean = log_probs_at_mean(records)
        width = at_mean.shape[1]
        samples = log_probs_of_draws(model, records, width)
        self.num_samples = 0 if samples is None else len(samples)
        self._samples, self._antithetic = samples, records[0].antithetic
        self._truth = known_answers(records, width)
        self._base_entropy: Array | None = None
        self._draws: ChoiceDraws | None = None
        self._distances = record_numbers(records, ("feature_distance", "relative_feature_distance"))
        self._predictives = {"mean": self._predictive(at_mean)}
        if samples is not None:
            self._predictives["samples"] = self._from_samples(samples, at_mean, records[0].antithetic)
        spread = covariances(records, width)
        if spread is not None:
            moments = softmax_moments(at_mean, spread)
            split = {
                "expected_entropy": moments.expected_entropy,
                "mutual_information": moments.mutual_information,
                "logit_variance": logit_variance(spread, np.isfinite(at_mean)),
                **record_numbers(records, ("share_left",)),
            }
            self._predictives["linearised"] = self._predictive(moments.log_probs, None, **split)
        held_out = np.flatnonzero((self.split == "validation") & self.labelled)
        if len(held_out):
            for name, predictive in list(self._predictives.items()):
                self._predictives[f"{name}+temperature"] = self._tempered(predictive, held_out, resampler)
        if samples is not None and len(held_out):
            self._predictives["samples+draw_temperature"] = self._of_tempered(samples, held_out, resampler)
        if samples is not None:
            parts = (samples, at_mean, self.label, self._truth, held_out, self._antithetic, resampler.seed)
            self._draws = ChoiceDraws(*parts)

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether each record has a right answer, shape ``(N,)``."""
        return self.label >= 0

    @property
    def predictors(self) -> tuple[str, ...]:
        """Predictors this model has."""
        return tuple(name for name in PREDICTORS if name in self._predictives)

    def predictive(self, predictor: str) -> Predictive:
        """The predictor of that name."""
        return self._predictives[predictor]

    @property
    def samples(self) -> Array | None:
        """Log-probabilities per draw ``(S, N, K)``, None without draws."""
        return self._samples

    @property
    def antithetic(self) -> bool:
        """Whether draws 2j and 2j+1 mirror each other."""
        return self._antithetic

    def summarise(
        self, predictor: str, rows: IntArray, resampler: Resampler, *, full: bool = False
    ) -> Metrics:
        """Compute the metrics of ``rows`` with their intervals; all that there are where ``full``."""
        predictive = self._predictives[predictor]
        columns = {name: column[rows] for name, column in predictive.columns.items()}
        metrics = self._measure(
            columns, predictive.temperature, predictive.log_probs[rows], rows, resampler, full
        )
        if self._draws is not None and (predictor == "samples" or (full and predictor in DRAWN)):

            def values(columns: dict[str, Array], found: Drawn) -> dict[str, float | None]:
                fitted = None if found.temperature is None else Interval(found.temperature, np.nan, np.nan, 0)
                alone = self._measure(columns, fitted, found.log_probs, rows, Resampler(0), full)
                return {name: one["value"] for name, one in alone.items()}

            self._draws.add_errors(metrics, predictor, rows, values)
        return {name: dict(one) for name, one in metrics.items()}

    def _measure(
        self,
        columns: dict[str, Array],
        temperature: Interval | None,
        log_probs: Array,
        rows: IntArray,
        resampler: Resampler,
        full: bool,
    ) -> Metrics:
        """Metrics of the items ``rows`` from their columns; what goes beyond the headline where ``full``."""
        labelled = self.labelled[rows]
        metrics = summarise(columns, labelled, temperature, resampler)
        if full and labelled.any():
            own = {name: column[labelled] for name, column in columns.items()}
            metrics |= further_metrics(own, resampler)
            named = {self.records[row].choices for row in rows[labelled]}
            if len(named) == 1 and named != {None}:  # classes, and not choices that only have a position
                metrics |= class_metrics(log_probs[labelled], self.label[rows[labelled]], resampler)
        return metrics

    def ratios(self, predictor: str) -> dict[str, Ratio]:
        """Accuracy, NLL and the divergence to a known answer distribution, with every item counting one."""
        columns = self._predictives[predictor].columns
        names = {"accuracy": "correct", "nll": "nll", "kl_to_truth": "kl_to_truth"}
        ones = np.ones(len(self.records))
        return {name: (columns[column], ones) for name, column in names.items() if column in columns}

    def scores(self, predictor: str) -> dict[str, Array]:
        """Scores of uncertainty by name; confidence is ranked as -log p so that values near 1 do not tie."""
        found = self._scores(self._predictives[predictor].columns, np.arange(len(self.records)))
        return found | (self._distances if predictor == "mean" else {})

    def on_resampled_draws(
        self,
        predictor: str,
        rows: IntArray,
        numbers: ScoreNumbers,
        *,
        seed: int | None = None,
        refit: bool = True,
    ) -> DrawReplicates | None:
        """Numbers of the scores of ``rows`` on resampled draws; None for a predictor that has no draws of its own."""
        if self._draws is None or predictor not in DRAWN:
            return None

        def values(columns: dict[str, Array], _: Drawn) -> Mapping[str, float]:
            return numbers(self._scores(columns, rows), columns["correct"])

        fitted = None if refit else self._predictives[predictor].temperature
        held = None if fitted is None else fitted.value
        found = self._draws.replicates(predictor, rows, values, ranks=True, seed=seed, temperature=held)
        return DrawReplicates(found, self._draws.num_units)

    def _scores(self, columns: Mapping[str, Array], rows: IntArray) -> dict[str, Array]:
        """Scores of some rows from their columns."""
        found = {"max_probability": -columns["log_confidence"], "entropy": columns["entropy"]}
        split = {
            name: columns[name]
            for name in (
                *("expected_entropy", "mutual_information", "logit_variance", "share_left"),
                *("variation_ratio", "reverse_mutual_information", "expected_pairwise_kl"),
            )
            if name in columns
        }
        found |= split
        if self._base_entropy is not None:
            for name in ("entropy", "mutual_information"):
                if name in found:
                    found[f"{name}_times_base"] = found[name] * self._base_entropy[rows]
        return found

    def set_base(self, base: "ChoiceTable") -> None:
        """Also score items by entropy and information times the entropy of the base model without an adapter.

        The posterior of an adapter knows what the adapter was taught; what was known before, only the base model can
        tell. An item that either of them knows is known.
        """
        if all(record.item in base.row_of for record in self.records):
            rows = [base.row_of[record.item] for record in self.records]
            self._base_entropy = base.predictive("mean").columns["entropy"][rows]

    def reliability(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """Confidence and correctness of ``rows``."""
        columns = self._predictives[predictor].columns
        return columns["confidence"][rows], columns["correct"][rows]

    def _predictive(self, log_probs: Array, temperature: Interval | None = None, **more: Array) -> Predictive:
        """Per-item values of one set of log-probabilities."""
        columns = item_columns(log_probs, self.label, self._truth) | more
        return Predictive(log_probs, columns, temperature)

    def _from_samples(self, samples: Array, at_mean: Array, antithetic: bool) -> Predictive:
        """The mixture of the draws with the split of its entropy, and how far the draws are from the mean."""
        split = sample_columns(samples, at_mean, antithetic)
        strings = mixture_columns(self.records, self.label, samples.shape[2])
        return self._predictive(mixture_log_probs(samples), None, **split, **strings)

    def _tempered(self, predictive: Predictive, held_out: IntArray, resampler: Resampler) -> Predictive:
        """The same predictor at the temperature that its held-out rows ask for."""
        counts = resampler.counts(len(held_out))
        fitted = temperature_interval(predictive.log_probs[held_out], self.label[held_out], counts)
        return self._predictive(temper(predictive.log_probs, fitted.value), fitted)

    def _of_tempered(self, samples: Array, held_out: IntArray, resampler: Resampler) -> Predictive:
        """The mixture of the draws, each at the one temperature that the held-out rows ask of that mixture."""
        counts = resampler.counts(len(held_out))
        fitted = draw_temperature_interval(samples[:, held_out], self.label[held_out], counts)
        tempered = temper_draws(samples, fitted.value)
        split = sample_columns(tempered, None, self._antithetic)
        return self._predictive(mixture_log_probs(tempered), fitted, **split)
