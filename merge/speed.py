"""How fast this machine multiplies matrices: what the time estimates of plans are made from."""

import time

import torch

__all__ = ["product_speed"]

_SIZE, _ROUNDS = 384, 4


def product_speed(threads: int | None = None) -> float:
    """Multiply-adds a second in a product of matrices in double precision, measured for a few milliseconds.

    Args:
        threads: Threads that take part; None: as many as torch uses.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        matrix = torch.ones(_SIZE, _SIZE, dtype=torch.float64)
        torch.mm(matrix, matrix)  # the first product sets things up
        start = time.perf_counter()
        for _ in range(_ROUNDS):
            torch.mm(matrix, matrix)
        return _ROUNDS * _SIZE**3 / max(1e-9, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
