"""What one posterior says, single or merged: mean, draws, dropout, linearised model and the share that is left."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from benchmarks.classification_uq.arms import Predictions, linearised
from benchmarks.classification_uq.leading import jacobians
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.share import CHOSEN, Gram
from benchmarks.posterior_quality.arms import CHOICE_DRAWS, DRAWS, PRIORS, draw_log_probs
from benchmarks.posterior_quality.linearised import KINDS, by_prior
from benchmarks.posterior_quality.scores import draws_nll
from benchmarks.posterior_quality.tasks import Rows
from vlora import Posterior
from vlora.posterior.keys import adapter_tensors

__all__ = ["Heard", "hear", "shares_left"]

Heard = Predictions
Std = Mapping[str, Tensor]
"""Standard deviations by key of the adapter."""
LINEARISED = {"ivon": "ivon", "adamw": "laplace"}
"""Who trained -> name of the linearised posterior."""


def hear(
    by: str,
    posterior: Posterior,
    rows: Mapping[str, Rows],
    train: Rows,
    seed: int,
    out: Heard,
    *,
    whole: bool,
) -> None:
    """Add what a posterior says about rows, by the names of :mod:`benchmarks.classification_uq.scores`.

    Args:
        by: ``ivon`` or ``adamw``.
        posterior: Single or merged.
        rows: By split; ``validation`` chooses widths and priors.
        train: Rows whose Fisher matrix the share that is left has.
        seed: Of the draws.
        out: Added to.
        whole: Whether everything is asked; else the mean, and IVON's linearised posterior with Kronecker factors.
    """
    network = Network.of(posterior, 2)
    out.add(by, {split: network.log_probs(own) for split, own in rows.items()})
    if whole or by == "ivon":
        kinds = tuple(KINDS) if whole and by == "ivon" else ("kronecker",)
        linearised(network, posterior, rows, LINEARISED[by], out, kinds)
    if not whole:
        return
    if by == "ivon":
        out.add(
            "draws", {s: drawn(network, posterior, posterior.std(), own, seed) for s, own in rows.items()}
        )
    else:
        torch.manual_seed(seed)
        out.add(
            "dropout",
            {
                s: torch.stack([network.log_probs(o, dropout=True) for _ in range(DRAWS)])
                for s, o in rows.items()
            },
        )
        std, out.facts["laplace_prior"] = laplace_width(network, posterior, rows["validation"], seed)
        out.add("laplace", {s: drawn(network, posterior, std, own, seed) for s, own in rows.items()})
    asked = {
        split: own for split, own in rows.items() if split.endswith(("clean", "ambiguous", "near", "far"))
    }
    left, out.facts[f"{by}_typical"] = shares_left(network, posterior, train, asked)
    out.add(f"{by}_left", left)


def drawn(
    network: Network, posterior: Posterior, std: Std, rows: Rows, seed: int, count: int = DRAWS
) -> Tensor:
    """Log-probabilities ``(S, N, C)`` of antithetic draws; what has no standard deviation stays."""
    live = adapter_tensors(network.peft, posterior.mean)
    width = {id(live[key]): own for key, own in std.items()}
    mean = [parameter.detach().clone() for parameter in network.trained()]
    wide = [width.get(id(parameter), torch.zeros(())) for parameter in network.trained()]
    return draw_log_probs(network, mean, wide, rows, seed, count)


def laplace_width(network: Network, posterior: Posterior, validation: Rows, seed: int) -> tuple[Std, float]:
    """Independent standard deviations at temperature 1 under the prior of lowest validation NLL, and that prior."""
    found = {
        prior: {key: one.std for key, one in spread.items()}
        for prior, spread in by_prior(posterior, "linearised", PRIORS).items()
    }

    def nll(prior: float) -> float:
        draws = drawn(network, posterior, found[prior], validation, seed, CHOICE_DRAWS)
        return draws_nll(draws, validation.label)

    best = min(PRIORS, key=nll)
    return found[best], best


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
