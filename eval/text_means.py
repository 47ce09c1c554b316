"""What the tables of texts have in common: sums over documents divided by tokens, and the lengths as scores.

Tokens of one document are not independent, so documents are resampled, each with all of its tokens (cluster bootstrap).
"""

from collections.abc import Mapping

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.intervals import bootstrap, percentile_interval
from vlora.eval.records import Record, TokenScores
from vlora.eval.tables import Metrics, Resampler, entry

__all__ = ["lengths_only", "ratio_metrics", "token_scores"]


def token_scores(record: Record) -> TokenScores:
    """The token scores of a record.

    Raises:
        DataError: It has none.
    """
    if record.lm is None:
        raise DataError(
            f"record {record.item!r} of {record.model!r} has no 'lm' part; are two tasks in one file?"
        )
    return record.lm


def ratio_metrics(sums: Mapping[str, Array], size: Array, resampler: Resampler) -> Metrics:
    """Means per token with intervals over documents.

    Args:
        sums: Sums over each document by metric, each ``(N,)``.
        size: Tokens of each document, ``(N,)``.
        resampler: Source of the bootstrap resamples.
    """
    table, tokens = np.stack([*sums.values()], axis=1), int(size.sum())

    def statistic(weights: Array) -> Array:
        return weights @ table / (weights @ size)[:, None]

    values, replicates = (
        statistic(np.ones((1, len(size))))[0],
        bootstrap(statistic, resampler.counts(len(size))),
    )
    return {
        name: entry(percentile_interval(float(values[i]), replicates[:, i], len(size)), tokens=tokens)
        for i, name in enumerate(sums)
    }


def lengths_only(prompt: Array, size: Array) -> dict[str, Array]:
    """Scores that know nothing of the model: ``length`` of the prompt, and ``answer_length`` where that is another one.

    Args:
        prompt: Tokens of every prompt, of a text without one its own, ``(N,)``.
        size: Scored tokens, ``(N,)``.
    """
    prompted = bool(((prompt < size) | (prompt > size + 1)).any())  # of a text alone all but BOS is scored
    return {"length": prompt, **({"answer_length": size} if prompted else {})}
