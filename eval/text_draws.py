"""What the posterior draws add to the intervals of texts, from what the records keep of every draw.

The draws are resampled by weights ``w_s`` (:mod:`vlora.eval.metrics.crossed`). Of a text y under them, exactly,

    nll_sequence(w) = -log sum_s w_s p_s(y)          expected_entropy(w) = sum_s w_s sum_t H(p_s(. | y_<t))

and of the per-token mixture to first order in the weights (infinitesimal jackknife; Efron 1982, ISBN 0898711797),

    nll(w) = nll - sum_s (w_s - 1/S) sum_t p_s(y_t | y_<t) / p_mix(y_t | y_<t).

Its accuracy, confidence and entropy would need the mixture over the vocabulary again for every resample, which a pass
that streams over the draws does not hold, so they have no draw error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.crossed import crossed_fields, draw_weights
from vlora.eval.records import TokenScores
from vlora.eval.tables import Metrics

__all__ = ["TextDraws"]


@dataclass(frozen=True)
class TextDraws:
    """What every draw said about N texts."""

    nll: Array
    """-log p_s of every text, ``(N, S)``."""
    entropy: Array
    """Sum of the entropies of its tokens, ``(N, S)``."""
    weight: Array
    """Minus the slope of its NLL under the per-token mixture in the weight of a draw, ``(N, S)``."""
    size: Array
    """Tokens, ``(N,)``."""
    antithetic: bool
    """Whether draws 2j and 2j+1 mirror each other."""

    @classmethod
    def of(cls, scores: Sequence[TokenScores], antithetic: bool) -> "TextDraws | None":
        """The draws of some texts; None where the records do not tell, those of earlier versions."""
        names = ("nll_by_draw", "entropy_by_draw", "weight_by_draw")
        found = [[getattr(score, name) for score in scores] for name in names]
        if any(one is None for column in found for one in column):
            return None
        size = np.array([score.num_tokens for score in scores], dtype=np.float64)
        nll, entropy, weight = (np.stack(column) for column in found)
        return cls(nll, entropy, weight, size, antithetic)

    @property
    def num_units(self) -> int:
        """Independent draws, pairs where they are antithetic."""
        return self.nll.shape[1] // 2 if self.antithetic else self.nll.shape[1]

    def replicates(self, rows: IntArray, weights: Array) -> dict[str, Array]:
        """Metrics of some texts under resampled draws.

        Args:
            rows: The texts.
            weights: Weights of the draws, ``(R, S)``, rows summing to one.

        Returns:
            Replicates ``(R,)`` by metric, in nats per token; ``nll`` as the deviation from its value.
        """
        nll, total = self.nll[rows], self.size[rows].sum()
        low = nll.min(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):  # a resample may leave out every draw that makes a text possible
            sequence = (low - np.log(np.exp(low - nll) @ weights.T)).sum(axis=0) / total
        slope = self.weight[rows].sum(axis=0) / total
        expected = weights @ nll.sum(axis=0) / total
        return {
            "nll": -(weights - 1 / weights.shape[1]) @ slope,
            "nll_sequence": sequence,
            "sequence_information": expected - sequence,
            "expected_entropy": weights @ self.entropy[rows].sum(axis=0) / total,
        }

    def add_errors(
        self, metrics: Metrics, item_replicates: Mapping[str, Array], rows: IntArray, seed: int
    ) -> None:
        """Add the draws' error and the interval over items and draws to the entries that have one.

        Args:
            metrics: Entries of the predictor ``samples``, changed in place.
            item_replicates: The same metrics on resamples of the texts, ``(B,)`` each.
            rows: The texts.
            seed: Seed of the resampling of draws.
        """
        num_draws = self.nll.shape[1]
        weights = draw_weights(num_draws, antithetic=self.antithetic, seed=seed)
        found = self.replicates(rows, weights)
        if metrics["nll"]["value"] is not None:
            found["perplexity"] = np.exp(metrics["nll"]["value"] + found["nll"])
        found["nll_product_of_expectations"] = found["nll"]
        found["nll_expectation_of_products"] = found["nll_sequence"]
        for name, replicates in found.items():
            if name in metrics:
                metrics[name] |= crossed_fields(
                    metrics[name], item_replicates[name], replicates, len(rows), self.num_units
                )
