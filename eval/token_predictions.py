"""Language modelling: per-token records of one model, with documents as the unit of every interval.

Tokens of one document are not independent, so documents are resampled, each with all of its tokens (cluster
bootstrap), and every metric is a sum over tokens divided by the number of tokens.

    nll           at the mean, or of the per-token mixture over draws (product of expectations)
    nll_sequence  -log of the documents' probability under the mixture (expectation of products)
    sequence_information   mean over draws of -log p_s(document), minus nll_sequence: the epistemic part of the score
    reverse_information    mean divergence of the mixture from the draws, token by token

all in nats per token; perplexity = exp(nll). Of the draws ``nll`` and ``nll_sequence`` stand also under the names of
their mixtures, ``nll_product_of_expectations`` and ``nll_expectation_of_products``, which choices have too.
Calibration is that of the most probable next token: ``ece_15_equal_width``, and on all documents ``smooth_ece``. In
their floors a token is right with the probability that it was given after the tokens before it.
``mean+temperature`` and ``samples+temperature`` are the same next-token distributions at a temperature that was fitted
on other texts (:mod:`vlora.eval.text_temperature`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import bin_index
from vlora.eval.metrics.intervals import bootstrap, percentile_interval
from vlora.eval.metrics.smooth_calibration import smooth_ece, smooth_ece_floor, smooth_ece_of_clusters
from vlora.eval.records import Record
from vlora.eval.summaries import NUM_BINS, floor_fields
from vlora.eval.tables import PREDICTORS, Metrics, ModelTable, Ratio, Resampler, entry
from vlora.eval.text_draws import TextDraws
from vlora.eval.text_means import lengths_only, token_scores
from vlora.eval.text_temperature import refitted

__all__ = ["TokenTable"]

_FIELDS = {
    "mean": {"nll": "nll", "confidence": "confidence", "entropy": "entropy", "correct": "correct"},
    "samples": {
        "nll": "nll_samples",
        "confidence": "sample_confidence",
        "entropy": "total_entropy",
        "correct": "sample_correct",
    },
    "mean+temperature": {
        "nll": "nll_chosen",
        "confidence": "confidence_chosen",
        "entropy": "entropy_chosen",
        "correct": "correct",
    },
    "samples+temperature": {
        "nll": "nll_samples_chosen",
        "confidence": "sample_confidence_chosen",
        "entropy": "sample_entropy_chosen",
        "correct": "sample_correct",
    },
}
"""What every predictor is made of; a temperature changes no answer."""
_SMOOTH = 200  # resamples and simulations of the smooth ECE, at most
_FLOOR_TOKENS = 2e7  # simulated tokens behind its floor


class TokenTable(ModelTable):
    """Records with per-token scores of one model."""

    def __init__(self, model: str, records: Sequence[Record], num_samples: int | None = None) -> None:
        super().__init__(model, records)
        self._scores = [token_scores(record) for record in records]
        drawn = {scores.total_entropy is not None for scores in self._scores}
        if len(drawn) > 1:
            raise DataError(
                f"only some records of model {model!r} have posterior draws; evaluate it again in one run"
            )
        if any(scores.correct is None for scores in self._scores):
            raise DataError(f"only some records of model {model!r} are those of an ensemble of texts")
        self.has_samples = drawn == {True}
        self.num_samples = (num_samples or 0) if self.has_samples else 0
        self.antithetic = any(record.antithetic for record in records)
        self._size = np.array([scores.num_tokens for scores in self._scores], dtype=np.float64)
        self._columns = {name: self._build(name) for name in PREDICTORS if self._has(name)}
        self._draws = TextDraws.of(self._scores, self.antithetic) if self.has_samples else None

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Every document has its own next tokens."""
        return np.ones(len(self.records), dtype=bool)

    @property
    def predictors(self) -> tuple[str, ...]:
        """Predictors this model has."""
        return tuple(self._columns)

    def summarise(
        self, predictor: str, rows: IntArray, resampler: Resampler, *, full: bool = False
    ) -> Metrics:
        """Compute all metrics of the documents ``rows`` with their intervals; where ``full``, of draws too."""
        sums = {name: column[rows] for name, column in self._columns[predictor].items()}
        size, counts = self._size[rows], resampler.counts(len(rows))
        confidence, correct = self.reliability(predictor, rows)
        table = np.concatenate([np.stack([*sums.values()], axis=1), self._gaps(predictor, rows)], axis=1)

        def statistic(weights: Array) -> Array:
            means = weights @ table / (weights @ size)[:, None]
            ece = np.abs(means[:, len(sums) :]).sum(axis=1, keepdims=True)
            return np.concatenate([means[:, : len(sums)], ece], axis=1)

        values, replicates = statistic(np.ones((1, len(rows))))[0], bootstrap(statistic, counts)
        names = (*sums, f"ece_{NUM_BINS}_equal_width")
        pairs = {name: (values[i], replicates[:, i]) for i, name in enumerate(names)}
        pairs["perplexity"] = (np.exp(pairs["nll"][0]), np.exp(pairs["nll"][1]))
        tokens = int(size.sum())
        metrics = {
            name: entry(percentile_interval(float(value), draws, len(rows)), tokens=tokens)
            for name, (value, draws) in pairs.items()
        }
        metrics[names[-1]] |= floor_fields(confidence, "equal_width", resampler.seed)
        if full and predictor == "samples" and self._draws is not None:
            self._draws.add_errors(
                metrics, {name: pair[1] for name, pair in pairs.items()}, rows, resampler.seed
            )
        if full:
            metrics["smooth_ece"] = self._smooth(predictor, rows, resampler)
        if predictor.endswith("+temperature"):
            metrics["temperature"] = self._temperature(predictor, rows, resampler)
        return metrics

    def ratios(self, predictor: str) -> dict[str, Ratio]:
        """Accuracy and NLL per token: sums over a document and its number of tokens.

        One parameter vector is its own mixture of whole texts, so the mean has ``nll_sequence`` too: what an ensemble
        and draws are compared with.
        """
        columns = self._columns[predictor]
        found = {name: columns[name] for name in ("accuracy", "nll", "nll_sequence") if name in columns}
        if predictor == "mean":
            found["nll_sequence"] = columns["nll"]
        return {name: (column, self._size) for name, column in found.items()}

    def scores(self, predictor: str) -> dict[str, Array]:
        """Per-token means over a document; confidence as the mean of -log p of the most probable token."""
        columns = self._columns[predictor]
        wanted = (
            *("entropy", "nll", "nll_sequence", "expected_entropy", "mutual_information"),
            *("reverse_information", "sequence_information"),
        )
        names = [n for n in wanted if n in columns]
        linearised = {} if "+" in predictor else self._linearised()
        return linearised | {
            "max_probability": self._surprise(predictor),
            **{name: columns[name] / self._size for name in names},
        }

    @property
    def draws(self) -> TextDraws | None:
        """What every draw said; None without draws, and in records of earlier versions."""
        return self._draws

    def length_scores(self) -> dict[str, Array]:
        """Lengths of prompt and text."""
        return lengths_only(self.num_tokens, self._size)

    def reliability(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """Confidence and correctness of all tokens in ``rows``."""
        of = _FIELDS[predictor]
        picked = [self._scores[row] for row in rows]
        confidence = np.concatenate([getattr(scores, of["confidence"]) for scores in picked])
        return confidence, np.concatenate([getattr(scores, of["correct"]) for scores in picked])

    def _smooth(self, predictor: str, rows: IntArray, resampler: Resampler) -> dict[str, Any]:
        """Smooth ECE of all tokens in ``rows``, with its floor."""
        confidence, correct = self.reliability(predictor, rows)
        document = np.repeat(np.arange(len(rows)), self._size[rows].astype(np.int64))
        counts = resampler.counts(len(rows))[:_SMOOTH]
        replicates = bootstrap(smooth_ece_of_clusters(confidence, correct, document), counts)
        simulations = int(np.clip(_FLOOR_TOKENS / len(confidence), 20, _SMOOTH))
        floor = smooth_ece_floor(confidence, num_simulations=simulations, seed=resampler.seed)
        more = {"floor": floor.mean, "floor_high": floor.high, "resamples": len(counts)}
        more["floor_simulations"] = simulations
        interval = percentile_interval(smooth_ece(confidence, correct), replicates, len(rows))
        return entry(interval, tokens=len(confidence), **more)

    def _linearised(self) -> dict[str, Array]:
        """Standard deviation of a document's log-probability to first order, per token, where it was measured."""
        variances = [scores.nll_variance for scores in self._scores]
        if any(variance is None for variance in variances):
            return {}
        return {"linearised_std": np.sqrt(np.array(variances, dtype=np.float64)) / self._size}

    def _has(self, predictor: str) -> bool:
        """Whether all documents that are reported on have what a predictor is made of."""
        if predictor not in _FIELDS:
            return False
        field, reported = _FIELDS[predictor]["nll"], np.flatnonzero(self.split != "validation")
        rows = reported if predictor.endswith("+temperature") else range(len(self._scores))
        return len(rows) > 0 and all(getattr(self._scores[row], field) is not None for row in rows)

    def _build(self, predictor: str) -> dict[str, Array]:
        """Sums over each document, by metric, each ``(N,)``; NaN for what validation texts lack."""
        of = _FIELDS[predictor]
        columns = {
            "accuracy": self._sum(of["correct"]),
            "nll": self._numbers(of["nll"]),
            "mean_confidence": self._sum(of["confidence"]),
            "entropy": self._sum(of["entropy"]),
        }
        if predictor == "samples":
            columns["nll_sequence"] = self._numbers("nll_sequence")
            columns["nll_expectation_of_products"] = columns["nll_sequence"]
            columns["nll_product_of_expectations"] = columns["nll"]
            columns["expected_entropy"] = self._sum("expected_entropy")
            columns |= self._mutual_information() | self._sequence_parts()
        return columns

    def _surprise(self, predictor: str) -> Array:
        """Mean over each document's tokens of -log p of the most probable one."""
        found = []
        for scores in self._scores:
            confidence = getattr(scores, _FIELDS[predictor]["confidence"])
            with np.errstate(divide="ignore"):
                found.append(np.nan if confidence is None else -np.log(confidence).mean())
        return np.array(found)

    def _temperature(self, predictor: str, rows: IntArray, resampler: Resampler) -> dict[str, Any]:
        """The temperature with the interval of its fit on the validation texts, where these are here."""
        field = "temperature" if predictor.startswith("mean") else "sample_temperature"
        value = float(getattr(self._scores[rows[0]], field))
        texts = [self._scores[row] for row in np.flatnonzero(self.split == "validation")]
        return entry(refitted(value, texts, predictor.partition("+")[0], resampler))

    def _sequence_parts(self) -> dict[str, Array]:
        """Sums over each document: epistemic part of its score, and reverse information of its tokens."""
        if any(scores.nll_expected is None or scores.reverse_information is None for scores in self._scores):
            return {}  # records of an earlier version
        pairs = [(scores.nll_expected, scores.nll_sequence) for scores in self._scores]
        information = np.array([expected - sequence for expected, sequence in pairs], dtype=np.float64)  # pyright: ignore
        return {"sequence_information": information, "reverse_information": self._sum("reverse_information")}

    def _mutual_information(self) -> dict[str, Array]:
        """Sums of total minus expected entropy, x S/(S-1) for independent draws; left out where S does not allow it."""
        if not self.antithetic and self.num_samples < 2:
            return {}
        factor = 1.0 if self.antithetic else self.num_samples / (self.num_samples - 1)
        # The stored entropies are rounded, so a difference of zero may come out just below it.
        sums = [np.maximum(s.total_entropy - s.expected_entropy, 0.0).sum() for s in self._scores]  # type: ignore[operator]
        return {"mutual_information": factor * np.array(sums)}

    def _numbers(self, name: str) -> Array:
        """One number of every document, NaN where there is none."""
        return np.array([getattr(scores, name) for scores in self._scores], dtype=np.float64)

    def _sum(self, name: str) -> Array:
        values = [getattr(scores, name) for scores in self._scores]
        return np.array([np.nan if value is None else value.sum() for value in values], dtype=np.float64)

    def calibration_gaps(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """What the calibration error of tokens is made of: correctness minus confidence per text and bin, and tokens.

        For resamples with counts ``weights`` ``(B, N)`` the ECE is ``abs(weights @ gaps).sum(1) / (weights @ tokens)``.

        Args:
            predictor: Its name.
            rows: The texts, ``(N,)``.

        Returns:
            Gaps ``(N, 15)`` and tokens ``(N,)``.
        """
        return self._gaps(predictor, rows), self._size[rows]

    def _gaps(self, predictor: str, rows: IntArray) -> Array:
        """Sums of correctness minus confidence per document and bin, shape ``(len(rows), NUM_BINS)``."""
        confidence, correct = self.reliability(predictor, rows)
        document = np.repeat(np.arange(len(rows)), self._size[rows].astype(np.int64))
        cell = document * NUM_BINS + bin_index(confidence, NUM_BINS)
        sums: Array = np.bincount(cell, weights=correct - confidence, minlength=len(rows) * NUM_BINS).astype(
            np.float64
        )
        return sums.reshape(len(rows), NUM_BINS)
