r"""Token- and sequence-level uncertainty of texts in one streaming pass over parameter vectors.

For the scored tokens ``y_1 .. y_T`` of a string and S draws (Malinin and Gales 2021, arXiv:2002.07650), in nats:

- at the mean: ``nll = -sum_t log p(y_t | y_<t)``, and for every token whether the top token is right, its
  probability (confidence) and the entropy;
- product of expectations, the per-token mixture: ``nll_samples = -sum_t log (1/S) sum_s p_s(y_t | y_<t)``;
- expectation of products, the posterior predictive of the string:
  ``nll_sequence = -log (1/S) sum_s prod_t p_s(y_t | y_<t)``;
- per token: total ``H((1/S) sum_s p_s)``, aleatoric (expected entropy) ``(1/S) sum_s H(p_s)``; their difference is the
  mutual information of token and parameters. Reverse information ``(1/S) sum_s KL(p_mix || p_s)``; the sum of the
  two is the expected pairwise divergence (EPKL);
- per string and draw, for the error that the draws leave in the numbers above: ``nll_by_draw`` = ``-log p_s(y)``,
  ``entropy_by_draw`` = ``sum_t H(p_s)``, and ``weight_by_draw`` = ``sum_t p_s(y_t | y_<t) / p_mix(y_t | y_<t)``, minus
  the slope of ``nll_samples`` in the weight of draw s (1 at every token where the draws agree);
- per string: ``nll_expected = -(1/S) sum_s log p_s(y)``; ``nll_expected - nll_sequence`` is the epistemic part of a
  string's score (reverse mutual information at y), and ``nll_std`` the spread of ``-log p_s(y)`` over draws (S - 1).

With ``temperatures`` also the log-likelihood of every text under ``p(.)^(1/T)``, normalised token by token, of the mean
(``nll_tempered``) and of the per-token mixture (``nll_samples_tempered``), for every T: what a temperature is fitted
to. With ``chosen`` temperatures, of ``mean`` or ``samples``, what is reported of the mean and of the mixture at them:
``nll_chosen``, ``confidence_chosen``, ``entropy_chosen`` and ``nll_samples_chosen``, ``sample_confidence_chosen``,
``sample_entropy_chosen``, with the temperatures themselves. The top token is the same at every temperature.

Accumulators hold [M, V] numbers, where M counts the scored tokens of a batch: the log of the mixture and the mean
log-probability. Samples pass one at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["TokenStream"]

_DECIMALS = 6
_PER_STRING = ("nll_sequence", "nll_expected", "nll_std")
_OF_DRAWS = (
    "nll_samples", *_PER_STRING, "sample_correct", "sample_confidence", "total_entropy", "expected_entropy",
    "reverse_information", "nll_by_draw", "entropy_by_draw", "weight_by_draw",
)  # fmt: skip
_BY_DRAW = ("nll_by_draw", "entropy_by_draw", "weight_by_draw")


class TokenStream:
    """Accumulates one batch of texts over the mean and the draws, in any order."""

    def __init__(
        self,
        targets: Tensor,
        counts: Sequence[int],
        temperatures: Sequence[float] = (),
        chosen: Mapping[str, float] | None = None,
    ) -> None:
        """Prepare for a batch.

        Args:
            targets: The scored tokens, text after text, int64 [M].
            counts: Scored tokens of each text.
            temperatures: Logit temperatures to score under as well.
            chosen: Temperature of ``mean`` and of ``samples`` to report at; what is not named is left out.
        """
        self._targets, self._counts, self._temperatures = targets, list(counts), temperatures
        self._chosen = chosen or {}
        self._at_mean: dict[str, Tensor] = {}
        self._mixture = self._mean_log = torch.empty(0)
        self._entropies: list[Tensor] = []
        self._realised_by_draw: list[Tensor] = []

    def add(self, draw: int | None, log_probs: Tensor) -> None:
        """Take the log-probabilities of the next token at every place under one vector, float32 [M, V]."""
        realised = self._realised(log_probs)
        if draw is None:
            confidence, correct = self._top(log_probs)
            self._at_mean = {"nll": -realised, "correct": correct, "confidence": confidence}
            self._at_mean["entropy"] = _entropy(log_probs)
            self._at_mean |= self._tempered("nll_tempered", log_probs)
            self._at_mean |= self._at_chosen("mean", log_probs)
            return
        bounded = log_probs.clamp_min(-1e4)
        first = not self._entropies
        self._mixture = log_probs if first else torch.logaddexp(self._mixture, log_probs)
        self._mean_log = bounded.clone() if first else self._mean_log.add_(bounded)
        self._entropies.append(_entropy(log_probs))
        self._realised_by_draw.append(realised)

    def add_all(self, draws: Sequence[int | None], logits: Iterable[Tensor]) -> None:
        """Take the logits under several vectors, [M, V] each, asked for one at a time and then float32."""
        for draw, one in zip(draws, logits, strict=True):
            self.add(draw, one.float().log_softmax(-1))

    def records(self) -> list[dict[str, Any]]:
        """One record a text: sums for ``nll*``, lists of tokens for the rest, None for what needs draws."""
        columns: dict[str, Tensor | None] = {**self._at_mean, **self._under_draws()}
        names = {"mean": "temperature", "samples": "sample_temperature"}
        fixed: dict[str, Any] = {names[of]: value for of, value in self._chosen.items()}
        if self._temperatures:
            fixed["temperatures"] = list(self._temperatures)
        records: list[dict[str, Any]] = [{"num_tokens": count, **fixed} for count in self._counts]
        for name, column in columns.items():
            for record, value in zip(records, self._values(name, column), strict=True):
                record[name] = value
        return records

    def _under_draws(self) -> dict[str, Any]:
        """Columns of the draws: per token [M] and per string [B]."""
        size = len(self._entropies)
        if size == 0:
            return dict.fromkeys(_OF_DRAWS)
        log_size = torch.tensor(float(size), dtype=torch.float64).log()
        mixture = self._mixture - log_size.to(self._mixture)
        realised, entropies = torch.stack(self._realised_by_draw), torch.stack(self._entropies)
        strings, mixed = self._sums(realised), self._realised(mixture)
        confidence, correct = self._top(mixture)
        total = _entropy(mixture)
        cross = -(mixture.exp() * (self._mean_log / size)).sum(-1).double().cpu()
        return {
            "nll_samples": -mixed,
            "nll_sequence": log_size - strings.logsumexp(0),
            "nll_expected": -strings.mean(0),
            "nll_std": strings.std(0) if size > 1 else torch.zeros_like(strings[0]),
            "sample_correct": correct,
            "sample_confidence": confidence,
            "total_entropy": total,
            "expected_entropy": entropies.mean(0),
            "reverse_information": (cross - total).clamp_min(0),
            "nll_by_draw": -strings,
            "entropy_by_draw": self._sums(entropies),
            "weight_by_draw": self._sums((realised - mixed).exp()),
            **self._tempered("nll_samples_tempered", mixture),
            **self._at_chosen("samples", mixture),
        }

    def _tempered(self, name: str, log_probs: Tensor) -> dict[str, Tensor]:
        """Negative log-likelihoods of the tokens at every temperature, float64 [T, M]; nothing without temperatures."""
        found = [-self._realised((log_probs / t).log_softmax(-1)) for t in self._temperatures]
        return {name: torch.stack(found)} if found else {}

    def _at_chosen(self, of: str, log_probs: Tensor) -> dict[str, Tensor]:
        """Columns of the mean or of the mixture at its chosen temperature; nothing without one."""
        if of not in self._chosen:
            return {}
        tempered = (log_probs / self._chosen[of]).log_softmax(-1)
        names = ("nll_samples", "sample_confidence", "sample_entropy")
        if of == "mean":
            names = ("nll", "confidence", "entropy")
        values = (-self._realised(tempered), self._top(tempered)[0], _entropy(tempered))
        return {f"{name}_chosen": value for name, value in zip(names, values, strict=True)}

    def _values(self, name: str, column: Tensor | None) -> Sequence[Any]:
        """One value a text."""
        if column is None:
            return [None] * len(self._counts)
        if name in _PER_STRING:
            return column.tolist()
        if name in _BY_DRAW:
            return column.T.round(decimals=_DECIMALS).tolist()
        if name.endswith("_tempered"):
            return [part.sum(1).tolist() for part in column.split(self._counts, dim=1)]
        if name.startswith("nll"):
            return [part.sum().item() for part in column.split(self._counts)]
        rounded = column if column.dtype == torch.long else column.round(decimals=_DECIMALS)
        return [part.tolist() for part in rounded.split(self._counts)]

    def _sums(self, values: Tensor) -> Tensor:
        """Sums over the tokens of every text, [S, M] to [S, B]."""
        return torch.stack([part.sum(1) for part in values.split(self._counts, dim=1)], dim=1)

    def _realised(self, log_probs: Tensor) -> Tensor:
        """Log-probability of the token that is there, float64 CPU [M]."""
        target = self._targets.to(log_probs.device)
        return log_probs.gather(-1, target[:, None])[:, 0].double().cpu()

    def _top(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of the most likely token, and whether it is the one that is there."""
        value, index = log_probs.max(-1)
        return value.double().exp().cpu(), (index.cpu() == self._targets).long()


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats, float64 CPU [M]; a probability that underflows to 0 adds 0."""
    return -(log_probs.exp() * log_probs.clamp_min(-1e4)).sum(-1).double().cpu()
