"""All tests of one pair of models on the same items; see :mod:`vlora.eval.compare`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.choice_draws import DRAWN
from vlora.eval.compare_detection import detection_tests
from vlora.eval.compare_draws import DrawnSide, pair_deviations, paired_sides
from vlora.eval.compare_parts import bootstrap_entry, mcnemar_fields, minus
from vlora.eval.compare_texts import text_tests
from vlora.eval.comparisons import Detect
from vlora.eval.further_metrics import HEADLINE, headline_statistic
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.draw_temperature import temper_draws
from vlora.eval.metrics.intervals import Interval, bootstrap
from vlora.eval.metrics.temperature import temper
from vlora.eval.predictions import ChoiceTable
from vlora.eval.tables import ALL, PREDICTORS, ModelTable, Resampler, at_the_mean

__all__ = ["compare_tables"]

_HIGHER = ("accuracy", "auroc_correctness")


def compare_tables(
    a: ModelTable,
    b: ModelTable,
    predictor: str | None,
    resampler: Resampler,
    *,
    detect: Detect | None = None,
    scores: Sequence[str] = (),
) -> dict[str, Any]:
    """Test model a against model b.

    Args:
        a: The later model.
        b: The earlier model, on the same items.
        predictor: Which probabilities; None takes the draws where a model has them. A model without them stands with
            its mean.
        resampler: Source of the bootstrap resamples.
        detect: Groups to tell apart, see :func:`vlora.eval.compare_detection.detection_tests`.
        scores: Scores that are to tell them apart.

    Returns:
        ``predictor_a``, ``predictor_b``, ``wanted`` (``predictor``), ``n``, ``draws`` and ``tests``.

    Raises:
        DataError: The models did different tasks, have no predictor or score of that name, or share no labelled test
            row.
    """
    if type(a) is not type(b):
        raise DataError(f"{a.model} and {b.model} did different tasks; compare evaluations of one task")
    names = [_predictor(table, predictor) for table in (a, b)]
    rows = a.rows(ALL)
    if not len(rows):
        raise DataError(f"{a.model} and {b.model} share no test row with a right answer")
    rows_b = np.array([b.row_of[a.records[row].item] for row in rows], dtype=np.int64)
    facts: dict[str, Any] = {"predictor_a": names[0], "predictor_b": names[1], "wanted": predictor}
    facts["n"] = len(rows)
    if isinstance(a, ChoiceTable) and isinstance(b, ChoiceTable):
        pair = _ChoicePair((a, b), (names[0], names[1]), (rows, rows_b), resampler)
        tests, draws = pair.tests(), pair.draws
    else:
        tests, draws = text_tests((a, b), names, (rows, rows_b), resampler)
    tests += detection_tests(a, b, names, detect=detect, scores=scores, seed=resampler.seed)
    return {**facts, "draws": draws, "tests": tests}


def _predictor(table: ModelTable, wanted: str | None) -> str:
    """The predictor of that name, the one at the mean for a model without draws, or the richest."""
    if wanted is None:
        return "samples" if "samples" in table.predictors else "mean"
    if wanted not in PREDICTORS:
        raise DataError(f"predictor must be one of {', '.join(PREDICTORS)}, got {wanted!r}")
    for name in (wanted, at_the_mean(wanted)):
        if name in table.predictors:
            return name
    raise DataError(
        f"{table.model} has no predictor {wanted!r}, only {', '.join(table.predictors)}; a temperature needs "
        "validation rows"
    )


class _ChoicePair:
    """Two models with choices on the same labelled items."""

    def __init__(
        self,
        tables: tuple[ChoiceTable, ChoiceTable],
        names: tuple[str, str],
        rows: tuple[IntArray, IntArray],
        resampler: Resampler,
    ) -> None:
        self._label, self._resampler = tables[0].label[rows[0]], resampler
        self._probs = [
            np.exp(table.predictive(name).log_probs[picked])
            for table, name, picked in zip(tables, names, rows, strict=True)
        ]
        self._drawn = [
            self._side(table, name, picked) for table, name, picked in zip(tables, names, rows, strict=True)
        ]
        sizes = [0 if side is None else side.num_draws for side in self._drawn]
        self.draws = {"a": sizes[0], "b": sizes[1], "paired": paired_sides(self._drawn)}

    def _side(self, table: ChoiceTable, name: str, rows: IntArray) -> DrawnSide | None:
        """The draws of a predictor, with the headline as replicates; None for one that is made without any."""
        if table.samples is None or name not in DRAWN:
            return None
        mixed = _mixer(table.samples[:, rows], name, table.predictive(name).temperature)
        every = np.ones((1, len(rows)))

        def replicates(weights: Array) -> dict[str, Array]:
            found = [headline_statistic(mixed(row), self._label)(every)[0] for row in weights]
            return dict(zip(HEADLINE, np.array(found).T, strict=True))

        return DrawnSide(len(table.samples), table.antithetic, replicates)

    def tests(self) -> list[dict[str, Any]]:
        """One test per metric of the headline."""
        size = len(self._label)
        statistics = [headline_statistic(probs, self._label) for probs in self._probs]
        every = np.ones((1, size))
        values = [statistic(every)[0] for statistic in statistics]
        counts = self._resampler.counts(size)
        items = bootstrap(minus(*statistics), counts)
        deviations, units = pair_deviations(self._drawn, self._resampler.seed)
        tests = [
            bootstrap_entry(
                name,
                [float(value[column]) for value in values],
                items[:, column],
                size,
                higher=name in _HIGHER,
                deviation=deviations.get(name),
                units=units,
            )
            for column, name in enumerate(HEADLINE)
        ]
        return [test | self._mcnemar() if test["metric"] == "accuracy" else test for test in tests]

    def _mcnemar(self) -> dict[str, Any]:
        """The exact test of two accuracies; ties between choices leave the bootstrap in place."""
        right = [self._correct(probs) for probs in self._probs]
        if not all(np.isin(values, [0.0, 1.0]).all() for values in right):
            return {}
        return mcnemar_fields(right[0], right[1])

    def _correct(self, probs: Array) -> Array:
        top = probs == probs.max(axis=1, keepdims=True)
        return top[np.arange(len(self._label)), self._label] / top.sum(axis=1)


def _mixer(samples: Array, name: str, fitted: Interval | None) -> Callable[[Array], Array]:
    """Probabilities of a predictor under weights of its draws ``(S,)``, at the temperature that was fitted for all.

    Args:
        samples: Log-probabilities per draw, ``(S, N, K)``.
        name: One of :data:`vlora.eval.choice_draws.DRAWN`.
        fitted: The temperature, for a name that has one: of the mixture, or of every draw.
    """
    temperature = None if fitted is None else fitted.value
    if temperature is not None and name.endswith("+draw_temperature"):
        samples, temperature = temper_draws(samples, temperature), None
    top = samples.max(axis=0)
    shift = np.where(np.isneginf(top), 0.0, top)
    shares = np.exp(samples - shift)

    def mixed(weights: Array) -> Array:
        with np.errstate(divide="ignore"):
            log_probs = shift + np.log(np.tensordot(weights, shares, axes=1))
        return np.exp(log_probs if temperature is None else temper(log_probs, temperature))

    return mixed
