"""Language modelling: per-token records of one model, with documents as the unit of every interval.

Tokens of one document are not independent, so documents are resampled, each with all of its tokens (cluster
bootstrap), and every metric is a sum over tokens divided by the number of tokens.

    nll           at the mean, or of the per-token mixture over draws (product of expectations)
    nll_sequence  -log of the documents' probability under the mixture (expectation of products)
    sequence_information   mean over draws of -log p_s(document), minus nll_sequence: the epistemic part of the score
    reverse_information    mean divergence of the mixture from the draws, token by token

all in nats per token; perplexity = exp(nll). Of the draws ``nll`` and ``nll_sequence`` stand also under the names of
their mixtures, ``nll_product_of_expectations`` and ``nll_expectation_of_products``, which choices have too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.calibration import bin_index
from vlora.eval.metrics.intervals import bootstrap, percentile_interval
from vlora.eval.records import Record, TokenScores
from vlora.eval.summaries import NUM_BINS, floor_fields
from vlora.eval.tables import Metrics, ModelTable, Ratio, Resampler, entry

__all__ = ["TokenTable"]


class TokenTable(ModelTable):
    """Records with per-token scores of one model.

    Deviation from the K-way table: no temperature, for which the records would need all next-token probabilities.
    """

    def __init__(self, model: str, records: Sequence[Record], num_samples: int | None = None) -> None:
        super().__init__(model, records)
        self._scores = [_token_scores(record) for record in records]
        drawn = {scores.total_entropy is not None for scores in self._scores}
        if len(drawn) > 1:
            raise DataError(
                f"only some records of model {model!r} have posterior draws; evaluate it again in one run"
            )
        self.has_samples = drawn == {True}
        self.num_samples = (num_samples or 0) if self.has_samples else 0
        self.antithetic = any(record.antithetic for record in records)
        self._size = np.array([scores.num_tokens for scores in self._scores], dtype=np.float64)
        self._columns = {name: self._build(name) for name in self.predictors}

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Every document has its own next tokens."""
        return np.ones(len(self.records), dtype=bool)

    @property
    def predictors(self) -> tuple[str, ...]:
        """Predictors this model has."""
        return ("mean", "samples") if self.has_samples else ("mean",)

    def summarise(
        self, predictor: str, rows: IntArray, resampler: Resampler, *, full: bool = False
    ) -> Metrics:
        """Compute all metrics of the documents ``rows`` with their intervals; ``full`` adds nothing to them."""
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
        return metrics

    def ratios(self, predictor: str) -> dict[str, Ratio]:
        """Accuracy and NLL per token: sums over a document and its number of tokens."""
        columns = self._columns[predictor]
        names = [name for name in ("accuracy", "nll", "nll_sequence") if name in columns]
        return {name: (columns[name], self._size) for name in names}

    def scores(self, predictor: str) -> dict[str, Array]:
        """Per-token means over a document; confidence as the mean of -log p of the most probable token."""
        columns = self._columns[predictor]
        prefix = "sample_" if predictor == "samples" else ""
        with np.errstate(divide="ignore"):
            surprise = [-np.log(getattr(scores, f"{prefix}confidence")).mean() for scores in self._scores]
        wanted = (
            "entropy",
            "expected_entropy",
            "mutual_information",
            "reverse_information",
            "sequence_information",
        )
        names = [n for n in wanted if n in columns]
        return self._linearised() | {
            "max_probability": np.array(surprise),
            **{name: columns[name] / self._size for name in names},
        }

    def _linearised(self) -> dict[str, Array]:
        """Standard deviation of a document's log-probability to first order, per token, where it was measured."""
        variances = [scores.nll_variance for scores in self._scores]
        if any(variance is None for variance in variances):
            return {}
        return {"linearised_std": np.sqrt(np.array(variances, dtype=np.float64)) / self._size}

    def reliability(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """Confidence and correctness of all tokens in ``rows``."""
        prefix = "sample_" if predictor == "samples" else ""
        picked = [self._scores[row] for row in rows]
        confidence = np.concatenate([getattr(scores, f"{prefix}confidence") for scores in picked])
        return confidence, np.concatenate([getattr(scores, f"{prefix}correct") for scores in picked])

    def _build(self, predictor: str) -> dict[str, Array]:
        """Sums over each document, by metric, each ``(N,)``."""
        sampled = predictor == "samples"
        prefix = "sample_" if sampled else ""
        columns = {
            "accuracy": self._sum(f"{prefix}correct"),
            "nll": np.array([s.nll_samples if sampled else s.nll for s in self._scores], dtype=np.float64),
            "mean_confidence": self._sum(f"{prefix}confidence"),
            "entropy": self._sum("total_entropy" if sampled else "entropy"),
        }
        if sampled:
            columns["nll_sequence"] = np.array([s.nll_sequence for s in self._scores], dtype=np.float64)
            columns["nll_expectation_of_products"] = columns["nll_sequence"]
            columns["nll_product_of_expectations"] = columns["nll"]
            columns["expected_entropy"] = self._sum("expected_entropy")
            columns |= self._mutual_information() | self._sequence_parts()
        return columns

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

    def _sum(self, name: str) -> Array:
        return np.array([getattr(scores, name).sum() for scores in self._scores], dtype=np.float64)

    def _gaps(self, predictor: str, rows: IntArray) -> Array:
        """Sums of correctness minus confidence per document and bin, shape ``(len(rows), NUM_BINS)``."""
        confidence, correct = self.reliability(predictor, rows)
        document = np.repeat(np.arange(len(rows)), self._size[rows].astype(np.int64))
        cell = document * NUM_BINS + bin_index(confidence, NUM_BINS)
        sums: Array = np.bincount(cell, weights=correct - confidence, minlength=len(rows) * NUM_BINS).astype(
            np.float64
        )
        return sums.reshape(len(rows), NUM_BINS)


def _token_scores(record: Record) -> TokenScores:
    if record.lm is None:
        raise DataError(
            f"record {record.item!r} of {record.model!r} has no 'lm' part; are two tasks in one file?"
        )
    return record.lm
