"""``vlora curvature``: the Kronecker factors of a whole model, in a file beside its weights, for merging."""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from vlora.curvature import collect_curvature, linear_layers
from vlora.data import DataConfig, data_collator, fitting_length
from vlora.data.config import Task, check_counts, check_seed
from vlora.data.pieces import shuffled_batches
from vlora.errors import ConfigError, OutputError, OutputExistsError
from vlora.files import atomic_file
from vlora.grams import compress_grams
from vlora.models import load_base_model, load_model_config, load_tokenizer
from vlora.posterior.folder import write_tensors
from vlora.posterior.hashing import CURVATURE
from vlora.training.prepare import encode_splits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CurvatureConfig", "run_curvature"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CurvatureConfig:
    """One pass over data at the weights of a whole model."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """Model folder, or hub id with ``output``; a model, not an adapter."""
    task: Task
    """As in ``vlora train``."""
    data: DataConfig
    """Rows that the model was trained on."""
    output: str | None = None
    """File to write; ``curvature.safetensors`` in the model's folder if not given."""
    layers: str | None = None
    """Regular expression that is searched in the names of linear layers; all but the one that predicts tokens if not
    given."""
    activations: bool = False
    """Gather the unweighted Gram of the inputs as well, for ``method: regmean``."""
    joined: bool = True
    """Add the gradients of a row's tokens up before they are squared; false takes tokens as independent."""
    rank: int | None = None
    """Directions kept per matrix, the rest as one isotropic value; whole matrices if not given."""
    max_examples: int | None = 2048
    """At most so many rows."""
    passes: int = 1
    """Go over the data so many times, with a share of the layers each, to hold fewer whole matrices at once."""
    batch_size: int = 16
    """Rows in one forward pass."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights while they are measured."""
    seed: int = 0
    """Seed of the order of rows."""
    revision: str | None = None
    """Revision of a hub id."""
    trust_remote_code: bool = False
    """Let code from the model's repository run."""
    overwrite: bool = False
    """Replace a former file."""

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        check_counts(self, ("rank", "max_examples", "passes", "batch_size"))


def run_curvature(config: CurvatureConfig) -> Path:
    """Measure G and S (:mod:`vlora.curvature`) of the linear layers of a model and write them.

    Args:
        config: The run.

    Returns:
        The file that was written.

    Raises:
        ConfigError: A setting is not usable, or the model is an adapter or has no head for the task.
        DataError: The data are not usable.
        IncompatibleAdaptersError: A layer is not linear.
        OutputExistsError: The file exists and ``overwrite`` is false.
        TrainingError: A loss or gradient is not finite.
    """
    started, target = time.perf_counter(), _target(config)
    model, batches = _prepare(config)
    names = list(linear_layers(model, config.layers))
    found: dict[str, Tensor] = {}
    for share in _shares(names, config.passes):
        gathered = collect_curvature(
            model,
            batches,
            max_examples=config.max_examples,
            activations=config.activations,
            joined=config.joined,
            layers=f"^(?:{'|'.join(map(re.escape, share))})$",
        )
        found |= gathered if config.rank is None else compress_grams(gathered, config.rank)
    with atomic_file(target) as path:
        write_tensors(path, found)
    logger.info("measured %d layers in %.1f s", len(names), time.perf_counter() - started)
    return target


def _target(config: CurvatureConfig) -> Path:
    target = (
        Path(config.output).expanduser() if config.output else Path(config.model).expanduser() / CURVATURE
    )
    if (Path(config.model).expanduser() / "adapter_config.json").is_file():
        raise ConfigError(
            f"model: {config.model} is an adapter; vlora posterior with curvature: true measures adapters"
        )
    if config.output is None and not target.parent.is_dir():
        raise ConfigError(
            f"model: no folder {config.model} here to write {CURVATURE} into; of a hub id name a file in output"
        )
    if target.is_dir():
        raise OutputError(f"output: {target} is a folder; name a file in it, such as {target / CURVATURE}")
    if target.exists() and not config.overwrite:
        raise OutputExistsError(f"{target} exists; set overwrite: true to replace it")
    return target


def _prepare(config: CurvatureConfig) -> tuple["PreTrainedModel", Any]:
    """The model and its batches; the cheap and fragile things first."""
    origin: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    settings = load_model_config(config.model, **origin)
    labels = _labels(config, settings) if config.task == "sequence_classification" else config.data.labels
    tokenizer = load_tokenizer(config.model, **origin)
    data = replace(config.data, labels=labels)
    data, rows, _ = encode_splits(config.task, data, tokenizer, fitting_length(data, tokenizer, settings))
    device = torch.accelerator.current_accelerator(check_available=True)
    model = load_base_model(
        config.model,
        task=config.task,
        dtype=config.dtype,
        id2label=data.labels,
        device_map=None if device is None else {"": str(device)},
        **origin,
    )
    if config.task != "sequence_classification":
        model.config.use_cache = False
    collate = data_collator(config.task, tokenizer)
    return model, shuffled_batches(rows, collate, batch_size=config.batch_size, seed=config.seed)


def _labels(config: CurvatureConfig, settings: Any) -> list[str] | None:
    """Class names in the order of the head: as given, else as the model has them; None for nameless ones."""
    kind = next(iter(settings.architectures or ()), "")
    if "SequenceClassification" not in kind:
        raise ConfigError(
            f"model: {config.model} was saved as {kind or 'an unknown class'}, without a head for classes; "
            "give the fine-tuned model, as a new head would be random"
        )
    names = [settings.id2label[index] for index in sorted(settings.id2label)]
    nameless = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return config.data.labels or (None if nameless else names)


def _shares(names: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    """Neighbouring layers, in about equal numbers."""
    size = -(-len(names) // count)
    for start in range(0, len(names), size):
        yield names[start : start + size]
