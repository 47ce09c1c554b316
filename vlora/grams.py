r"""Gram matrices as they are stored: full, or as leading directions and an isotropic tail.

    M ~ V diag(values) V^T + tail (I - V V^T),      tail = (tr M - sum values) / (n - k)

which keeps the trace and, for the k kept eigenvectors V, their eigenvalues. A full matrix has the key
``<module>.input_gram``; the short form has ``<key>.vectors`` [n, k], ``<key>.values`` [k] (descending) and
``<key>.tail`` (one number). At n = 4096 in float32 a full matrix takes 64 MiB, k = 64 takes 1 MiB; :class:`ShortGram`
multiplies without writing the matrix out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.errors import ConfigError

__all__ = [
    "Gram",
    "ShortGram",
    "compress_grams",
    "dense",
    "leading",
    "product",
    "read_gram",
    "retained_trace",
    "stored_gram",
]

_COLUMNS = 512


@dataclass(frozen=True)
class ShortGram:
    """V diag(values - tail) V^T + tail I: a symmetric n x n matrix of k directions and a multiple of the identity."""

    vectors: Tensor
    """V, shape ``(n, k)``; orthonormal columns, or zero where there are fewer than k directions."""
    values: Tensor
    """Eigenvalues, shape ``(k,)``."""
    tail: float
    """Eigenvalue of all other directions."""

    @property
    def shape(self) -> torch.Size:
        """(n, n)."""
        return torch.Size((len(self.vectors), len(self.vectors)))

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> torch.dtype:
        """Of the directions."""
        return self.vectors.dtype

    def to(self, dtype: torch.dtype) -> "ShortGram":
        """In another precision."""
        return replace(self, vectors=self.vectors.to(dtype), values=self.values.to(dtype))

    def __rmatmul__(self, rows: Tensor) -> Tensor:
        """X M for X of shape ``(..., n)``, in 4 n k operations a row."""
        return ((rows @ self.vectors) * (self.values - self.tail)) @ self.vectors.mT + self.tail * rows

    def diagonal(self) -> Tensor:
        """Shape ``(n,)``."""
        return self.vectors.square() @ (self.values - self.tail) + self.tail

    def dense(self) -> Tensor:
        """The matrix written out."""
        gram = (self.vectors * (self.values - self.tail)) @ self.vectors.mT
        gram.diagonal().add_(self.tail)
        return (gram + gram.mT) / 2


Gram = Tensor | ShortGram
"""A Gram matrix as it is stored; ``rows @ gram`` is the product for both."""


def product(rows: Tensor, gram: Gram) -> Tensor:
    """X M in the precision of X, shape ``(r, n)``; of a matrix in another one some columns at a time are converted."""
    if isinstance(gram, ShortGram) or gram.dtype == rows.dtype:
        return rows @ gram
    found = torch.empty_like(rows)
    for start in range(0, gram.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        found[:, part] = rows @ gram[:, part].to(rows.dtype)
    return found


def dense(gram: Gram) -> Tensor:
    """The matrix written out."""
    return gram.dense() if isinstance(gram, ShortGram) else gram


def stored_gram(curvature: Mapping[str, Tensor], key: str) -> Gram | None:
    """The matrix of a key in the form in which it is stored; None if there is none.

    Args:
        curvature: What ``curvature.safetensors`` holds.
        key: Such as ``base_model.model.layers.0.q_proj.input_gram``.
    """
    if key in curvature:
        return curvature[key]
    if f"{key}.vectors" not in curvature:
        return None
    vectors, values, tail = (curvature[f"{key}.{part}"] for part in ("vectors", "values", "tail"))
    return ShortGram(vectors, values, tail.item())


def read_gram(curvature: Mapping[str, Tensor], key: str) -> Tensor | None:
    """The matrix of a key, written out from the short form where that is what is stored; None if there is none.

    Args:
        curvature: What ``curvature.safetensors`` holds.
        key: Such as ``base_model.model.layers.0.q_proj.input_gram``.
    """
    found = stored_gram(curvature, key)
    return None if found is None else dense(found)


def compress_grams(curvature: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The same curvature with every full matrix wider than ``rank`` in the short form.

    Args:
        curvature: Full or already short matrices; the latter stay as they are.
        rank: k, directions kept per matrix, at least 1.

    Raises:
        ConfigError: ``rank`` is not positive.
    """
    if rank < 1:
        raise ConfigError(f"rank of the curvature must be at least 1, got {rank}")
    short: dict[str, Tensor] = {}
    for key, gram in curvature.items():
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) <= rank or key.endswith(".vectors"):
            short[key] = gram
            continue
        values, vectors = torch.linalg.eigh(gram)
        kept = values[-rank:].flip(0).clamp_min(0)
        short |= leading(key, vectors[:, -rank:].flip(1), kept, gram.trace())
    return short


def leading(key: str, vectors: Tensor, values: Tensor, trace: Tensor) -> dict[str, Tensor]:
    """The three tensors of the short form.

    Args:
        key: Of the full matrix.
        vectors: Orthonormal columns, shape ``(n, k)``, k < n.
        values: Their eigenvalues, descending, shape ``(k,)``.
        trace: Of the whole matrix.
    """
    size, kept = vectors.shape
    tail = (trace - values.sum()).clamp_min(0) / (size - kept)
    return {
        f"{key}.vectors": vectors.contiguous(),
        f"{key}.values": values.contiguous(),
        f"{key}.tail": tail.reshape(1),
    }


def retained_trace(curvature: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of the trace in the kept directions, per matrix in the short form; 1 is everything."""
    shares = {}
    for name, vectors in curvature.items():
        if name.endswith(".vectors"):
            key = name.removesuffix(".vectors")
            kept = curvature[f"{key}.values"].sum().item()
            rest = curvature[f"{key}.tail"].item() * (vectors.shape[0] - vectors.shape[1])
            shares[key] = kept / (kept + rest) if kept + rest > 0 else 1.0
    return shares
