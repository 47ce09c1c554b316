"""What the headers and small files of an adapter say of its tensors, its posterior and its curvature; none is read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora.errors import PosteriorFormatError
from vlora.merge.checkpoints.headers import DTYPES, TensorEntry, read_header
from vlora.posterior import Posterior, PosteriorMeta
from vlora.posterior.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CURVATURE,
    POSTERIOR_HESS,
    POSTERIOR_META,
)
from vlora.posterior.hub import resolve
from vlora.posterior.lora_layout import LoraKeys, split_keys

__all__ = ["AdapterHeaders", "read_adapter_headers", "read_entries"]

Entries = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class AdapterHeaders:
    """One adapter folder, seen from outside."""

    name: str
    config: dict[str, Any]
    """``adapter_config.json``."""
    meta: PosteriorMeta
    mean: Entries
    hess: Entries
    curvature: Entries
    modules: Mapping[str, LoraKeys]
    rest: list[str]
    """Keys of fully trained tensors."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that a merge reads."""
        return sum(entry.nbytes for part in (self.mean, self.hess, self.curvature) for entry in part.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that a merge holds all the time; Grams are read a module at a time."""
        return sum(entry.nbytes for part in (self.mean, self.hess) for entry in part.values())

    def shape(self, module: str) -> tuple[int, int]:
        """(outputs, inputs) of a module."""
        keys = self.modules[module]
        return self.mean[keys.b].shape[0], self.mean[keys.a].shape[-1]

    def rank(self, module: str) -> int:
        """Rank in a module, 0 where the adapter leaves it alone."""
        return self.mean[self.modules[module].a].shape[0] if module in self.modules else 0

    def has_h(self, module: str, side: str = "b") -> bool:
        """Whether there is h of B (or A) of a module."""
        return getattr(self.modules[module], side) in self.hess

    def gram(self, module: str, kind: str) -> int | None:
        """Directions that a Gram matrix is stored with, its size for a whole one; None where it is not there."""
        key = f"{self.modules[module].stem}.{kind}"
        entry = self.curvature.get(key) or self.curvature.get(f"{key}.vectors")
        return None if entry is None else entry.shape[-1]

    def stand_in(self) -> Posterior:
        """A posterior of the same keys, shapes and settings, without memory behind its tensors."""
        mean, hess = ({key: _empty(entry) for key, entry in part.items()} for part in (self.mean, self.hess))
        return Posterior(mean, hess, self.meta, self.config)


def read_adapter_headers(source: str, revision: str | None, name: str) -> AdapterHeaders:
    """Read the small files of an adapter folder and the headers of the large ones. A hub id is downloaded first.

    Raises:
        PosteriorFormatError: There is no adapter folder, or a small file is damaged.
        CheckpointError: A large one is truncated or damaged.
    """
    folder = resolve(source, revision)
    if not (folder / ADAPTER_CONFIG).is_file():
        what = f"{folder} has no {ADAPTER_CONFIG}" if folder.is_dir() else f"no folder {folder}"
        raise PosteriorFormatError(f"{name!r}: {what}; give a posterior or PEFT adapter folder, or a hub id")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise PosteriorFormatError(
            f"{name!r}: {folder} has no {ADAPTER_WEIGHTS}; is the download or copy complete?"
        )
    config = _object(folder / ADAPTER_CONFIG)
    base = {"id": config.get("base_model_name_or_path"), "revision": config.get("revision")}
    meta = PosteriorMeta(num_examples=0, ess=0.0, base_model=base)
    if (folder / POSTERIOR_META).is_file():
        meta = PosteriorMeta.from_json(_object(folder / POSTERIOR_META), str(folder / POSTERIOR_META))
    mean, hess, curvature = (
        read_entries(folder / file) for file in (ADAPTER_WEIGHTS, POSTERIOR_HESS, CURVATURE)
    )
    modules, rest = split_keys(mean)
    return AdapterHeaders(name, config, meta, mean, hess, curvature, modules, rest)


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The header of a safetensors file; empty where there is none.

    Raises:
        CheckpointError: The file is truncated or damaged.
    """
    return {entry.name: entry for entry in read_header(path)[0]} if path.is_file() else {}


def _empty(entry: TensorEntry) -> Tensor:
    return torch.zeros((), dtype=DTYPES[entry.dtype]).expand(entry.shape)


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PosteriorFormatError(f"{path} cannot be read ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise PosteriorFormatError(f"{path} holds no object; copy it again")
    return found
