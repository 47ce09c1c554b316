"""How well every score of uncertainty finds the wrong answers of a model, baselines beside ours.

Wrong answers are the positive class: a score should be higher on them than on right ones. Each predictor is ranked
against its own errors, by all of its scores (:meth:`vlora.eval.predictions.ChoiceTable.scores`) and by ``length``, the
prompt's number of tokens, which knows nothing of the model. ``max_probability`` and ``entropy`` of the predictor
``mean`` are what a model without a posterior has; ``+temperature`` is the scaled baseline.

All scores of one predictor see the same resamples of the items, so ``auroc_gain``, the AUROC minus that of the same
predictor's ``max_probability``, is a paired difference: only its interval says whether one score beats the other.

Of sampled predictors both the scores and the answers are those of the draws: every number is computed again on
resampled draws, and carries their error too.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.intervals import Counts, bootstrap, percentile_interval
from vlora.eval.metrics.ranking import Ranking, Separation
from vlora.eval.metrics.selective import Kept
from vlora.eval.predictions import ChoiceTable
from vlora.eval.tables import ALL, DrawReplicates, ModelTable, Resampler, entry
from vlora.eval.token_predictions import TokenTable
from vlora.eval.wrong_tokens import rank_texts

__all__ = ["BASELINE", "find_wrong_answers"]

BASELINE = "max_probability"
"""The score that every other is compared with."""
_AREAS = ("auroc", "aurc", "prr")
_ENTRIES = 5e5  # items of all resamples together behind one score's intervals
_FEWEST = 200


def find_wrong_answers(tables: Sequence[ModelTable], resampler: Resampler) -> list[dict[str, Any]]:
    """AUROC, AURC and prediction-rejection ratio of every score for the wrong answers among all labelled test rows.

    Args:
        tables: All models; of texts, scores are ranked against the share of wrong tokens
            (:mod:`vlora.eval.wrong_tokens`), an ensemble of texts left out, whose tokens are not known.
        resampler: Source of the bootstrap resamples.

    Returns:
        One row per model, predictor and score: ``auroc`` (higher is better, .5 is chance; for ``length`` below .5 means
        that shorter prompts get the wrong answers), ``aurc`` (lower is better, chance is the error rate), ``prr``
        (higher is better, 0 is chance), and ``auroc_gain``, None for the score it is measured from. A temperature
        changes no answer, so ``length`` stands once beside each untempered predictor.
    """
    found = []
    for table in tables:
        rows = table.rows(ALL)
        if isinstance(table, TokenTable) and len(rows):
            found += rank_texts(table, rows, resampler)
        if isinstance(table, ChoiceTable) and len(rows):
            counts = _counts(len(rows), resampler)
            for predictor in table.predictors:
                correct = table.predictive(predictor).columns["correct"][rows]
                scores = {name: values[rows] for name, values in table.scores(predictor).items()}
                more = {} if "+" in predictor else table.length_scores()
                lengths = {name: values[rows] for name, values in more.items()}
                drawn = table.on_resampled_draws(predictor, rows, partial(_on_draws, lengths))
                head = {"model": table.model, "predictor": predictor}
                ranked = _rank(scores | lengths, correct, counts, resampler, drawn)
                found += [{**head, **row} for row in ranked]
    return found


def _counts(size: int, resampler: Resampler) -> Counts:
    """Resamples, fewer where the items are many."""
    return resampler.counts(size)[: int(max(_FEWEST, _ENTRIES // size))]


def _on_draws(lengths: Mapping[str, Array], scores: Mapping[str, Array], correct: Array) -> dict[str, float]:
    """Areas of all scores and their gains from one set of draws, by score and area."""
    areas = {name: _ordered(values, correct)[0] for name, values in {**scores, **lengths}.items()}
    base = areas[BASELINE][0]
    found = {f"{name} {area}": own[i] for name, own in areas.items() for i, area in enumerate(_AREAS)}
    return found | {f"{name} auroc_gain": own[0] - base for name, own in areas.items()}


def _rank(
    scores: dict[str, Array],
    correct: Array,
    counts: Counts,
    resampler: Resampler,
    drawn: DrawReplicates | None,
) -> list[dict[str, Any]]:
    """Areas of all scores of one predictor; the baseline comes first, and its replicates serve all others."""
    found, size = [], len(correct)
    fewer = {"resamples": len(counts)} if len(counts) < resampler.num_resamples else {}

    def one(name: str, value: float, items: Array) -> dict[str, Any]:
        plain = entry(percentile_interval(value, items, size), **fewer)
        return plain if drawn is None else drawn.add_to(plain, name, items)

    base, base_replicates = 0.0, np.empty(0)
    for name, values in sorted(scores.items(), key=lambda pair: pair[0] != BASELINE):
        point, replicates = _areas(values, correct, counts)
        row: dict[str, Any] = {"score": name}
        for column, area in enumerate(_AREAS):
            row[area] = one(f"{name} {area}", point[column], replicates[:, column])
        if name == BASELINE:
            base, base_replicates, row["auroc_gain"] = point[0], replicates[:, 0], None
        else:
            gain = (point[0] - base, replicates[:, 0] - base_replicates)
            row["auroc_gain"] = one(f"{name} auroc_gain", *gain)
        found.append(row)
    return found


def _areas(uncertainty: Array, correct: Array, counts: Counts) -> tuple[list[float], Array]:
    """AUROC, AURC and PRR on the items, and on every resample ``(B, 3)``."""
    point, statistic, order = _ordered(uncertainty, correct)
    return point, bootstrap(statistic, np.take(counts, order, axis=1))


def _ordered(uncertainty: Array, correct: Array) -> tuple[list[float], Callable[[Array], Array], IntArray]:
    """AUROC, AURC and PRR on the items, the same of counts ``(b, N)`` of items in an order, and that order."""
    finite = np.nan_to_num(uncertainty, posinf=np.finfo(np.float64).max)
    order = np.argsort(finite, kind="stable")  # sorted once, so that no resample has to be
    ranking, right = Ranking.of(finite[order]), correct[order]

    def statistic(weights: Array) -> Array:
        kept = Kept.of(ranking, right, weights)
        area = Separation(kept.errors, kept.count - kept.errors).auroc()
        return np.stack([area, kept.aurc(), kept.rejection_ratio()], axis=1)

    return statistic(np.ones((1, len(correct))))[0].tolist(), statistic, order
