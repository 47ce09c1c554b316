"""The plan of a merge that writes a model, made from file headers alone: what it would do, need and refuse.

Nothing is written and no tensor is loaded, except for a sample of one tensor to estimate the time, and 64 blocks of
every file for its fingerprint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora import __version__
from vlora.config import to_plain
from vlora.errors import CheckpointError, OutputError
from vlora.files import check_output_folder
from vlora.merge.checkpoints.adapter_draft import draft_adapters
from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.checkpoints.draft import Draft
from vlora.merge.checkpoints.estimate import Estimate, estimate
from vlora.merge.checkpoints.layout import Shard, lay_out, parse_size
from vlora.merge.checkpoints.model_draft import draft_models
from vlora.merge.config import check_apart

__all__ = ["MARKER", "MergePlan", "make_plan"]

MARKER = "merge.json"
"""File by which an output folder is known as one of ours."""


@dataclass(frozen=True)
class MergePlan:
    """A merge, ready to be carried out by :func:`vlora.merge.checkpoints.run.carry_out`."""

    settings: ModelMergeConfig
    output: Path
    draft: Draft
    shards: Sequence[Shard]
    threads: int
    block_bytes: int
    estimate: Estimate
    free_bytes: int
    """Free space where the output goes."""
    dry: bool = False
    """Whether it is only to be looked at."""

    @property
    def bytes_read(self) -> int:
        """Bytes that are read, all passes."""
        return sum(job.bytes_read for job in self.draft.jobs)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output shards."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def problems(self) -> list[str]:
        """What stands in the way, one sentence each; empty for a plan that can be carried out."""
        found = self.draft.all_problems()
        if self.free_bytes < self.bytes_written:
            found.append(
                f"{self.output} needs {self.bytes_written:,} bytes, {self.free_bytes:,} are free; free some space or "
                "choose another disk"
            )
        return found

    def check(self) -> None:
        """Refuse a plan with problems.

        Raises:
            OutputError: The disk is too small.
            CheckpointError: The inputs do not fit; everything that does not, in one line.
        """
        found = self.problems
        if not found:
            return
        kind = (
            OutputError if found == self.problems[-1:] and not self.draft.all_problems() else CheckpointError
        )
        raise kind("; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else ""))

    def signature(self) -> str:
        """Hash of everything that the output's bytes depend on; what a resumed run is recognised by."""
        settings = to_plain(self.settings)
        for key in ("threads", "block_megabytes", "overwrite", "hash_inputs", "verify", "output"):
            settings.pop(key)
        files = {entry.path for job in self.draft.jobs for entry in job.inputs}
        files |= {path for given in self.draft.source_files for path in given}
        for source in self.settings.adapters:  # their curvature counts too
            files |= {path for path in Path(source.path).expanduser().glob("*") if path.is_file()}
        stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)]
        maps = next((job.row_maps for job in self.draft.jobs if job.row_maps), ())
        headers = [shard.header[8:].decode() for shard in self.shards]
        parts = [__version__, settings, stamps, self.draft.sources, headers, [m.rows for m in maps]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``vlora merge plan --json``."""
        draft = self.draft
        return {
            "method": draft.method,
            "options": self.settings.options(),
            "output": str(self.output),
            "inputs": draft.sources,
            "tensors": [_tensor(job) for job in draft.jobs],
            "shards": [{"file": s.file, "bytes": s.nbytes, "tensors": len(s.tensors)} for s in self.shards],
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "free_bytes": self.free_bytes,
            "threads": self.threads,
            "block_bytes": self.block_bytes,
            "peak_memory_bytes": self.estimate.memory_bytes,
            "held_bytes": self.estimate.held_bytes,
            "held_for": self.estimate.held_for,
            "seconds": self.estimate.seconds,
            "seconds_basis": self.estimate.basis,
            "missing": draft.missing,
            "extra": draft.extra,
            "mismatched": draft.mismatched,
            "tokenizer": draft.tokenizer,
            "config_differences": draft.differences,
            "notes": draft.notes,
            "problems": self.problems,
        }


def make_plan(config: ModelMergeConfig, dry: bool = False) -> MergePlan:
    """Read the headers of all inputs and plan the merge.

    Adapters are small and read whole; several of them are merged with each other here, unless ``dry``.

    Args:
        config: What to merge, how, and where to.
        dry: Whether the plan is only to be looked at.

    Raises:
        CheckpointError: An input cannot be read. What can be read but does not fit is in ``problems`` instead.
        ConfigError: A weight, pattern or option is not usable.
        OutputError: The output is no place to write to.
        OutputExistsError: It holds something else, or a former merge without ``overwrite``.
    """
    output = check_output_folder(config.output, MARKER, overwrite=config.overwrite)
    inputs = [config.base_model, *(source.path for source in (*config.models, *config.adapters))]
    inputs += config.files()
    inputs += [path for model in config.models for path in (model.fisher, model.curvature)]
    check_apart(output, [path for path in inputs if path])
    draft = draft_models(config) if config.models else draft_adapters(config, dry)
    if config.dtype:
        draft.config["dtype"] = config.dtype
        draft.config.pop("torch_dtype", None)
    tensors = [(job.name, job.dtype, job.shape) for job in draft.jobs]
    shards = lay_out(tensors, parse_size(config.max_shard_size), {"format": "pt"})
    threads = min(config.threads or min(4, os.cpu_count() or 1), max(1, len(draft.jobs)))
    block = max(1, int(config.block_megabytes * 2**20))
    return MergePlan(
        config,
        output,
        draft,
        shards,
        threads,
        block,
        estimate(draft.jobs, threads, block, (5 if config.models else 2) if config.verify else 0),
        _free(output),
        dry,
    )


def _tensor(job: Any) -> dict[str, Any]:
    return {
        "name": job.name,
        "dtype": job.dtype,
        "shape": list(job.shape),
        "rule": type(job.rule).__name__,
        "inputs": [str(entry.path) for entry in job.inputs],
    }


def _free(output: Path) -> int:
    """Free space, counting what an unfinished run of the same output has taken already."""
    folder = output.resolve()
    while not folder.exists():
        folder = folder.parent
    unfinished = output.with_name(f".{output.name}.merging")
    taken = (
        sum(path.stat().st_size for path in unfinished.glob("*.safetensors")) if unfinished.is_dir() else 0
    )
    return shutil.disk_usage(folder).free + taken
