"""How much memory and time a merge will take, before it is begun."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vlora.errors import CheckpointError, IncompatibleAdaptersError
from vlora.merge.checkpoints.engine import make_tensor
from vlora.merge.checkpoints.headers import DTYPES, TensorEntry
from vlora.merge.checkpoints.stream import Buffers, Files, TensorJob, TensorStream
from vlora.merge.checkpoints.verify import Sources, chosen_jobs, compare_inputs
from vlora.merge.speed import product_speed

__all__ = ["Estimate", "estimate"]

_WRITE_SPEED = 1e9  # bytes a second; only assumed, since a plan writes nothing
_FIXED = 0.5  # seconds of the card, the page and the small files; measured once
_SAMPLE = 2**24  # bytes of each input that are read for the estimate
_BESIDE = 8 * 2**20  # journal, findings, golden identities on some rows: 4 to 7 MB were seen
_SEARCH = 32 * 2**20  # histograms and samples of a threshold search


@dataclass(frozen=True)
class Estimate:
    """Of one plan."""

    memory_bytes: int
    """Buffers of all threads and factors of adapters, above what the interpreter and its libraries take."""
    seconds: float
    basis: str
    """What the seconds were made from."""
    held_bytes: int = 0
    """Most that one thread holds for one tensor besides blocks and tiles; part of ``memory_bytes``."""
    held_for: str = ""
    """Which tensor that is."""


def estimate(jobs: Sequence[TensorJob], threads: int, block_bytes: int, identities: int = 0) -> Estimate:
    """Memory by arithmetic; time from making a part of one tensor of every kind, up to 16 MiB of each input.

    seconds = (bytes of all passes / speed of their kind) / threads + bytes written / (1 GB/s), one after the other,
    and the tensors that golden identities make again.

    Args:
        jobs: All tensors.
        threads: Tensors in work at once.
        block_bytes: Bytes of each input that a thread reads at once.
        identities: How many golden identities the chosen tensors are held to
            (:func:`vlora.merge.checkpoints.verify.chosen_jobs`); 0 without them.
    """
    if not jobs:
        return Estimate(0, 0.0, "nothing to do")
    memory = _BESIDE + sum(job.rule.kept() for job in jobs)
    memory += threads * max(_memory(job, block_bytes) for job in jobs)
    holder = max(jobs, key=lambda job: job.rule.held(job.shape))
    kinds: dict[tuple[type, int], list[TensorJob]] = {}
    for job in jobs:
        kinds.setdefault((type(job.rule), len(job.inputs)), []).append(job)
    speeds = {kind: _speed(max(like, key=_moved), block_bytes) for kind, like in kinds.items()}
    spent = {kind: sum(map(_moved, like)) / speeds[kind] for kind, like in kinds.items()}
    cores = min(threads, os.cpu_count() or 1)
    written, work = sum(entry_bytes(job) for job in jobs), sum(job.rule.operations(job.shape) for job in jobs)
    seconds = sum(spent.values()) / cores + written / _WRITE_SPEED + _FIXED
    slowest = max(spent, key=lambda kind: spent[kind])
    basis = (
        f"{sum(map(_moved, jobs)) / 1e9:.2f} GB read and merged at {speeds[slowest] / 1e9:.2f} GB/s a thread "
        f"(measured just now on a part of most of it), {cores} threads, {written / 1e9:.2f} GB written at an assumed "
        f"{_WRITE_SPEED / 1e9:g} GB/s"
    )
    if identities:
        again = (
            identities * sum(job.tiling.numel for job in chosen_jobs(jobs)) * _comparing(chosen_jobs(jobs))
        )
        seconds += again
        basis += f", {again:.1f} s of golden identities"
    if work:
        rate = product_speed(threads=1)
        seconds += work / rate / cores
        basis += f"; {work / 1e9:,.0f} G multiply-adds of matrix algebra at {rate / 1e9:.1f} G/s a thread"
    return Estimate(memory, seconds, basis, holder.rule.held(holder.shape), holder.name)


def entry_bytes(job: TensorJob) -> int:
    """Bytes of a tensor of the output."""
    return job.tiling.numel * DTYPES[job.dtype].itemsize


def _memory(job: TensorJob, block_bytes: int) -> int:
    """Buffers of a thread that makes this tensor: blocks of the inputs and the output, tiles of float32."""
    tiling = job.tiling
    widest = max([DTYPES[e.dtype].itemsize for e in job.inputs] + [1])
    entries = max(1, block_bytes // widest)
    block = min(max(entries // tiling.tile, 1) * tiling.tile, tiling.numel)
    blocks = block * (sum(DTYPES[e.dtype].itemsize for e in job.inputs) + DTYPES[job.dtype].itemsize)
    tiles = 4 * min(tiling.tile, tiling.numel) * (len(job.inputs) + job.rule.tiles)
    return blocks + tiles + job.rule.held(job.shape) + (_SEARCH if job.rule.passes > 1 else 0)


def _moved(job: TensorJob) -> int:
    """Bytes that the passes read; of a tensor that is not read, what it holds."""
    return max(job.bytes_read, entry_bytes(job))


def _speed(job: TensorJob, block_bytes: int) -> float:
    """Bytes a second of one thread that makes the first rows of a tensor, without a disk to write to.

    Rules of whole matrices are only read: their arithmetic is counted. So are inputs that the rule would refuse.
    """
    part = None if job.rule.operations(job.shape) else _part(job)
    before, files = torch.get_num_threads(), Files()
    torch.set_num_threads(1)
    try:
        if part is not None:
            with suppress(CheckpointError, IncompatibleAdaptersError):
                return _moved(part) / _made(part, files, block_bytes)
        return _read(job, files, block_bytes)
    finally:
        torch.set_num_threads(before)
        files.close()


def _comparing(jobs: Sequence[TensorJob]) -> float:
    """Seconds an entry that a comparison of a tensor with its inputs takes, measured on a part of the largest."""
    parts = [part for job in jobs if not job.rule.operations(job.shape) and (part := _part(job)) is not None]
    if not parts:
        return 0.0
    part, sources = max(parts, key=lambda part: part.tiling.numel), Sources()
    try:
        start = time.perf_counter()
        with suppress(CheckpointError, IncompatibleAdaptersError):
            compare_inputs(part, sources)
        return (time.perf_counter() - start) / max(1, part.tiling.numel)
    finally:
        sources.close()


def _part(job: TensorJob) -> TensorJob | None:
    """The first rows of a tensor as a job; None where rows of the inputs and the output are not the same."""
    if (
        job.row_maps is not None
        or not job.shape
        or not job.tiling.numel
        or any(entry.shape != job.shape for entry in job.inputs)
    ):
        return None
    row = (
        max(entry.nbytes // max(1, entry.shape[0]) for entry in job.inputs)
        if job.inputs
        else 4 * job.shape[-1]
    )
    shape = (min(job.shape[0], max(1, _SAMPLE // max(1, row))), *job.shape[1:])
    return replace(job, shape=shape, inputs=tuple(replace(entry, shape=shape) for entry in job.inputs))


def _made(job: TensorJob, files: Files, block_bytes: int) -> float:
    """Seconds to make a tensor; the second time, when all buffers are there."""
    buffers, entry = Buffers(), TensorEntry(job.name, job.dtype, job.shape, Path(os.devnull), 0)
    with open(os.devnull, "wb") as nowhere:
        for _ in range(2):
            stream, start = TensorStream(job, files, buffers, block_bytes), time.perf_counter()
            make_tensor(job, stream, buffers, nowhere.fileno(), entry, threading.Event())
            spent = time.perf_counter() - start
    return max(1e-9, spent)


def _read(job: TensorJob, files: Files, block_bytes: int) -> float:
    """Bytes a second of one thread that reads a part of a tensor and adds up its inputs."""
    start, done = time.perf_counter(), 0
    stream = TensorStream(job, files, Buffers(), block_bytes)
    for block in stream.blocks():
        for _, values in stream.tiles(block):
            for value in values[1:]:
                values[0].add_(value)
        done += len(block)
        if done * DTYPES[job.dtype].itemsize >= _SAMPLE:
            break
    spent = max(1e-9, time.perf_counter() - start)
    return max(1.0, sum(DTYPES[e.dtype].itemsize for e in job.inputs) * done) / spent
