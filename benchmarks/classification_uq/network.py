"""posterior_quality's network with a forward pass that computes nothing but the first token, about ten times cheaper.

Only the first token leaves the last layer, so there is one query a head. Keys are not adapted and values are linear:

    score(h, t) = q_h . (W_k,h x_t) = (W_k,h^T q_h) . x_t,        out_h = W_v,h sum_t p(h, t) x_t

so the hidden states are scored and averaged as they are, and both projections run once a head instead of once a token
(the keys' bias is the same for all tokens of a head and falls out of the softmax). The function is that of the whole
layer; under attention dropout the values' bias is not dropped, which is the only difference.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout

from benchmarks.posterior_quality import network
from benchmarks.posterior_quality.tasks import Rows
from vlora import Posterior

__all__ = ["HEADS", "Network"]

HEADS = 12


class Network(network.Network):
    """LoRA on MiniLM's last layer and a classifier, evaluated at the first token.

    Args:
        num_classes: Number of classes.
        seed: Seed of the adapter's and the classifier's start.
        head: Weights and biases of a classifier that is not trained, ``(C, 385)``; None trains its own.
        adapter: Content of an ``adapter_config.json``, for an adapter of another rank or scaling.
    """

    def __init__(
        self,
        num_classes: int,
        seed: int,
        head: Tensor | None = None,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, seed, adapter)
        if head is not None:
            classifier: Any = self.classifier.modules_to_save["default"]
            with torch.no_grad():
                classifier.weight.copy_(head[:, :-1])
                classifier.bias.copy_(head[:, -1])
            classifier.requires_grad_(False)

    @classmethod
    def of(cls, posterior: Posterior, num_classes: int) -> "Network":
        """A network that holds the mean of a posterior."""
        from peft import set_peft_model_state_dict

        made = cls(num_classes, 0, adapter=posterior.adapter_config)
        set_peft_model_state_dict(made.peft, dict(posterior.mean))
        return made

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(N, C)`` from hidden states ``(N, L, 384)``; padding beyond the longest row is cut."""
        return self.classifier(self.dropout(self.pooled(hidden, mask)))

    def pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pooled state of the first token, ``(N, 384)``."""
        longest = int(mask.sum(1).max())
        hidden, mask = hidden[:, :longest], mask[:, :longest]
        attention, first = self.layer.attention, hidden[:, :1]
        context = self._attend(attention.self, first, hidden, mask)
        mixed = attention.output.LayerNorm(attention.output.dropout(attention.output.dense(context)) + first)
        output = self.layer.output
        out = output.LayerNorm(output.dropout(output.dense(self.layer.intermediate(mixed))) + mixed)
        return self.pooler(out)

    def _attend(self, attention: Any, first: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        """What the first token attends to, ``(N, 1, 384)``."""
        asked = attention.query(first).unflatten(-1, (HEADS, -1)).squeeze(1)
        keys = attention.key.weight.unflatten(0, (HEADS, -1))
        scores = torch.einsum("nhe,hed->nhd", asked, keys) @ hidden.mT / asked.shape[-1] ** 0.5
        share = scores.masked_fill(mask[:, None] == 0, -torch.inf).softmax(-1)
        average = dropout(share, attention.dropout.p, self.training) @ hidden
        values = attention.value(average).unflatten(-1, (HEADS, -1))  # every head's average under every head
        return values.diagonal(dim1=1, dim2=2).mT.flatten(1).unsqueeze(1)

    @torch.no_grad()
    def states(self, rows: Rows) -> Tensor:
        """Pooled states of many rows without dropout, ``(N, 384)``."""
        self.eval()
        parts = [(rows.hidden[i : i + 100], rows.mask[i : i + 100]) for i in range(0, len(rows), 100)]
        return torch.cat([self.pooled(*part) for part in parts])
