"""The Fisher matrix over all tensors at once, by its leading eigenvectors at a network's weights.

``vlora.posterior.leading`` on this benchmark's network: per-row gradients under every class (the expected Fisher
matrix, what ``vlora posterior`` takes for up to eight classes). h plays no part.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.classification_uq.network import Network
from benchmarks.posterior_quality.linearised import ROWS, logit_gradients
from benchmarks.posterior_quality.tasks import Rows
from vlora.posterior import Posterior
from vlora.posterior.kronecker import Independent
from vlora.posterior.leading import Leading

__all__ = ["fisher_gradients", "jacobians", "measure_directions", "shares_left"]


def measure_directions(network: Network, posterior: Posterior, rows: Rows, directions: int) -> Leading:
    """Leading eigenvectors of the Fisher matrix of all training rows, at the network's weights.

    Args:
        network: Its weights are the posterior's mean.
        posterior: Names the tensors.
        rows: Training rows; labels are not looked at.
        directions: Most eigenvectors.
    """
    return Leading.of(fisher_gradients(network, posterior, rows), directions)


def shares_left(
    network: Network, posterior: Posterior, rows: Rows, whole: Leading, precisions: Sequence[float]
) -> dict[float, Tensor]:
    """:meth:`vlora.posterior.leading.Leading.share_left` of every row by prior precision, ``(N,)``."""
    parts: dict[float, list[Tensor]] = {precision: [] for precision in precisions}
    for _, jacobian in jacobians(network, posterior, rows):
        for precision, own in parts.items():
            own.append(whole.share_left(jacobian, precision))
    return {precision: torch.cat(own) for precision, own in parts.items()}


def fisher_gradients(network: Network, posterior: Posterior, rows: Rows) -> Iterator[dict[str, Tensor]]:
    """Gradients of log p_k times the root of p_k, for every row and class: ``(N C, *tensor)`` by key."""
    for logits, jacobian in jacobians(network, posterior, rows):
        shares = logits.softmax(-1)
        mixing = shares.sqrt()[..., None] * (torch.eye(logits.shape[1]) - shares[:, None])  # (N, k, j)
        yield {
            key: (mixing @ own.flatten(2)).flatten(0, 1).unflatten(1, own.shape[2:])
            for key, own in jacobian.items()
        }


def jacobians(
    network: Network, posterior: Posterior, rows: Rows
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Logits ``(N, C)`` and their gradients ``(N, C, *tensor)`` by key, some rows at a time."""
    network.eval()
    plain = {"plain": {key: Independent(torch.ones_like(own)) for key, own in posterior.hess.items()}}
    for i in range(0, len(rows), ROWS):
        values, found = logit_gradients(network, rows.hidden[i : i + ROWS], rows.mask[i : i + ROWS], plain)
        yield values, found["plain"]
