r"""Covariances with correlated entries: h says how much the data know, Kronecker factors in which directions.

A posterior with curvature (``vlora.curvature``: input Gram G and output Gram S of a module's full weight) knows more
than variances. The gradient of the factors of :math:`\Delta W = s B A` is a linear map of that of W, so their blocks of
K-FAC (Martens and Grosse, arXiv:1503.05671; on LoRA: Yang et al. 2024, arXiv:2308.13111) are

.. math:: F_A \propto (s^2 B^\top S B) \otimes G, \qquad F_B \propto S \otimes (A G A^\top).

G and S are stored without a scale. It comes from h: each product is scaled so that its mean diagonal is the mean of h
over the factor. With eigenvalues :math:`l_i` and :math:`r_j` of the scaled sides the precision of the direction
:math:`u_i v_j^\top` is :math:`\lambda (l_i r_j + \delta)`, with ess :math:`\lambda` and weight decay :math:`\delta`.
A tensor without Grams (a head, an embedding, a bias), and one with pruned entries, which have no noise, keeps
independent entries.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.grams import read_gram
from vlora.posterior.lora_layout import module_scaling, split_keys
from vlora.posterior.posterior import Posterior

__all__ = [
    "Independent",
    "Kronecker",
    "Spread",
    "covariances",
    "has_factors",
    "output_covariance",
    "under_priors",
]


@dataclass(frozen=True)
class Independent:
    """Covariance with independent entries."""

    std: Tensor
    """Standard deviations, the tensor's shape."""

    def rotate(self, gradient: Tensor) -> Tensor:
        """Gradients in the basis in which the covariance is diagonal: their own. Shape ``(..., *tensor)``, float32."""
        return gradient.float()

    def colour(self, noise: Tensor) -> Tensor:
        """Noise with this covariance from standard normal noise of the tensor's shape."""
        return self.std * noise


@dataclass(frozen=True)
class Kronecker:
    """Covariance of a matrix that is diagonal in the basis ``left (x) right``."""

    left: Tensor
    """Orthonormal columns, shape ``(rows, rows)``."""
    right: Tensor
    """Orthonormal columns, shape ``(columns, columns)``."""
    std: Tensor
    """Standard deviations along ``left_i right_j^T``, shape ``(rows, columns)``."""

    def rotate(self, gradient: Tensor) -> Tensor:
        """Gradients in the basis in which the covariance is diagonal. Shape ``(..., rows, columns)``, float32."""
        # each side as one product of two matrices: a batch of small ones takes three times as long
        return ((gradient.float() @ self.right).mT @ self.left).mT

    def colour(self, noise: Tensor) -> Tensor:
        """Noise with this covariance from standard normal noise of the tensor's shape."""
        return self.left @ (self.std * noise) @ self.right.T


Spread = Mapping[str, Independent | Kronecker]
"""PEFT key -> covariance."""


def has_factors(posterior: Posterior) -> bool:
    """Whether some LoRA module has both Kronecker factors, so that entries can be correlated."""
    grams = posterior.curvature or {}
    stems = (keys.stem for keys in split_keys(posterior.mean)[0].values() if not keys.embedding)
    sides = ("input_gram", "output_gram")
    return bool(grams) and any(
        all(read_gram(grams, f"{stem}.{side}") is not None for side in sides) for stem in stems
    )


def covariances(
    posterior: Posterior, *, kronecker: bool = True, device: torch.device | str = "cpu"
) -> dict[str, Independent | Kronecker]:
    """Covariance of every stochastic tensor.

    Args:
        posterior: With ``curvature`` for correlated entries.
        kronecker: False: independent entries, whatever curvature there is.
        device: Where to put it.

    Returns:
        PEFT key -> covariance.

    Raises:
        ConfigError: ``kronecker`` without a module that has both Grams.
    """
    found: dict[str, Independent | Kronecker] = {
        key: Independent(std.to(device)) for key, std in posterior.std().items()
    }
    if not kronecker:
        return found
    precise = _kronecker(posterior)
    if not precise:
        raise ConfigError(
            "correlated entries need curvature.safetensors with the input_gram and output_gram of a LoRA module; train "
            "with curvature: true, or collect it (vlora.curvature)"
        )
    return found | {key: Kronecker(*(part.to(device) for part in parts)) for key, parts in precise.items()}


