"""An ensemble of adapters for texts, from the records of its members: the mixture of whole texts.

    p(y) = (1/M) sum_m prod_t p_m(y_t | y_<t)                 expectation of products, one member per whole text

(Lakshminarayanan et al. 2017, arXiv:1612.01474, with strings in the place of labels.) Members stand at their means. It
costs no pass beyond those of its members' rows: M forwards a text. The mixture of their next-token distributions would
need all of these side by side, so the accuracy, confidence and entropy of a token mixture are left out.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array, IntArray
from vlora.eval.records import Record, TokenScores
from vlora.eval.tables import Metrics, ModelTable, Ratio, Resampler
from vlora.eval.text_means import lengths_only, ratio_metrics, token_scores

__all__ = ["TextEnsembleTable", "text_ensemble_record"]


def text_ensemble_record(members: Sequence[Record], name: str) -> Record:
    """Record of the ensemble on one text.

    Args:
        members: Records of the members on this text.
        name: Name of the ensemble.

    Returns:
        ``nll`` and ``nll_sequence`` of the mixture, ``nll_expected``, ``nll_std`` and ``nll_by_draw`` over members, and
        the members' mean entropy of every next token as ``expected_entropy``.
    """
    scores = [token_scores(record) for record in members]
    nll = np.array([score.nll for score in scores])
    mixture = float(np.log(len(nll)) - np.logaddexp.reduce(-nll))
    entropies = [score.entropy for score in scores if score.entropy is not None]
    found = TokenScores(
        num_tokens=scores[0].num_tokens,
        nll=mixture,
        nll_sequence=mixture,
        nll_expected=float(nll.mean()),
        nll_std=float(nll.std(ddof=1)),
        nll_by_draw=nll,
        entropy_by_draw=np.array([entropy.sum() for entropy in entropies]),
        expected_entropy=np.mean(entropies, axis=0),
    )
    return replace(members[0], model=name, antithetic=False, lm=found)


class TextEnsembleTable(ModelTable):
    """Records of an ensemble of texts; its one predictor is ``samples``, the members being the draws."""

    def __init__(self, model: str, records: Sequence[Record]) -> None:
        super().__init__(model, records)
        scores = [token_scores(record) for record in self.records]
        if any(
            score.nll_sequence is None or score.nll_by_draw is None or score.entropy_by_draw is None
            for score in scores
        ):
            raise DataError(
                f"some records of {model!r} lack the members of an ensemble; evaluate it again in one run"
            )
        self._size = np.array([score.num_tokens for score in scores], dtype=np.float64)
        nll = np.array([score.nll_by_draw for score in scores], dtype=np.float64)
        sequence = np.array([score.nll_sequence for score in scores], dtype=np.float64)
        members = np.array([score.entropy_by_draw for score in scores], dtype=np.float64)
        expected = members.mean(axis=1)
        self.num_samples = nll.shape[1]
        self._columns = {
            "nll_sequence": sequence,
            "nll_expectation_of_products": sequence,
            "sequence_information": nll.mean(axis=1) - sequence,
            "expected_entropy": expected,
        }

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Every text has its own next tokens."""
        return np.ones(len(self.records), dtype=bool)

    @property
    def predictors(self) -> tuple[str, ...]:
        """The mixture alone."""
        return ("samples",)

    def summarise(
        self, predictor: str, rows: IntArray, resampler: Resampler, *, full: bool = False
    ) -> Metrics:
        """NLL of the mixture and its parts, in nats per token; members are given, so no error of draws."""
        sums = {name: column[rows] for name, column in self._columns.items()}
        return ratio_metrics(sums, self._size[rows], resampler)

    def ratios(self, predictor: str) -> dict[str, Ratio]:
        """NLL per token: sums over a text and its number of tokens."""
        return {"nll_sequence": (self._columns["nll_sequence"], self._size)}

    def scores(self, predictor: str) -> dict[str, Array]:
        """Per-token means over a text."""
        names = ("nll_sequence", "expected_entropy", "sequence_information")
        return {name: self._columns[name] / self._size for name in names}

    def length_scores(self) -> dict[str, Array]:
        """Lengths of prompt and text."""
        return lengths_only(self.num_tokens, self._size)

    def reliability(self, predictor: str, rows: IntArray) -> tuple[Array, Array]:
        """Nothing: the tokens' mixture is not known."""
        return np.empty(0), np.empty(0)
