"""Where a model predicts the labels of a batch: one class a row, or the tokens of a text that are not masked."""

import torch
from torch import Tensor

from vlora.data.encode import IGNORE

__all__ = ["at_labels"]


def at_labels(logits: Tensor, labels: Tensor, *, aligned: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Logits at the places of the labels, in row order.

    Args:
        logits: [rows, classes], or [rows, tokens, vocabulary].
        labels: [rows] or [rows, tokens]; -100 is not predicted.
        aligned: Logits of a token stand where its label does (encoder-decoders, token classifiers), and not one
            position earlier, as in a causal model.

    Returns:
        Logits [M, classes] with their graph, labels [M], and the row that each of the M places belongs to.
    """
    if labels.dim() == 2 and not aligned:
        logits, labels = logits[:, :-1], labels[:, 1:]
    known = labels != IGNORE
    rows = torch.arange(len(labels), device=labels.device).reshape(-1, *[1] * (labels.dim() - 1))
    return logits[known], labels[known], rows.expand_as(labels)[known]
