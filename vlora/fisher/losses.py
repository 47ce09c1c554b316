r"""The loss of each example of a batch, under the labels of the data or under labels that the model draws.

A *place* is where a label is predicted: the one class of a classified row, or a target token of a text (its
logits stand one position earlier). The loss of example i is the sum over its places

.. math:: \ell_i = -\sum_t \log p(y_{it} \mid x_i, y_{i,<t}),

the negative log-likelihood of the whole row, in nats; an example of a causal model is one sequence. Classes are
single labels (a softmax), as everywhere in vlora.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlora.data.places import at_labels
from vlora.errors import DataError, TrainingError

__all__ = ["LabelKind", "Places", "Reduction", "example_losses", "label_passes", "read_places"]

LabelKind = Literal["given", "sampled", "expected"]
"""``given``: the labels of the data (empirical Fisher). ``sampled``: labels drawn from the model (true Fisher,
an unbiased estimate). ``expected``: the exact mean over all classes (true Fisher; classification only)."""

Reduction = Literal["mean", "token_mean"]
"""``mean``: per example, the loss of a text being the sum over its tokens. ``token_mean``: per target token."""


@dataclass(frozen=True)
class Places:
    """All places of a batch of n rows, in row order.

    Attributes:
        logits: float32 [M, C], with their graph.
        targets: Labels of the data, int64 [M].
        row_of: Row that each place belongs to, int64 [M].
        num_rows: n.
        is_text: Whether the places are tokens of a causal model.
    """

    logits: Tensor
    targets: Tensor
    row_of: Tensor
    num_rows: int
    is_text: bool

    def row_losses(self, targets: Tensor) -> Tensor:
        """Sum of the negative log-likelihoods of each row's places, nats, float32 [n]."""
        losses = functional.cross_entropy(self.logits, targets, reduction="none")
        return losses.new_zeros(self.num_rows).index_add(0, self.row_of, losses)


def read_places(model: nn.Module, batch: Mapping[str, Any]) -> Places:
    """Run the model on a batch and find where labels are predicted.

    Raises:
        DataError: No labels, or logits that do not fit them.
        TrainingError: The loss under the given labels is not finite.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() not in (1, 2):
        raise DataError(f"expected 'labels' [rows] or [rows, tokens] in every batch, got keys {list(batch)}")
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items() if k != "labels"}
    logits, labels = model(**inputs).logits, labels.to(device)
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}: expected "
            "one class a row, or one token a position"
        )
    found, targets, row_of = at_labels(logits, labels)
    places = Places(found.float(), targets, row_of, len(labels), is_text=labels.dim() == 2)
    if not places.logits.isfinite().all():
        raise TrainingError(
            "the model's logits hold NaN or infinity: the weights or inputs may not be finite"
        )
    return places


@torch.no_grad()
def example_losses(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Negative log-likelihood of every row under the labels of the data, nats, float32 [n]; the model as it is.

    Raises:
        DataError: See :func:`read_places`.
        TrainingError: The loss is not finite.
    """
    places = read_places(model, batch)
    return places.row_losses(places.targets)


def label_passes(
    places: Places, kind: LabelKind, *, seed: int, first_row: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs (row losses, row weights) whose weighted squared gradients add up to each row's Fisher diagonal.

    Args:
        places: The batch.
        kind: Where the labels come from.
        seed: Seed of drawn labels.
        first_row: Number of the batch's first row in the whole pass: draws belong to rows, not to batches.

    Raises:
        DataError: ``expected`` for texts, whose label sets cannot be enumerated.
    """
    ones = places.logits.new_ones(places.num_rows)
    if kind == "given":
        yield places.row_losses(places.targets), ones
    elif kind == "sampled":
        yield places.row_losses(_draw(places, seed, first_row)), ones
    elif places.is_text:
        raise DataError("the exact Fisher sums over all labels, which texts have too many of; use 'sampled'")
    else:
        probabilities = places.logits.detach().softmax(-1)
        for label in range(places.logits.shape[-1]):
            weights = torch.zeros_like(ones).index_add(0, places.row_of, probabilities[:, label])
            yield places.row_losses(torch.full_like(places.targets, label)), weights


def _draw(places: Places, seed: int, first_row: int) -> Tensor:
    """One label per place from the model's own distribution, by inverting its distribution function."""
    counts = torch.bincount(places.row_of, minlength=places.num_rows).tolist()
    uniform = np.concatenate([_uniform(seed, first_row + row, count) for row, count in enumerate(counts)])
    cumulative = places.logits.detach().softmax(-1).cumsum(-1)
    u = torch.from_numpy(uniform).to(cumulative) * cumulative[:, -1]  # rounding leaves the total beside 1
    return (
        torch.searchsorted(cumulative, u.unsqueeze(-1), right=True)
        .squeeze(-1)
        .clamp_max(cumulative.shape[-1] - 1)
    )


def _uniform(seed: int, row: int, count: int) -> np.ndarray:
    """Numbers of one row, the same on every machine and whatever batch the row is in."""
    digest = hashlib.sha256(f"vlora-labels/1/{seed}/{row}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.random(count)