def under_priors(
    posterior: Posterior,
    precisions: Sequence[float],
    *,
    kronecker: bool = True,
    device: torch.device | str = "cpu",
) -> list[Spread]:
    """Covariances under several prior precisions, which share h and bases.

    A tensor's standard deviations are made when they are asked for, so that many priors take no more memory than one.

    Args:
        posterior: At the temperature that counts.
        precisions: Prior precisions, as in :meth:`Posterior.with_prior`.
        kronecker: As in :func:`covariances`.
        device: Where to put it.

    Returns:
        One covariance per precision, for :func:`output_covariance`.

    Raises:
        ConfigError: As in :func:`covariances`.
    """
    least = min(precisions)
    spread = covariances(posterior.with_prior(least), kronecker=kronecker, device=device)
    return [_Narrowed(spread, precision - least) for precision in precisions]


class _Narrowed(Spread):
    """The same covariances with a number added to every precision; entries without noise stay without."""

    def __init__(self, spread: Spread, added: float) -> None:
        self._spread, self._added = spread, added

    def __getitem__(self, key: str) -> Independent | Kronecker:
        own = self._spread[key]
        return own if self._added == 0 else replace(own, std=(own.std**-2 + self._added).rsqrt())

    def __iter__(self) -> Iterator[str]:
        return iter(self._spread)

    def __len__(self) -> int:
        return len(self._spread)


def _kronecker(posterior: Posterior) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """``(left, right, std)`` of the factors of every module with both Grams."""
    grams, found = posterior.curvature or {}, {}
    for name, keys in split_keys(posterior.mean)[0].items():
        inputs, outputs = (read_gram(grams, f"{keys.stem}.{side}") for side in ("input_gram", "output_gram"))
        if inputs is None or outputs is None or keys.embedding:
            continue
        a, b = posterior.mean[keys.a].double(), posterior.mean[keys.b].double()
        scale = module_scaling(posterior.adapter_config, name)
        for key, left, right in (
            (keys.a, scale**2 * b.T @ outputs.double() @ b, inputs.double()),
            (keys.b, outputs.double(), a @ inputs.double() @ a.T),
        ):
            if key in posterior.hess and not _pruned(posterior, key):
                found[key] = _spectrum(posterior, key, left, right)
    return found


def _pruned(posterior: Posterior, key: str) -> bool:
    return key in posterior.meta.fixed_zeros and bool((posterior.mean[key] == 0).any())


def _spectrum(posterior: Posterior, key: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bases of both sides and the standard deviations along them."""
    (left_values, left_vectors), (right_values, right_vectors) = _eigen(left), _eigen(right)
    hess = posterior.hess[key].double().clamp_min(0).mean()
    curvature = hess * torch.outer(left_values, right_values)
    ess, weight_decay = (posterior.meta.of(name, key) for name in ("ess", "weight_decay"))
    std = (ess * (curvature + weight_decay)).rsqrt()
    return left_vectors.float(), right_vectors.float(), std.float()


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, scaled to mean 1 (zeros stay), and eigenvectors of a symmetric matrix."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values = values.clamp_min(0)
    return values / values.mean().clamp_min(torch.finfo(torch.float64).tiny), vectors


def output_covariance(gradients: Mapping[str, Tensor], spreads: Sequence[Spread]) -> list[Tensor]:
    r"""Covariance :math:`J \Sigma J^\top` of K outputs of every example under the linearised model.

    Args:
        gradients: PEFT key -> gradient of each output, shape ``(N, K, *tensor)``.
        spreads: From :func:`covariances` or :func:`under_priors`, of posteriors that differ in scale and prior only:
            the gradients are rotated once for all of them.

    Returns:
        Per spread float64, shape ``(N, K, K)``.
    """
    totals: list[Tensor | float] = [0.0] * len(spreads)
    for key, first in spreads[0].items():
        rotated = first.rotate(gradients[key])
        for i, spread in enumerate(spreads):
            rooted = (rotated * spread[key].std).flatten(2)
            totals[i] = totals[i] + (rooted @ rooted.mT).double()
    return [torch.as_tensor(total) for total in totals]
