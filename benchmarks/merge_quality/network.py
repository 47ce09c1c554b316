"""The part of MiniLM that is adapted: LoRA on its last layer and a linear head on the pooled first token.

Only the first token leaves the last layer, so no other query is computed; the result is that of the whole layer.
Trained through a real PEFT model; for thousands of merged weights there is :class:`Merged`, which evaluates the same
function in about 2 million multiply-adds a row: with a single query the values are averaged before they are projected.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from benchmarks.merge_quality.tasks import FROZEN_LAYERS
from benchmarks.posterior_quality.tasks import BASE, Rows

RANK, ALPHA, HEADS, WIDTH = 8, 16, 12, 384
PREFIX = f"encoder.layer.{FROZEN_LAYERS}."
MODULES = tuple(
    PREFIX + name
    for name in (
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )  # fmt: skip
)
"""Adapted modules, in the order in which a row passes them."""


def load_base() -> Any:
    """MiniLM in float32, eval mode."""
    from transformers import AutoModel, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    return AutoModel.from_pretrained(BASE, dtype=torch.float32).eval()


class Network(nn.Module):
    """A real PEFT model (``self.peft``) of which only the last layer and the pooler are run, over cached features.

    Args:
        seed: Seed of the adapter's start.
        rank: Of the adapter.
    """

    def __init__(self, seed: int, rank: int = RANK) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        base = load_base()
        set_seed(seed)
        config = LoraConfig(
            r=rank, lora_alpha=2 * rank, target_modules=["query", "value", "dense"],
            layers_to_transform=[FROZEN_LAYERS],
        )  # fmt: skip
        self.peft = get_peft_model(base, config)
        inner: Any = self.peft.base_model.model
        self.layer, self.pooler = inner.encoder.layer[FROZEN_LAYERS], inner.pooler
        self.adapted: dict[str, Any] = {name: inner.get_submodule(name) for name in MODULES}

    def factors(self) -> list[nn.Parameter]:
        """A and B of all modules."""
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the factors of another adapter, ``<module>.a`` and ``<module>.b``."""
        for name, layer in self.adapted.items():
            layer.lora_A["default"].weight.copy_(tensors[f"{name}.a"])
            layer.lora_B["default"].weight.copy_(tensors[f"{name}.b"])

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pooled state of the first token, ``(N, 384)``; padding beyond the longest row is cut."""
        longest = int(mask.sum(1).max())
        hidden, seen = hidden[:, :longest].float(), mask[:, None, None, :longest].bool()
        attention, first = self.layer.attention, hidden[:, :1]
        query, key, value = (
            states.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for states in (
                attention.self.query(first),
                attention.self.key(hidden),
                attention.self.value(hidden),
            )
        )
        context = scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        mixed = attention.output.LayerNorm(attention.output.dense(context) + first)
        out = self.layer.output.dense(self.layer.intermediate(mixed))
        return self.pooler(self.layer.output.LayerNorm(out + mixed))

    @torch.no_grad()
    def states(self, rows: Rows) -> Tensor:
        """States of many rows with the weights as they are."""
        return torch.cat(
            [self(rows.hidden[i : i + 100], rows.mask[i : i + 100]) for i in range(0, len(rows), 100)]
        )


class Merged:
    """The same function with plain weights W_0 + delta in the adapted modules, without PEFT and without gradients."""

    def __init__(self) -> None:
        base = load_base()
        prefix = PREFIX.removesuffix(".")
        self.state = {k: v for k, v in base.state_dict().items() if k.startswith((PREFIX, "pooler"))}
        self.eps = base.get_submodule(f"{prefix}.output.LayerNorm").eps

    def keys(self, rows: Rows) -> Tensor:
        """Keys of all tokens, ``(N, HEADS, L, 32)``; they are not adapted, so once per set of rows."""
        name = f"{PREFIX}attention.self.key"
        found = linear(rows.hidden.float(), self.state[f"{name}.weight"], self.state[f"{name}.bias"])
        return found.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    @torch.no_grad()
    def states(self, rows: Rows, keys: Tensor, deltas: Mapping[str, Tensor]) -> Tensor:
        """Pooled states ``(N, 384)`` under W_0 + delta; a module without a delta keeps W_0."""
        query, value, mix, wide, narrow = (self._weights(name, deltas) for name in MODULES)
        hidden = rows.hidden.float()
        first = hidden[:, 0]
        asked = linear(first, *query).unflatten(-1, (HEADS, 1, -1))
        scores = (asked @ keys.mT).squeeze(2) / (WIDTH // HEADS) ** 0.5
        share = scores.masked_fill(rows.mask[:, None] == 0, -torch.inf).softmax(-1)
        average = share @ hidden  # (N, HEADS, 384): attention is linear in the values, so average before W_v
        per_head = value[0].unflatten(0, (HEADS, -1))
        context = torch.einsum("nhd,hed->nhe", average, per_head).flatten(1) + value[1]
        mixed = self._norm(linear(context, *mix) + first, "attention.output.LayerNorm")
        out = linear(gelu(linear(mixed, *wide)), *narrow)
        out = self._norm(out + mixed, "output.LayerNorm")
        return torch.tanh(linear(out, self.state["pooler.dense.weight"], self.state["pooler.dense.bias"]))

    def _weights(self, name: str, deltas: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        weight = self.state[f"{name}.weight"]
        return weight + deltas[name].float() if name in deltas else weight, self.state[f"{name}.bias"]

    def _norm(self, values: Tensor, name: str) -> Tensor:
        weight, bias = (self.state[f"{PREFIX}{name}.{part}"] for part in ("weight", "bias"))
        return layer_norm(values, (WIDTH,), weight, bias, self.eps)
