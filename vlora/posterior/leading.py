r"""A covariance over all tensors of an adapter at once: the directions that the data know best, and the rest.

Independent entries and Kronecker blocks leave out what ties the tensors of different layers together. The Fisher matrix
of the whole adapter does not fit in memory, but its k leading eigenvectors do. With per-example gradients :math:`g_i`,
each counted :math:`n_i` times,

.. math:: F = \sum_i n_i g_i g_i^\top = V \,\mathrm{diag}(l)\, V^\top + R, \qquad
          \Sigma = V \,\mathrm{diag}(1 / l)\, V^\top + \tfrac{1}{l_k} (I - V V^\top) :

what the eigenvectors leave out is as uncertain as the last of them, so there is no prior to choose. The scale of
:math:`\Sigma` is that of the counted examples. After Sharma, Azizan and Pavone 2021 (arXiv:2102.12567), who sketch the
same matrix and use a prior in place of :math:`l_k`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.errors import DataError

__all__ = ["Leading"]

_SMALLEST = 1e-10  # of the largest eigenvalue: below, float32 gradients are only noise


@dataclass(frozen=True)
class Leading:
    """Leading eigenvectors of a Fisher matrix.

    Attributes:
        keys: Tensors of the adapter in the order in which they were joined.
        vectors: Orthonormal columns, ``(P, k)``, P the entries of all tensors together.
        values: Eigenvalues in falling order, float64 ``(k,)``, in nats per squared weight.
    """

    keys: tuple[str, ...]
    vectors: Tensor
    values: Tensor

    @classmethod
    def of(cls, gradients: Iterable[Mapping[str, Tensor]], directions: int) -> "Leading":
        r"""Eigenvectors of :math:`\sum g g^\top` over all gradients given.

        Chunk after chunk is joined to what is kept so far and cut to ``directions`` again, so the memory is that of
        ``directions`` gradients and one chunk. Exact where no more than ``directions`` are independent, or with a
        single chunk; else what an early chunk lost stays lost.

        Args:
            gradients: Chunks of gradients, each already times the root of its weight: key -> ``(M, *tensor)``.
            directions: Most eigenvectors to keep, k.

        Raises:
            DataError: No gradients, or all of them zero.
        """
        keys: tuple[str, ...] = ()
        kept: Tensor | None = None
        values = torch.empty(0, dtype=torch.float64)
        for chunk in gradients:
            keys = keys or tuple(sorted(chunk))
            rows = _joined(chunk, keys, first=1)
            rows = rows if kept is None else torch.cat([kept, rows])
            found, mixing = torch.linalg.eigh((rows @ rows.T).double())
            found, mixing = found.flip(0)[:directions], mixing.flip(1)[:, :directions]
            used = found > _SMALLEST * found[0]
            values, kept = found[used], mixing[:, used].float().T @ rows
        if kept is None or not len(values):
            raise DataError("the Fisher matrix needs gradients that are not all zero, got none")
        return cls(keys, kept.T / values.sqrt().float(), values)

    def covariance(self, gradients: Mapping[str, Tensor]) -> Tensor:
        r"""Covariance :math:`J \Sigma J^\top` of K outputs of every example under the linearised model.

        Args:
            gradients: Key -> gradient of each output, ``(N, K, *tensor)``.

        Returns:
            float64, ``(N, K, K)``.
        """
        flat, tail = _joined(gradients, self.keys, first=2), self.values[-1].to(self.vectors.device)
        known = (flat @ self.vectors).double() * (1 / tail - 1 / self.values.to(tail)).sqrt()
        return (flat @ flat.mT).double() / tail - known @ known.mT


def _joined(gradients: Mapping[str, Tensor], keys: Iterable[str], *, first: int) -> Tensor:
    """All tensors of every gradient in one row, float32; the first dimensions stay."""
    return torch.cat([gradients[key].float().flatten(first) for key in keys], dim=-1)
