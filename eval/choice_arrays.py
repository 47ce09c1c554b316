"""Records of choices as arrays: what several records say about one thing, stacked and padded to the most choices.

N records, S draws, and K the most choices of a record; what a record lacks has probability zero.
"""

from collections.abc import Sequence

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array
from vlora.eval.records import Record

__all__ = ["covariances", "known_answers", "log_probs_at_mean", "log_probs_of_draws", "record_numbers"]


def log_probs_at_mean(records: Sequence[Record]) -> Array:
    """Log-probabilities at the mean, ``(N, K)``, padded with impossible choices.

    Raises:
        DataError: A record has none.
    """
    answers = [_answer(record) for record in records]
    found = np.full((len(records), max(len(answer) for answer in answers)), -np.inf)
    for row, answer in enumerate(answers):
        found[row, : len(answer)] = answer
    return found


def _answer(record: Record) -> Array:
    if record.log_probs is None:
        raise DataError(
            f"record {record.item!r} of {record.model!r} has no log_probs; are two tasks in one file?"
        )
    return record.log_probs


def log_probs_of_draws(model: str, records: Sequence[Record], width: int) -> Array | None:
    """Draws of all records as ``(S, N, K)``, padded with impossible choices, or None where no record has any.

    Raises:
        DataError: The records of ``model`` do not have the same draws.
    """
    drawn = [record.sample_log_probs for record in records]
    sizes = {0 if draws is None else len(draws) for draws in drawn}
    kinds = {record.antithetic for record in records}
    if len(sizes) > 1 or len(kinds) > 1:
        raise DataError(
            f"all records of model {model!r} must have the same draws, got {sorted(sizes)} draws, "
            f"antithetic {sorted(kinds)}; evaluate it again in one run"
        )
    if sizes == {0}:
        return None
    samples = np.full((sizes.pop(), len(records), width), -np.inf)
    for row, draws in enumerate(drawn):
        if draws is not None:
            samples[:, row, : draws.shape[1]] = draws
    return samples


def covariances(records: Sequence[Record], width: int) -> Array | None:
    """Covariances of the logits ``(N, K, K)``, 0 for absent choices; None where not every record has one."""
    found = np.zeros((len(records), width, width))
    for row, record in enumerate(records):
        if record.linearised_covariance is None:
            return None
        size = len(record.linearised_covariance)
        found[row, :size, :size] = record.linearised_covariance
    return found


def known_answers(records: Sequence[Record], width: int) -> Array:
    """Known answer distributions ``(N, K)``, rows of NaN where there is none, rows summing to exactly one."""
    truth = np.full((len(records), width), np.nan)
    for row, record in enumerate(records):
        if record.label_probs is not None:
            truth[row] = 0.0
            truth[row, : len(record.label_probs)] = record.label_probs / record.label_probs.sum()
    return truth


def record_numbers(records: Sequence[Record], names: Sequence[str]) -> dict[str, Array]:
    """Numbers of the items by name, ``(N,)``, those that all records have."""
    found = {}
    for name in names:
        values = [getattr(record, name) for record in records]
        if None not in values:
            found[name] = np.array(values, dtype=np.float64)
    return found
