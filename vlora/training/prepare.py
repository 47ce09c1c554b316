"""What a run needs before its first step: data as tokens, the base model, the adapter on it."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vlora.data import DataConfig, EncodedDataset, class_names, data_collator, encode_examples
from vlora.data.config import Task
from vlora.data.encode import fitting_length
from vlora.data.examples import examples_from_rows
from vlora.data.sources import load_rows, take_rows
from vlora.errors import ConfigError, VloraError
from vlora.models import load_base_model, load_model_config, load_tokenizer
from vlora.posterior.keys import saved_tensors, unsaved_parameters
from vlora.training.adapters import add_adapter, peft_config
from vlora.training.config import TrainConfig
from vlora.training.start import Start, read_start

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prepared", "encode_splits", "prepare"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """Everything that training works on; ``config`` has the class names filled in."""

    config: TrainConfig
    tokenizer: "PreTrainedTokenizerBase"
    model: "PeftModel"
    train: EncodedDataset
    validation: EncodedDataset | None
    collate: Any
    start: Start | None = None
    """What the adapter holds before the first step, if not a random start."""


def prepare(config: TrainConfig) -> Prepared:
    """Load and encode the data, load the base model, add the adapter; the cheap and fragile things first.

    Raises:
        ConfigError: a model or PEFT setting is not usable.
        DataError: the data are not usable.
    """
    from transformers import set_seed

    origin: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    base_config = load_model_config(config.base_model, **origin)
    tokenizer = load_tokenizer(config.base_model, **origin)
    start = None if config.start is None else read_start(config.start, config.peft, task=config.task)
    if start is None:
        adapter = peft_config(config.peft, task=config.task, model_type=base_config.model_type)
    else:
        adapter = start.config
    virtual = getattr(adapter, "num_virtual_tokens", None) or 0
    limit = fitting_length(config.data, tokenizer, base_config, num_virtual_tokens=virtual)
    data, train, validation = encode_splits(config.task, config.data, tokenizer, limit)
    config = replace(config, data=data)
    if start is not None:
        start.check_data(config.base_model, config.revision, data.labels)
    set_seed(config.seed)  # a new classification head
    base = load_base_model(
        config.base_model,
        task=config.task,
        dtype=config.dtype,
        quantization=config.quantization,
        id2label=data.labels,
        **origin,
    )
    if config.training.get("gradient_checkpointing"):
        base.enable_input_require_grads()  # the embeddings are frozen, so nothing else would carry the graph
    set_seed(config.seed)  # the adapter's start depends on the seed alone, not on what was drawn before
    model = add_adapter(base, adapter, getattr(torch, config.adapter_dtype))
    if start is not None:
        start.load_into(model)
    if config.optimizer.name == "ivon":
        _require_exportable(model)
    collate = data_collator(config.task, tokenizer)
    return Prepared(config, tokenizer, model, train, validation, collate, start)


def encode_splits(
    task: Task, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", limit: int
) -> tuple[DataConfig, EncodedDataset, EncodedDataset | None]:
    """Training and validation rows as tokens, with one set of class names for both.

    Args:
        task: What the rows are for.
        data: Sources and how to read them.
        tokenizer: Tokenizer of the base model.
        limit: Longest row in tokens.

    Returns:
        The data settings with the class names filled in, training rows, and validation rows if there are any.

    Raises:
        DataError: the data are not usable.
    """
    rows = load_rows(data.train, split="train")
    if task == "sequence_classification" and data.labels is None:
        data = replace(data, labels=class_names(rows, data.label))
    rows = take_rows(rows, data.max_rows, data.seed)
    train = _encode_rows(task, data, rows, "train", tokenizer, limit)
    if data.validation is None:
        return data, train, None
    rows = load_rows(data.validation, split="validation", max_rows=data.max_validation_rows, seed=data.seed)
    return data, train, _encode_rows(task, data, rows, "validation", tokenizer, limit)


def _encode_rows(
    task: Task, data: DataConfig, rows: Any, split: str, tokenizer: "PreTrainedTokenizerBase", limit: int
) -> EncodedDataset:
    """One split as tokens, with a line about it in the log."""
    examples = examples_from_rows(task, rows, data, split=split)
    encoded = encode_examples(task, examples, tokenizer, data, max_length=limit)
    logger.info(
        "%s: %d examples, %d rows, %d tokens (%d with a loss), %d truncated to %d tokens",
        *(split, encoded.num_examples, len(encoded), encoded.num_tokens),
        *(encoded.num_target_tokens, encoded.num_truncated, limit),
    )
    return encoded


def _require_exportable(model: "PeftModel") -> None:
    """Make sure before training that the posterior can be saved after it."""
    try:
        tensors = saved_tensors(model)
    except VloraError as error:
        raise ConfigError(f"optimizer ivon: {error}; or take optimizer.name=adamw") from error
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    lost = unsaved_parameters(model, tensors, trained)
    if lost:
        raise ConfigError(
            f"optimizer ivon: PEFT does not save {len(lost)} tensors that this trains, first {lost[0]!r}; "
            "use optimizer.name=adamw or another peft.type"
        )
