"""Which score finds the texts that a model predicts badly: selection, where no answer is right or wrong as a whole.

The quality of a text is the share of its tokens whose most probable continuation is the one that is there; every text
counts one. A score should be higher on texts of lower quality. The lengths are scores too, which know nothing of the
model.
"""

from typing import Any

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.intervals import Counts, Interval, bootstrap, percentile_interval
from vlora.eval.metrics.ranking import Ranking
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import Kept
from vlora.eval.tables import Resampler, entry
from vlora.eval.token_predictions import TokenTable

__all__ = ["rank_texts"]

_SLOW = 200  # resamples of a ratio that has no closed form over resamples


def rank_texts(table: TokenTable, rows: IntArray, resampler: Resampler) -> list[dict[str, Any]]:
    """AURC (mean share of wrong tokens over coverages) and prediction-rejection ratio of every score of one model.

    Args:
        table: The model.
        rows: The texts.
        resampler: Source of the bootstrap resamples.

    Returns:
        Rows as those of :func:`vlora.eval.wrong_answers.find_wrong_answers`, ``auroc`` without a value and
        ``auroc_gain`` None: a share of wrong tokens has no two classes.
    """
    found, counts = [], resampler.counts(len(rows))
    for predictor in table.predictors:
        accuracy, size = table.ratios(predictor)["accuracy"]
        quality = accuracy[rows] / size[rows]
        scores = {name: values[rows] for name, values in table.scores(predictor).items()}
        if "+" not in predictor:
            scores |= {name: values[rows] for name, values in table.length_scores().items()}
        for name, values in scores.items():
            head = {"model": table.model, "predictor": predictor, "score": name}
            found.append({**head, **_areas(values, quality, counts), "auroc_gain": None})
    return found


def _areas(uncertainty: Array, quality: Array, counts: Counts) -> dict[str, Any]:
    """Intervals over texts of both measures."""
    finite, size = np.nan_to_num(uncertainty, posinf=np.finfo(np.float64).max), len(quality)
    ranking = Ranking.of(finite)

    def area(weights: Array) -> Array:
        return Kept.of(ranking, quality, weights).aurc()

    kept = percentile_interval(float(area(np.ones((1, size)))[0]), bootstrap(area, counts), size)
    chosen = [np.repeat(np.arange(size), count) for count in counts[:_SLOW]]
    ratios = [prediction_rejection_ratio(finite[rows], quality[rows]) for rows in chosen]
    ratio = percentile_interval(prediction_rejection_ratio(finite, quality), ratios, size)
    nothing = Interval(float("nan"), float("nan"), float("nan"), size)
    fewer = {"resamples": len(chosen)} if len(chosen) < len(counts) else {}
    return {"auroc": entry(nothing), "aurc": entry(kept), "prr": entry(ratio, **fewer)}
