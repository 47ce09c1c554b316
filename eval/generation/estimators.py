"""Every estimator of uncertainty of one answered question, from its record: no model, no judge.

All are uncertainties: higher is less certain. ``CONFIDENCES`` are probabilities of being right, for calibration.
An estimator that a record cannot have (no draws, no samples, a judge that failed) is absent or None, never a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.arrays import Array
from vlora.eval.semantic import entropy as semantic
from vlora.eval.semantic import sequence
from vlora.eval.semantic.lexical import lexical_dissimilarity

__all__ = [
    "CONFIDENCES",
    "ESTIMATORS",
    "OF_QUESTION",
    "SCORED_INFORMATION",
    "SCORED_TOTAL",
    "Estimator",
    "columns",
    "confidences",
    "item_scores",
]


@dataclass(frozen=True)
class Estimator:
    """What an estimator is."""

    family: str
    """``baseline``, ``answer`` (the one that is judged), ``samples`` (several answers) or ``posterior`` (draws)."""
    title: str
    """In words."""


ESTIMATORS = {
    "max_probability": Estimator("baseline", "-log p of the answer at the mean"),
    "mean_token_entropy": Estimator("baseline", "mean token entropy at the mean"),
    "answer_length": Estimator("baseline", "number of answer tokens"),
    "prompt_length": Estimator("baseline", "number of prompt tokens"),
    "token_nll": Estimator("answer", "-log p per token (log perplexity)"),
    "least_likely_token": Estimator("answer", "-log p of the least likely token"),
    "max_token_entropy": Estimator("answer", "largest token entropy"),
    "p_true": Estimator("answer", "1 - p(True)"),
    "monte_carlo_entropy": Estimator("samples", "mean -log p of sampled answers"),
    "length_normalised_entropy": Estimator("samples", "mean -log p per token of sampled answers"),
    "lexical_dissimilarity": Estimator("samples", "-mean ROUGE-L of sampled answers"),
    "num_clusters": Estimator("samples", "number of meanings"),
    "semantic_entropy": Estimator("samples", "discrete semantic entropy"),
    "weighted_semantic_entropy": Estimator("samples", "Rao-Blackwellised semantic entropy"),
    "kernel_language_entropy": Estimator("samples", "kernel language entropy"),
    "eigenscore": Estimator("samples", "EigenScore"),
    "disagreement": Estimator("samples", "share of sampled answers of another meaning"),
    "contradiction": Estimator("samples", "SelfCheck-style contradiction"),
    "mixture": Estimator("posterior", "-log of the answer's mean probability over draws"),
    "mixture_per_token": Estimator("posterior", "the same per token"),
    "expected_token_entropy": Estimator("posterior", "mean token entropy, mean over draws"),
    "reverse_information": Estimator("posterior", "mean of log p_EP - log p_s of the answer"),
    "spread_of_draws": Estimator("posterior", "sd over draws of log p of the answer"),
    "p_true_draws": Estimator("posterior", "1 - mean over draws of p(True)"),
    "semantic_expected": Estimator("posterior", "semantic entropy within a draw, counted, chance taken out"),
    "semantic_information": Estimator("posterior", "semantic mutual information, counted, chance taken out"),
    "scored_semantic_total": Estimator("posterior", "semantic entropy of the mixture, scored"),
    "scored_semantic_expected": Estimator("posterior", "semantic entropy within a draw, scored"),
    "scored_semantic_information": Estimator("posterior", "semantic mutual information, scored"),
}
"""Name -> what it is, in the order of the tables."""

SCORED_TOTAL, SCORED_INFORMATION = "scored_semantic_total", "scored_semantic_information"
"""Entropy over meanings of the mixture of draws, and the part of it that more training data could settle."""

OF_QUESTION = frozenset(
    {
        *("prompt_length", "monte_carlo_entropy", "length_normalised_entropy", "lexical_dissimilarity"),
        *(
            "num_clusters",
            "semantic_entropy",
            "weighted_semantic_entropy",
            "kernel_language_entropy",
            "eigenscore",
        ),
        *("semantic_expected", "semantic_information", "scored_semantic_total", "scored_semantic_expected"),
        "scored_semantic_information",
    }
)
"""Those of the question alone: whatever answer is given to it, they are the same."""

CONFIDENCES = ("max_probability", "token_probability", "mixture", "cluster_share", "p_true")
"""Probabilities of being right that are calibrated and thresholded."""


def item_scores(record: AnswerRecord) -> dict[str, float]:
    """Uncertainties of one question by name, those that it has.

    Raises:
        DataError: Damaged numbers.
    """
    found = _of_answer(record)
    found |= _of_samples(record)
    if len(record.answer.draw_log_probs) > 1:
        found |= _of_draws(record)
    found |= {name: value for name, value in record.measured.items() if value is not None}
    return {name: found[name] for name in ESTIMATORS if name in found and not np.isnan(found[name])}


def _of_answer(record: AnswerRecord) -> dict[str, float]:
    answer = record.answer
    found = {
        "max_probability": sequence.negative_log_likelihood(answer.log_probs),
        "mean_token_entropy": sequence.mean_token_entropy(answer.entropies),
        "answer_length": float(len(answer.log_probs)),
        "prompt_length": float(record.num_tokens),
        "token_nll": sequence.token_nll(answer.log_probs),
        "least_likely_token": sequence.least_likely_token(answer.log_probs),
        "max_token_entropy": sequence.max_token_entropy(answer.entropies),
    }
    return found if answer.p_true is None else {**found, "p_true": 1 - answer.p_true}


def _of_samples(record: AnswerRecord) -> dict[str, float]:
    if len(record.samples) < 2:
        return {}
    log_probs = [sample.log_probs for sample in record.samples]
    clusters = _sampled_clusters(record)
    texts = [record.pool[sample.pool].text for sample in record.samples]
    per_token = [-sequence.token_nll(tokens) for tokens in log_probs]
    return {
        "monte_carlo_entropy": sequence.monte_carlo_entropy(log_probs),
        "length_normalised_entropy": sequence.length_normalised_entropy(log_probs),
        "lexical_dissimilarity": lexical_dissimilarity(texts),
        "num_clusters": float(len(set(clusters))),
        "semantic_entropy": semantic.semantic_entropy(clusters),
        "weighted_semantic_entropy": semantic.weighted_semantic_entropy(clusters, per_token),
        "disagreement": 1 - _cluster_share(record),
    }


def _of_draws(record: AnswerRecord) -> dict[str, float]:
    answer = record.answer
    mixture = sequence.answer_mixture(answer.draw_log_probs)
    found = {
        "mixture": -mixture,
        "mixture_per_token": -mixture / len(answer.log_probs),
        "expected_token_entropy": float(np.mean(answer.draw_entropies)),
        "reverse_information": sequence.reverse_information(answer.draw_log_probs),
        "spread_of_draws": sequence.spread_of_draws(answer.draw_log_probs),
    }
    if answer.draw_p_true:
        found["p_true_draws"] = 1 - float(np.mean(answer.draw_p_true))
    if len(record.samples) < 2:
        return found
    draws = [sample.draw for sample in record.samples]
    split = semantic.counted_split(_sampled_clusters(record), draws)
    found |= {f"semantic_{name}": split[key] for name, key in _PARTS.items() if name != "total"}
    pool, clusters = _scored_pool(record)
    shares = semantic.scored_cluster_shares(clusters, pool)
    scored = semantic.semantic_split(shares, antithetic=record.antithetic)
    return found | {f"scored_semantic_{name}": scored[key] for name, key in _PARTS.items()}


_PARTS = {"total": "total", "expected": "expected", "information": "mutual_information"}


def _scored_pool(record: AnswerRecord) -> tuple[Array, list[int]]:
    """Log-probabilities of the distinct answers per draw, ``(S, Y)``, and their meanings.

    An answer that was given is left out unless it was sampled too: it is scored without the token that ends an
    answer, and would outweigh those that have it.
    """
    sampled = {sample.pool for sample in record.samples}
    used = [n for n in range(len(record.pool)) if n in sampled or not record.answer.given]
    names: dict[int, int] = {}
    clusters = [names.setdefault(record.pool[n].cluster, len(names)) for n in used]
    return np.array([record.pool[n].draw_log_probs for n in used]).T, clusters


def _sampled_clusters(record: AnswerRecord) -> list[int]:
    """Meaning of every sampled answer, numbered without gaps."""
    found = [record.pool[sample.pool].cluster for sample in record.samples]
    names = {cluster: number for number, cluster in enumerate(dict.fromkeys(found))}
    return [names[cluster] for cluster in found]


def _cluster_share(record: AnswerRecord) -> float:
    """Share of the sampled answers that mean what the judged answer means."""
    own = record.pool[0].cluster
    return float(np.mean([record.pool[sample.pool].cluster == own for sample in record.samples]))


def confidences(record: AnswerRecord) -> dict[str, float]:
    """Probabilities of being right by name, each in [0, 1], higher is *more* certain; those that the record has."""
    answer = record.answer
    found = {
        "max_probability": float(np.exp(-sequence.negative_log_likelihood(answer.log_probs))),
        "token_probability": float(np.exp(-sequence.token_nll(answer.log_probs))),
    }
    if len(answer.draw_log_probs) > 1:
        found["mixture"] = float(np.exp(sequence.answer_mixture(answer.draw_log_probs)))
    if len(record.samples) > 1:
        found["cluster_share"] = _cluster_share(record)
    if answer.p_true is not None:
        found["p_true"] = float(np.mean(answer.draw_p_true)) if answer.draw_p_true else answer.p_true
    return {name: min(found[name], 1.0) for name in CONFIDENCES if name in found}


def columns(rows: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, Array]:
    """Per-item values as arrays ``(N,)``; a value that an item lacks is infinite: it ranks as least certain."""
    return {
        name: np.array([row.get(name, np.inf) for row in rows], dtype=np.float64)
        for name in names
        if any(name in row for row in rows)
    }
