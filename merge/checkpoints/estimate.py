"""How much memory and time a merge will take, before it is begun."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlora.merge.checkpoints.headers import DTYPES
from vlora.merge.checkpoints.rules import Copy
from vlora.merge.checkpoints.stream import Buffers, Files, TensorJob, TensorStream
from vlora.merge.speed import product_speed

__all__ = ["Estimate", "estimate"]

_WRITE_SPEED = 1e9  # bytes a second; only assumed, since a plan writes nothing
_SAMPLE = 2**24  # bytes of each input that are read for the estimate
_SEARCH = 32 * 2**20  # histograms and samples of a threshold search


@dataclass(frozen=True)
class Estimate:
    """Of one plan."""

    memory_bytes: int
    """Buffers of all threads, above what the interpreter and its libraries take."""
    seconds: float
    basis: str
    """What the seconds were made from."""
    held_bytes: int = 0
    """Most that one thread holds for one tensor besides blocks and tiles; part of ``memory_bytes``."""
    held_for: str = ""
    """Which tensor that is."""


def estimate(jobs: Sequence[TensorJob], threads: int, block_bytes: int) -> Estimate:
    """Memory by arithmetic; time from a measurement of reading and merging up to 16 MiB of one tensor.

    seconds = (passes of reading and arithmetic) / threads + bytes written / (1 GB/s), as if nothing overlapped.
    """
    if not jobs:
        return Estimate(0, 0.0, "nothing to do")
    memory = threads * max(_memory(job, block_bytes) for job in jobs)
    holder = max(jobs, key=lambda job: job.rule.held(job.shape))
    largest = max(jobs, key=lambda job: (not isinstance(job.rule, Copy), job.bytes_read))
    speed = _measure(largest, block_bytes)
    read = sum(job.bytes_read for job in jobs)
    written = sum(entry_bytes(job) for job in jobs)
    cores = min(threads, os.cpu_count() or 1)
    work = sum(job.rule.operations(job.shape) for job in jobs)
    seconds = (read / speed / cores if speed else 0.0) + written / _WRITE_SPEED
    basis = (
        f"{read / 1e9:.2f} GB read and merged at {speed / 1e9:.2f} GB/s a thread (measured just now on a part of "
        f"{largest.name}), {cores} threads, {written / 1e9:.2f} GB written at an assumed {_WRITE_SPEED / 1e9:g} GB/s"
    )
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


def _measure(job: TensorJob, block_bytes: int) -> float:
    """Bytes a second of one thread that reads and merges a part of a tensor."""
    files, buffers = Files(), Buffers()
    stream = TensorStream(job, files, buffers, block_bytes)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start, done = time.perf_counter(), 0
        for block in stream.blocks():
            for _, values in stream.tiles(block):
                for value in values[1:]:
                    values[0].add_(value)
            done += len(block)
            if done * DTYPES[job.dtype].itemsize >= _SAMPLE:
                break
        spent = max(1e-9, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
        files.close()
    return sum(DTYPES[e.dtype].itemsize for e in job.inputs) * done / spent
