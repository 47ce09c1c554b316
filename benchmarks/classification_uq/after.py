"""What one posterior says, single or merged: mean, draws, dropout, linearised model, distance, share that is left."""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.classification_uq.arms import Predictions, distances, linearised
from benchmarks.classification_uq.leading import jacobians
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.share import CHOSEN, Gram
from benchmarks.posterior_quality.arms import CHOICE_DRAWS, DRAWS, PRIORS
from benchmarks.posterior_quality.linearised import KINDS
from benchmarks.posterior_quality.scores import draws_nll
from benchmarks.posterior_quality.tasks import Rows
from vlora import Posterior

__all__ = ["Heard", "fitted_prior", "hear", "shares_left"]

Heard = Predictions
LINEARISED = {"ivon": "ivon", "adamw": "laplace"}
"""Who trained -> name of the linearised posterior."""
SCORED = ("clean", "ambiguous", "near", "far")
"""Ends of the names of splits that the share that is left is taken of."""


def hear(
    by: str,
    posterior: Posterior,
    rows: Mapping[str, Rows],
    train: Rows,
    seed: int,
    out: Heard,
    asked: Collection[str],
) -> None:
    """Add what a posterior says about rows, by the names of :mod:`benchmarks.classification_uq.scores`.

    Args:
        by: ``ivon`` or ``adamw``.
        posterior: Single or merged.
        rows: By split; ``validation`` chooses widths and priors.
        train: Rows whose Fisher matrix the share that is left has.
        seed: Of dropout.
        out: Added to.
        asked: Beside the mean ``linearised``: with Kronecker factors; ``more``: independent entries too, draws, the
            share that is left, and of AdamW dropout and the distance of the pooled state.
    """
    network = Network.of(posterior, 2)
    out.add(by, {split: network.log_probs(own) for split, own in rows.items()})
    if "linearised" in asked:
        kinds = tuple(KINDS) if "more" in asked else ("kronecker",)
        linearised(network, posterior, rows, LINEARISED[by], out, kinds)
    if "more" not in asked:
        return
    if by == "adamw":
        torch.manual_seed(seed)
        out.add("dropout", {split: dropped(network, own) for split, own in rows.items()})
        out.add("distance", distances(network, train, rows))
        out.facts["laplace_prior"] = fitted_prior(network, posterior, rows["validation"])
        wide = posterior.with_prior(out.facts["laplace_prior"])
        out.add("laplace", {s: drawn(network, wide, own) for s, own in rows.items()})
    else:
        out.add("draws", {s: drawn(network, posterior, own) for s, own in rows.items()})
    scored = {split: own for split, own in rows.items() if split.endswith(SCORED)}
    left, out.facts[f"{by}_typical"] = shares_left(network, posterior, train, scored)
    out.add(f"{LINEARISED[by]}_left", left)


def fitted_prior(network: Network, posterior: Posterior, validation: Rows) -> float:
    """Prior precision whose draws have the lowest NLL on validation rows."""

    def nll(prior: float) -> float:
        draws = drawn(network, posterior.with_prior(prior), validation, CHOICE_DRAWS)
        return draws_nll(draws, validation.label)

    return min(PRIORS, key=nll)


def dropped(network: Network, rows: Rows) -> Tensor:
    """Log-probabilities ``(S, N, C)`` of passes with dropout."""
    return torch.stack([network.log_probs(rows, dropout=True) for _ in range(DRAWS)])


def drawn(network: Network, posterior: Posterior, rows: Rows, num_draws: int = DRAWS) -> Tensor:
    """Log-probabilities ``(S, N, C)`` of the posterior's antithetic draws."""
    found = []
    for k in range(num_draws):
        with posterior.sampled(network.peft, k, antithetic=True):
            found.append(network.log_probs(rows))
    return torch.stack(found)


def shares_left(
    network: Network, posterior: Posterior, train: Rows, rows: Mapping[str, Rows]
) -> tuple[dict[str, Tensor], float]:
    """Share left of every row ``(N,)`` by split at the precision of the directions, two classes; and tr F^2 / tr F.

    Of two classes everything is in the difference d of the two gradients: F is the sum of p (1 - p) d d^T over training
    rows, and the trace of the logits' covariance apart from a shift is half the variance of their difference.
    """

    def differences(own: Rows) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for logits, jacobian in jacobians(network, posterior, own):
            yield logits.softmax(-1).prod(-1), {key: one[:, 0] - one[:, 1] for key, one in jacobian.items()}

    gram = Gram.of(
        {key: (noise.sqrt() * one.movedim(0, -1)).movedim(-1, 0) for key, one in chunk.items()}
        for noise, chunk in differences(train)
    )
    found = {
        split: gram.shares(
            ({key: one[:, None] for key, one in chunk.items()} for _, chunk in differences(own)),
            [CHOSEN * gram.typical],
            centred=True,
        )[0].float()
        for split, own in rows.items()
    }
    return found, gram.typical
