"""Paired tests of two models on the same texts; see :mod:`vlora.eval.compare`.

Metrics are sums over sums (nats per token, right tokens per token), and texts are resampled for both models at once;
so is the ECE of tokens. There is no AURC: nobody declines single tokens of a text that is given.
``nll`` and ``nll_sequence`` of sampled predictors have the error of their draws too, as far as records keep numbers by
draw (:mod:`vlora.eval.text_draws`): the second exactly, the first to first order in the weights of the draws. Draw
numbers are resampled jointly where both models have equally many, since draw k of both has the same noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlora.eval.compare_draws import DrawnSide, pair_deviations, paired_sides
from vlora.eval.compare_parts import Statistic, bootstrap_test, ratio_of
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.intervals import Counts
from vlora.eval.tables import ModelTable, Resampler
from vlora.eval.text_draws import TextDraws
from vlora.eval.token_predictions import TokenTable

__all__ = ["text_tests"]

_BY_DRAW = ("nll", "nll_sequence")


def text_tests(
    tables: Sequence[ModelTable], names: Sequence[str], rows: Sequence[IntArray], resampler: Resampler
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One test per metric that both models have.

    Args:
        tables: The later and the earlier model.
        names: Predictor of each.
        rows: The same texts of each, ``(N,)``.
        resampler: Source of the bootstrap resamples.

    Returns:
        The tests, and the draws behind them: number of ``a`` and of ``b`` (0 at the mean) and whether they are
        ``paired``.
    """
    found = [table.ratios(name) for table, name in zip(tables, names, strict=True)]
    sides = [
        _side(_draws_of(table, name), picked) for table, name, picked in zip(tables, names, rows, strict=True)
    ]
    drawn = [_count(table, name, side) for table, name, side in zip(tables, names, sides, strict=True)]
    unknown = any(
        name.startswith("samples") and side is None for name, side in zip(names, sides, strict=True)
    )
    deviations, units = ({}, 0) if unknown else pair_deviations(sides, resampler.seed)
    counts = resampler.counts(len(rows[0]))
    tests = [
        bootstrap_test(
            metric,
            [
                ratio_of(*(part[picked] for part in one[metric]))
                for one, picked in zip(found, rows, strict=True)
            ],
            counts,
            higher=metric == "accuracy",
            deviation=deviations.get(metric),
            units=units,
        )
        for metric in found[0]
        if metric in found[1]
    ]
    tests += _calibration(tables, names, rows, counts)
    return tests, {"a": drawn[0], "b": drawn[1], "paired": paired_sides(sides)}


def _calibration(
    tables: Sequence[ModelTable], names: Sequence[str], rows: Sequence[IntArray], counts: Counts
) -> list[dict[str, Any]]:
    """The test of the calibration error of tokens; none where a model has no confidence in tokens (an ensemble)."""
    statistics = [
        _calibration_error(*table.calibration_gaps(name, picked))
        for table, name, picked in zip(tables, names, rows, strict=True)
        if isinstance(table, TokenTable)
    ]
    if len(statistics) < len(tables):
        return []
    return [bootstrap_test("ece_15_equal_width", statistics, counts, higher=False)]


def _calibration_error(gaps: Array, size: Array) -> Statistic:
    return lambda weights: np.abs(weights @ gaps).sum(axis=1) / (weights @ size)


def _draws_of(table: ModelTable, predictor: str) -> TextDraws | None:
    """The draws of an untempered mixture; None at the mean, under a temperature, and in records of earlier versions."""
    return table.draws if isinstance(table, TokenTable) and predictor == "samples" else None


def _count(table: ModelTable, predictor: str, side: DrawnSide | None) -> int:
    """Draws of a predictor, 0 at the mean."""
    if side is not None:
        return side.num_draws
    return table.num_samples if predictor.startswith("samples") else 0


def _side(draws: TextDraws | None, rows: IntArray) -> DrawnSide | None:
    """The draws of some texts, with what records keep of every draw as replicates."""
    if draws is None:
        return None

    def replicates(weights: Array) -> dict[str, Array]:
        found = draws.replicates(rows, weights)
        return {name: found[name] for name in _BY_DRAW}

    return DrawnSide(draws.nll.shape[1], draws.antithetic, replicates)
