"""What a plan is made of before sizes are counted: jobs, small files, what does not fit, and the lineage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.checkpoints.headers import FLOATS, Checkpoint, TensorEntry
from vlora.merge.checkpoints.stream import TensorJob
from vlora.merge.layers import count_layers
from vlora.posterior.hashing import fingerprint_files

__all__ = [
    "DTYPE_NAMES",
    "Draft",
    "config_differences",
    "layer_count",
    "output_dtype",
]

DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

_UNIMPORTANT = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
)


@dataclass
class Draft:
    """The merge, tensor by tensor, and everything around it."""

    method: str
    jobs: list[TensorJob] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """``config.json`` of the output."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Per input: name, path, weight, identity of its content; for the lineage."""
    source_files: list[Sequence[Path]] = field(default_factory=list)
    """Per source: its files of weights; none for adapters, whose hashes are those of their content."""
    missing: dict[str, list[str]] = field(default_factory=dict)
    """Model -> tensors that it lacks."""
    extra: dict[str, list[str]] = field(default_factory=dict)
    """Model -> tensors that only it has."""
    mismatched: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Tensor -> model -> shape, where shapes differ."""
    problems: list[str] = field(default_factory=list)
    """What else stands in the way, one sentence each."""
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Key of ``config.json`` -> model -> value, where models differ; the first one's is kept."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know, one sentence each."""
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    """Kind of tensor -> how far the models agree, see :mod:`vlora.merge.checkpoints.agreement`."""
    adapter_report: dict[str, Any] = field(default_factory=dict)
    """Report of the merge of several adapters with each other, as :class:`vlora.merge.MergeReport` has it."""
    identities: dict[str, Any] = field(default_factory=dict)
    """What :func:`vlora.merge.checkpoints.verify.check_output` found."""
    files: dict[str, Path] = field(default_factory=dict)
    """Name -> source of small files that are copied."""
    texts: dict[str, str] = field(default_factory=dict)
    """Name -> content of small files that are written."""
    tokenizer: str = "none"
    """Where the output's tokenizer comes from, in words."""

    def add_checkpoint(
        self, checkpoint: Checkpoint, role: str, path: str, revision: str | None, **facts: Any
    ) -> str:
        """Lineage of one model, or of a folder of tensors that belong to one; returns its fingerprint.

        Args:
            checkpoint: Its headers.
            role: ``base``, ``model`` or ``fisher``.
            path: As the configuration has it.
            revision: Of a hub id, the commit where it is known.
            **facts: What else is to be said, such as its weight.
        """
        identity = {
            "weights_fingerprint": fingerprint_files(checkpoint.files),
            "layout_sha256": dict(checkpoint.layout_sha256),
        }
        described = {"name": checkpoint.name, "role": role, "path": path, "revision": revision}
        self.sources.append({**described, "bytes": checkpoint.nbytes, **identity, **facts})
        self.source_files.append(checkpoint.files)
        return str(identity["weights_fingerprint"])

    def all_problems(self) -> list[str]:
        """Everything that stands in the way, one sentence each, most telling first."""
        found = list(self.problems)
        for name, keys in self.missing.items():
            found.append(f"{name!r} lacks {len(keys)} tensors of the others, first {keys[0]}")
        for name, keys in self.extra.items():
            found.append(f"only {name!r} has {len(keys)} tensors, first {keys[0]}")
        for key, shapes in list(self.mismatched.items())[:3]:
            shown = ", ".join(f"{tuple(shape)} in {name!r}" for name, shape in shapes.items())
            found.append(f"{key} has the shape {shown}")
        if len(self.mismatched) > 3:
            found.append(f"{len(self.mismatched) - 3} more tensors differ in shape")
        return found


def output_dtype(entry: TensorEntry, wanted: str | None) -> str:
    """Dtype of an output tensor: the wanted one for floats, its own for everything else."""
    return DTYPE_NAMES[wanted] if wanted and entry.dtype in FLOATS else entry.dtype


def config_differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keys of ``config.json`` whose values differ, with the value of every model."""
    keys = sorted({key for config in configs.values() for key in config} - set(_UNIMPORTANT))
    found = {}
    for key in keys:
        values = {name: config.get(key) for name, config in configs.items()}
        if any(value != next(iter(values.values())) for value in values.values()):
            found[key] = values
    return found


def layer_count(config: ModelMergeConfig, draft: Draft, keys: Iterable[str]) -> int:
    """Layers that gradients run over: as configured, as the model says, or as far as the names go."""
    return config.num_layers or draft.config.get("num_hidden_layers") or count_layers(list(keys))
