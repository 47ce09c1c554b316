"""What ``vlora posterior`` needs before its first pass: the adapter, its data as tokens, the model that wears it."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vlora.data import DataConfig, EncodedDataset, data_collator, fitting_length
from vlora.data.pieces import shuffled_batches
from vlora.errors import ConfigError, DataError
from vlora.laplace.config import Fisher, PosteriorConfig
from vlora.models import load_adapter, load_base_model, load_model_config, load_tokenizer, num_labels_of
from vlora.posterior import Posterior
from vlora.training.prepare import encode_splits

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["Prepared", "prepare"]

logger = logging.getLogger(__name__)

_MANY_CLASSES = 8


@dataclass(frozen=True)
class Prepared:
    """Adapter, model at its weights, and rows; ``config`` has base model, class names and Fisher filled in."""

    config: PosteriorConfig
    adapter: Posterior
    model: "PeftModel"
    train: EncodedDataset
    validation: EncodedDataset | None
    collate: Any
    fisher: Fisher

    def batches(self, rows: EncodedDataset) -> Any:
        """Rows in a seeded order, the same at every pass."""
        generator = {"batch_size": self.config.batch_size, "seed": self.config.seed}
        return shuffled_batches(rows, self.collate, **generator)


def prepare(config: PosteriorConfig) -> Prepared:
    """Read the adapter and the data, then load the model; the cheap and fragile things first.

    Raises:
        ConfigError: A setting is not usable, or the adapter is no LoRA.
        DataError: The data are not usable, or their classes are not those of the adapter.
        PosteriorFormatError: The adapter folder is damaged or does not fit its base model.
    """
    adapter = _lora(config.adapter)
    base = config.base_model or adapter.adapter_config.get("base_model_name_or_path")
    if not (base := base or adapter.meta.base_model.get("id")):
        raise ConfigError(f"base_model is needed: {config.adapter} does not name its base model")
    origin: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    tokenizer = load_tokenizer(base, **origin)
    limit = fitting_length(config.data, tokenizer, load_model_config(base, **origin))
    data, train, validation = encode_splits(config.task, _labelled(config, adapter), tokenizer, limit)
    classes = _classes(config, adapter, data)
    device = torch.accelerator.current_accelerator(check_available=True)
    model = load_base_model(
        base,
        task=config.task,
        dtype=config.dtype,
        quantization=config.quantization,
        id2label=data.labels,
        device_map=None if device is None else {"": str(device)},
        **origin,
    )
    if config.task != "sequence_classification":
        model.config.use_cache = False  # nothing is generated; a cache would only cost memory
    fisher = config.fisher or ("expected" if classes and classes <= _MANY_CLASSES else "sampled")
    config = replace(config, base_model=base, data=data, fisher=fisher)
    collate = data_collator(config.task, tokenizer)
    return Prepared(config, adapter, load_adapter(model, adapter), train, validation, collate, fisher)


def _lora(source: str) -> Posterior:
    """The adapter, which must have LoRA factors."""
    adapter = Posterior.from_pretrained(source)
    kind = adapter.adapter_config.get("peft_type")
    if kind != "LORA" or not any(".lora_" in key for key in adapter.mean):
        raise ConfigError(
            f"adapter: expected a LoRA adapter, {source} is of peft_type {kind}, without LoRA factors"
        )
    if adapter.has_hess:
        logger.warning("%s has a posterior already; its h is not used, only its mean", source)
    return adapter


def _labelled(config: PosteriorConfig, adapter: Posterior) -> DataConfig:
    """Data settings with the class names that the adapter was trained with, where it knows them."""
    if config.task != "sequence_classification" or config.data.labels is not None or not adapter.meta.labels:
        return config.data
    return replace(config.data, labels=list(adapter.meta.labels))


def _classes(config: PosteriorConfig, adapter: Posterior, data: DataConfig) -> int | None:
    """Number of classes; the rows and the adapter's own head must agree."""
    if config.task != "sequence_classification":
        return None
    count, head = len(data.labels or ()), num_labels_of(adapter)
    if head is not None and head != count:
        raise DataError(
            f"the adapter's head has {head} classes, the data {count} ({', '.join(data.labels or ())}): give "
            "data.labels in the order of training"
        )
    return count
