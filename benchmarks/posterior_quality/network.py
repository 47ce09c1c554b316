"""The part of MiniLM that is trained: LoRA on its last layer and a classifier, over cached features."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.posterior_quality.tasks import BASE, FROZEN_LAYERS, Rows

DROPOUT = 0.1


class Network(nn.Module):
    """A real PEFT model (``self.peft``) of which only the last layer, pooler and classifier are run.

    Args:
        num_classes: Number of classes.
        seed: Seed of the adapter's and the classifier's start.
        adapter: Content of an ``adapter_config.json``, for an adapter of another rank or scaling.
    """

    def __init__(self, num_classes: int, seed: int, adapter: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        from peft import LoraConfig, PeftConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification, logging, set_seed

        logging.set_verbosity_error()
        set_seed(seed)
        warnings.simplefilter("ignore", FutureWarning)
        base = AutoModelForSequenceClassification.from_pretrained(
            BASE, num_labels=num_classes, hidden_dropout_prob=DROPOUT, attention_probs_dropout_prob=DROPOUT
        )
        config = LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value", "dense"],
            layers_to_transform=[FROZEN_LAYERS], modules_to_save=["classifier"],
        )  # fmt: skip
        self.peft = get_peft_model(base, PeftConfig.from_peft_type(**adapter) if adapter else config)
        model: Any = self.peft.base_model.model
        self.layer: Any = model.bert.encoder.layer[FROZEN_LAYERS]
        self.pooler, self.dropout, self.classifier = model.bert.pooler, model.dropout, model.classifier

    def trained(self) -> list[nn.Parameter]:
        """Trainable parameters."""
        return [parameter for parameter in self.peft.parameters() if parameter.requires_grad]

    def linear_layers(self) -> dict[nn.Module, tuple[str, str | None]]:
        """Trained linear layers with the keys of their weight and bias in an adapter file."""
        found: dict[nn.Module, tuple[str, str | None]] = {}
        for name, module in self.peft.named_modules():
            for factor in ("lora_A", "lora_B"):
                if name.endswith(f".{factor}.default"):
                    found[module] = (f"{name.removesuffix('.default')}.weight", None)
        head = "base_model.model.classifier"
        found[self.classifier.modules_to_save["default"]] = (f"{head}.weight", f"{head}.bias")
        return found

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits ``(N, C)`` from hidden states ``(N, L, 384)``; padding beyond the longest row is cut."""
        longest = int(mask.sum(1).max())
        hidden, mask = hidden[:, :longest], mask[:, :longest]
        blocked = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        out = self.layer(hidden, blocked)
        return self.classifier(self.dropout(self.pooler(out[0] if isinstance(out, tuple) else out)))

    @torch.no_grad()
    def log_probs(self, rows: Rows, *, dropout: bool = False) -> Tensor:
        """Log-probabilities ``(N, C)`` with the weights as they are."""
        self.train(dropout)
        parts = [self(rows.hidden[i : i + 100], rows.mask[i : i + 100]) for i in range(0, len(rows), 100)]
        return torch.log_softmax(torch.cat(parts), -1)
