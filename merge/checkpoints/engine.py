"""Carry out the jobs of a plan: threads over tensors, blocks at known offsets, a journal of what is finished.

Each thread takes one tensor at a time, the largest first, reads it block by block, merges it tile by tile and writes
every block to its place. While one thread waits for a disk, others compute. Nothing depends on the order: see
:mod:`vlora.merge.checkpoints.tiles`.
"""

import errno
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlora.errors import CheckpointError
from vlora.files import output_error
from vlora.merge.checkpoints.agreement import sampled_agreement
from vlora.merge.checkpoints.headers import DTYPES, TensorEntry
from vlora.merge.checkpoints.layout import Shard
from vlora.merge.checkpoints.rules import Copy, NotFinite
from vlora.merge.checkpoints.stream import Buffers, Files, TensorJob, TensorStream

__all__ = ["Engine", "create_shards", "make_tensor"]

_LARGEST_HALF = 65504.0
_FLUSH_SECONDS = 0.25
"""Outputs are flushed this often while threads compute, so that little is left to wait for at the end."""


class _StoppedError(Exception):
    """Another thread failed, or the run was interrupted."""


@dataclass
class Engine:
    """Settings and shared state of one run."""

    folder: Path
    """Where the shards lie, already at their full size."""
    threads: int
    block_bytes: int
    """Bytes of each input that a thread reads at once."""

    def run(
        self,
        jobs: Sequence[TensorJob],
        shards: Sequence[Shard],
        finished: Callable[[TensorJob, Mapping[str, Any]], None],
    ) -> None:
        """Make all tensors and flush them to disk.

        Args:
            jobs: Tensors to make.
            shards: The output files, with the place of every tensor.
            finished: Called after a tensor is written, one call at a time, with the findings of its rule.

        Raises:
            CheckpointError: An input is damaged or holds NaN; which one.
            OutputError: The disk is full or cannot be written.
        """
        places = {name: (shard.file, entry) for shard in shards for name, entry in shard.tensors.items()}
        files, stop, local, lock = Files(), threading.Event(), threading.local(), threading.Lock()
        before = torch.get_num_threads()
        torch.set_num_threads(
            1
        )  # one thread per tensor is enough, and products keep their order of summation
        outputs = {shard.file: os.open(self.folder / shard.file, os.O_WRONLY) for shard in shards}

        def one(job: TensorJob) -> None:
            if not hasattr(local, "buffers"):
                local.buffers = Buffers()
            file, entry = places[job.name]
            stream = TensorStream(job, files, local.buffers, self.block_bytes)
            findings = make_tensor(job, stream, local.buffers, outputs[file], entry, stop)
            with lock:
                finished(job, findings)

        pool = ThreadPoolExecutor(self.threads)
        try:
            ordered = sorted(jobs, key=lambda job: -places[job.name][1].nbytes)
            pending = {pool.submit(one, job) for job in ordered}
            while pending:
                done, pending = wait(pending, timeout=_FLUSH_SECONDS, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                self._flush(outputs)
            self._flush(outputs)  # also what an earlier run wrote, if nothing was left to do
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            files.close()
            for descriptor in outputs.values():
                os.close(descriptor)
            torch.set_num_threads(before)

    def _flush(self, outputs: dict[str, int]) -> None:
        for file, descriptor in outputs.items():
            _sync(descriptor, self.folder / file)


def create_shards(folder: Path, shards: Sequence[Shard]) -> None:
    """Give every output file its header and its full size, so that a full disk shows before any work.

    Raises:
        OutputError: There is no space, or the place cannot be written.
    """
    for shard in shards:
        path = folder / shard.file
        try:
            with path.open("wb") as file:
                file.write(shard.header)
                file.flush()
                _reserve(file.fileno(), shard.nbytes)
        except OSError as error:
            raise output_error(error, path) from error


def _reserve(descriptor: int, size: int) -> None:
    """Take the space of a file; where the system or file system cannot, only set its size."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, size)


def make_tensor(
    job: TensorJob,
    stream: TensorStream,
    buffers: Buffers,
    descriptor: int,
    entry: TensorEntry,
    stop: threading.Event,
) -> Mapping[str, Any]:
    """Merge one tensor and write it to its place; the findings of its rule.

    Args:
        job: The tensor.
        stream: Its inputs.
        buffers: Memory of the thread.
        descriptor: The output, open for writing.
        entry: Where the tensor lies in it.
        stop: Set when another thread failed.

    Raises:
        CheckpointError: An input holds NaN or infinity, or the result overflows.
        OutputError: The output cannot be written.
    """
    dtype = DTYPES[job.dtype]
    plain = isinstance(job.rule, Copy) and job.inputs[0].dtype == job.dtype
    try:
        known = job.rule.prepare(stream)
        for block in stream.blocks():
            if stop.is_set():
                raise _StoppedError
            if plain:
                merged = stream.raw(block)[0]
                _check_copied(job, merged)
            else:
                merged = buffers.get("output", len(block), dtype)
                for tile, values in stream.tiles(block, job.rule.tile_inputs):
                    result = job.rule.tile(tile, values, known)
                    if not isinstance(job.rule, Copy) or job.rule.checked:
                        _check(job, result, dtype)
                    merged[tile.start - block.start : tile.stop - block.start].copy_(result)
            _write(descriptor, merged, entry.start + block.start * dtype.itemsize)
        return {**job.rule.findings(known), **sampled_agreement(job.rule, stream)}
    except NotFinite as error:
        raise _blame(job, stream) from error


def _check(job: TensorJob, result: Tensor, dtype: torch.dtype) -> None:
    """Notice NaN and infinity by the sum of a tile, and what float16 cannot hold."""
    if not math.isfinite(result.sum().item()) and not torch.isfinite(result).all():
        raise NotFinite(-1)
    if dtype == torch.float16 and result.abs().max().item() > _LARGEST_HALF:
        raise CheckpointError(
            f"{job.name}: merged values exceed {_LARGEST_HALF:g}, which float16 cannot hold; set dtype: bfloat16"
        )


def _check_copied(job: TensorJob, values: Tensor) -> None:
    """As :func:`_check` for a block that is copied in its own dtype; a sum in float32 costs far less than reading."""
    if not values.is_floating_point() or values.dtype.itemsize < 2 or not getattr(job.rule, "checked", True):
        return
    total = values.sum(dtype=torch.promote_types(values.dtype, torch.float32)).item()
    if not math.isfinite(total) and not torch.isfinite(values).all():
        raise NotFinite(-1)


def _blame(job: TensorJob, stream: TensorStream) -> CheckpointError:
    """The error that names the input with NaN or infinity; or the merge itself, if all inputs are finite."""
    for _, values in stream.passes():
        for value, entry in zip(values, job.inputs, strict=True):
            if not torch.isfinite(value).all():
                return CheckpointError(
                    f"{entry.path} holds NaN or infinity in {entry.name}; leave this model out or get it again"
                )
    return CheckpointError(f"{job.name}: the merge of finite inputs overflows; lower scale or the weights")


def _write(descriptor: int, values: Tensor, offset: int) -> None:
    view = values.view(torch.uint8).numpy().data
    done = 0
    try:
        while done < len(view):
            done += os.pwrite(descriptor, view[done:], offset + done)
    except OSError as error:
        raise output_error(error, _name(descriptor)) from error


def _sync(descriptor: int, path: Path) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise output_error(error, path) from error


def _name(descriptor: int) -> Path:
    try:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    except OSError:
        return Path("the output")
