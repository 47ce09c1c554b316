"""Merging diagonal Gaussians of one parameterisation: addition of sites, removal by subtraction.

A posterior with precision S and mean m over a prior N(m_0, 1/H_0) holds the site (S - H_0, S m - H_0 m_0). The merged
posterior is the prior times all sites to their weights (Daheim et al. 2024, arXiv:2310.12808; their closed-form merge
is exactly this for diagonal Gaussians with one prior):

    S' = H_0 + sum_t w_t (S_t - H_0),      S' m' = H_0 m_0 + sum_t w_t (S_t m_t - H_0 m_0)

Exact for quadratic losses; associative and commutative; adding a site and subtracting it gives back the input.
It needs one parameterisation for all: B under a frozen A, biases and heads, never two independently trained factors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlora.merge.curvature.positive import add_clamped
from vlora.merge.update import LoraUpdate, MergedModule

__all__ = ["DiagonalGaussian", "merge_diagonal", "merge_shared_a", "remove_diagonal", "remove_shared_a"]


@dataclass(frozen=True)
class DiagonalGaussian:
    """A posterior of one tensor together with the prior it was trained under."""

    mean: Tensor
    """m, any shape."""
    precision: Tensor
    """S, untempered: N (h + delta), same shape; prior and data together."""
    prior_precision: float | Tensor = 0.0
    """H_0 = N delta; one number, or the shape of ``mean``."""
    prior_mean: float | Tensor = 0.0
    """m_0; one number, or the shape of ``mean``."""

    def site(self) -> tuple[Tensor, Tensor]:
        """Precision (clamped at 0) and natural mean that the data added to the prior."""
        precision = (self.precision - self.prior_precision).clamp_min(0)
        total = precision + self.prior_precision
        return precision, total * self.mean - self.prior_precision * self.prior_mean


def merge_diagonal(
    terms: Sequence[DiagonalGaussian], weights: Sequence[float]
) -> tuple[DiagonalGaussian, float]:
    """Prior times the sites of all terms to the power of their weights.

    Args:
        terms: Posteriors of one tensor, equal shapes, one prior mean. Where prior precisions differ, the merged
            prior is their mean, weighted by the absolute weights; each site is relative to its own prior.
        weights: w_t, one per term; negative takes a site away.

    Returns:
        The merged posterior, and the share of entries whose precision had to be clamped to stay positive.
    """
    total = sum(abs(w) for w in weights)
    prior = sum((abs(w) / total) * t.prior_precision for w, t in zip(weights, terms, strict=True))
    prior_mean = terms[0].prior_mean
    return _add_sites(prior, prior_mean, None, [(w, t.site()) for w, t in zip(weights, terms, strict=True)])


def remove_diagonal(
    merged: DiagonalGaussian, term: DiagonalGaussian, weight: float = 1.0
) -> tuple[DiagonalGaussian, float]:
    """Take a term that was merged with ``weight`` out again; exact if all terms had one prior.

    Returns:
        The posterior without the term, and the share of clamped precisions (0 if it really was in there).
    """
    prior, prior_mean = merged.prior_precision, merged.prior_mean
    return _add_sites(prior, prior_mean, merged.site(), [(-weight, term.site())])


def merge_shared_a(updates: Sequence[LoraUpdate], weights: Sequence[float]) -> MergedModule:
    """Exact merge of adapters with one frozen A: the update is linear in B, so the sites of B add.

    Args:
        updates: Updates with equal A (no posterior on A) and a posterior on B.
        weights: w_t per update.
    """
    scales = {u.scale for u in updates}
    scale = scales.pop() if len(scales) == 1 else 1.0
    same = [u.with_scale(scale) for u in updates]
    merged, clamped = merge_diagonal([_gaussian_b(u) for u in same], weights)
    update = replace(
        same[0],
        b=merged.mean,
        precision_b=merged.precision,
        prior_b=float(merged.prior_precision),
        input_gram=None,
        output_gram=None,
        activation_gram=None,
        adapter="merged",
    )
    return MergedModule(update, {"curvature": "sites", "exact": True, "clamped_fraction": clamped})


def remove_shared_a(merged: LoraUpdate, update: LoraUpdate, weight: float = 1.0) -> MergedModule:
    """Take one adapter out of a merge made by :func:`merge_shared_a`."""
    rest, clamped = remove_diagonal(_gaussian_b(merged), _gaussian_b(update.with_scale(merged.scale)), weight)
    left = replace(merged, b=rest.mean, precision_b=rest.precision)
    return MergedModule(left, {"curvature": "sites", "exact": True, "clamped_fraction": clamped})


def _add_sites(
    prior: float | Tensor,
    prior_mean: float | Tensor,
    start: tuple[Tensor, Tensor] | None,
    sites: Sequence[tuple[float, tuple[Tensor, Tensor]]],
) -> tuple[DiagonalGaussian, float]:
    like = sites[0][1][0]
    positive = torch.zeros_like(like) + prior
    natural = torch.zeros_like(like) + prior * prior_mean
    negative = torch.zeros_like(like)
    for weight, (precision, natural_mean) in [*([(1.0, start)] if start else []), *sites]:
        part = positive if weight > 0 else negative
        part += weight * precision
        natural = natural + weight * natural_mean
    precision, clamped = add_clamped(positive, negative) if negative.any() else (positive, 0.0)
    mean = natural / precision
    return DiagonalGaussian(mean, precision, prior, prior_mean), clamped


def _gaussian_b(update: LoraUpdate) -> DiagonalGaussian:
    if update.precision_b is None:
        raise ValueError(f"{update.adapter!r} has no posterior on B of {update.module}; sites need one")
    return DiagonalGaussian(update.b, update.precision_b, update.prior_b)
