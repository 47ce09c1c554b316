r"""What the posterior draws add to the intervals of scores of the judged answer, from what records keep of every draw.

That answer is given, or greedy at the mean, so new draws would be asked about the same one. Of answer y with T tokens
under weights w_s of resampled draws (:mod:`vlora.eval.metrics.crossed`), exactly while draws lie within 700 nats,

    mixture(w) = -log sum_s w_s p_s(y)                  mixture_per_token(w) = mixture(w) / T
    expected_token_entropy(w) = sum_s w_s H_s           p_true_draws(w) = 1 - sum_s w_s p_s(True)
    reverse_information(w) = -mixture(w) - sum_s w_s log p_s(y)
    spread_of_draws(w)^2 = S / (S - 1) sum_s w_s (log p_s(y) - sum_r w_r log p_r(y))^2

Scores of sampled answers have no such error: with other draws there would be other answers, clusters and pool. Neither
has an ensemble that answers by itself, since its members choose the answer that is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.ensemble import ENSEMBLE
from vlora.eval.generation.records import AnswerRecord
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.metrics.crossed import DRAW_RESAMPLES, draw_weights

__all__ = ["DRAWN_CONFIDENCES", "DRAWN_SCORES", "AnswerDraws"]

DRAWN_SCORES = (
    *("mixture", "mixture_per_token", "expected_token_entropy"),
    *("reverse_information", "spread_of_draws", "p_true_draws"),
)
"""Uncertainties that follow from what the draws say of the judged answer."""
DRAWN_CONFIDENCES = {"mixture": "mixture", "p_true": "p_true_draws"}
"""Confidences that do, and the uncertainty that each is made of."""


@dataclass(frozen=True)
class AnswerDraws:
    """What S draws said of N judged answers."""

    log_probs: Array
    """log p_s of every answer, ``(N, S)``; minus infinity is allowed."""
    entropies: Array
    """Mean token entropy, ``(N, S)``."""
    p_true: Array
    """Probability that it is called true, ``(N, S)``, rows of NaN where nobody asked."""
    size: Array
    """Tokens, ``(N,)``."""
    antithetic: bool
    """Whether draws 2j and 2j+1 mirror each other."""

    @classmethod
    def of(cls, model: str, records: Sequence[AnswerRecord]) -> "AnswerDraws | None":
        """The draws of one model; None without several, and where they choose the judged answer (an ensemble)."""
        answers = [record.answer for record in records]
        sizes = {len(answer.draw_log_probs) for answer in answers}
        if len(sizes) != 1 or max(sizes) < 2:
            return None
        if model == ENSEMBLE and not all(answer.given for answer in answers):
            return None
        (num_draws,) = sizes
        return cls(
            np.array([answer.draw_log_probs for answer in answers], dtype=np.float64),
            _rows([answer.draw_entropies for answer in answers], num_draws),
            _rows([answer.draw_p_true for answer in answers], num_draws),
            np.array([len(answer.log_probs) for answer in answers], dtype=np.float64),
            records[0].antithetic,
        )

    @property
    def num_draws(self) -> int:
        """S."""
        return self.log_probs.shape[1]

    @property
    def layout(self) -> tuple[int, bool]:
        """Number of draws, and whether they mirror each other."""
        return self.num_draws, self.antithetic

    @property
    def num_units(self) -> int:
        """Independent draws, pairs where they are antithetic."""
        return self.num_draws // 2 if self.antithetic else self.num_draws

    def weights(self, seed: int) -> Array:
        """Weights of resampled draws, ``(R, S)``; one row where there is a single unit."""
        count = DRAW_RESAMPLES if self.num_units > 1 else 1
        return draw_weights(self.num_draws, count, antithetic=self.antithetic, seed=seed)

    def scores(self, name: str, rows: IntArray, weights: Array) -> Array:
        """An uncertainty of some answers under resampled draws.

        Args:
            name: One of ``DRAWN_SCORES``.
            rows: The answers, ``(n,)``.
            weights: Of the draws, ``(R, S)``, rows summing to one.

        Returns:
            Shape ``(R, n)``, higher is less certain; infinite where an answer lacks it.
        """
        if name in ("expected_token_entropy", "p_true_draws"):
            values = self.entropies if name == "expected_token_entropy" else 1 - self.p_true
            found = weights @ values[rows].T
        else:
            found = self._of_log_probs(name, rows, weights)
        return np.where(np.isnan(found), np.inf, found)

    def confidence(self, name: str, rows: IntArray, weights: Array) -> Array:
        """A confidence of some answers, one of ``DRAWN_CONFIDENCES``, as :meth:`scores`; 0 where an answer lacks it."""
        uncertain = self.scores(DRAWN_CONFIDENCES[name], rows, weights)
        certain = np.exp(-uncertain) if name == "mixture" else 1 - uncertain
        return np.clip(certain, 0.0, 1.0)

    def _of_log_probs(self, name: str, rows: IntArray, weights: Array) -> Array:
        values = self.log_probs[rows]
        if name == "spread_of_draws":
            return _spread(values, weights)
        top = values.max(axis=1)
        shift = np.where(np.isneginf(top), 0.0, top)
        with np.errstate(
            divide="ignore"
        ):  # a resample may leave out every draw that makes an answer possible
            mixture = shift + np.log(weights @ np.exp(values - shift[:, None]).T)
        if name == "reverse_information":
            with np.errstate(invalid="ignore"):
                gap = np.maximum(mixture - _mean(values, weights), 0.0)
            return np.where(np.isneginf(mixture), 0.0, gap)
        return -mixture / (self.size[rows] if name == "mixture_per_token" else 1)


def _rows(values: Sequence[Sequence[float]], num_draws: int) -> Array:
    """Numbers by draw, ``(N, S)``, a row of NaN where an answer has none."""
    nothing = [np.nan] * num_draws
    return np.array([row if len(row) == num_draws else nothing for row in values], dtype=np.float64)


def _mean(values: Array, weights: Array) -> Array:
    """Weighted means of ``(n, S)``, ``(R, n)``; minus infinity where a draw that counts has it."""
    ruled_out = weights @ np.isneginf(values).T.astype(np.float64) > 0
    return np.where(ruled_out, -np.inf, weights @ np.where(np.isneginf(values), 0.0, values).T)


def _spread(values: Array, weights: Array) -> Array:
    """Standard deviations of resampled draws with S - 1, ``(R, n)``; infinite where one rules the answer out."""
    finite, mean = np.where(np.isneginf(values), 0.0, values), _mean(values, weights)
    centre = finite.mean(axis=1)  # taken out first, so that squares of large numbers do not cancel
    moved = finite - centre[:, None]
    variance = weights @ np.square(moved).T - np.square(weights @ moved.T)
    num_draws = values.shape[1]
    found = np.sqrt(np.maximum(variance, 0.0) * num_draws / (num_draws - 1))
    return np.where(np.isneginf(mean), np.inf, found)
