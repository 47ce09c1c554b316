"""Does the posterior carry the data's signal, or is it still its start, or its prior?

Three questions, which have different answers. Has h left the value that it started from (``measure_health``)? Does it
order the entries as the data do (``compare_with_reference``)? And of the precision ``ess (h + weight_decay)``, which
sets the width of draws, how much is h's at all (``prior_health``)?
"""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlora.posterior.meta import PosteriorMeta
from vlora.posterior.ranks import spearman
from vlora.posterior.spacing import spacing_health

__all__ = ["compare_with_reference", "describe_health", "measure_health", "prior_health"]

LAPLACE = "laplace"
"""``method`` in the settings of a posterior whose h was measured after training."""

NEGLIGIBLE_START = 1e-6
"""Start of h, beside its mean, below which h holds nothing but the data."""

PRIOR_DOMINATES = 0.9
"""Share of an entry's precision from which on its width is called the prior's."""

PRIOR_LEADS = 0.5
"""Prior's share of the median entry's precision from which on the verdict speaks of it."""

ESSENTIALLY_PRIOR = 0.9
"""Share of such entries from which on the whole posterior is called its prior."""


def measure_health(
    hess: Mapping[str, Tensor], *, start_weight: float, hess_init: Mapping[str, float]
) -> dict[str, Any]:
    """Two numbers that tell how far h has left its start.

    Args:
        hess: h of every stochastic tensor.
        start_weight: Weight of the start in h: beta2^steps, or 0 where h is corrected for its start.
        hess_init: Value that the entries of each tensor started from.

    Returns:
        ``effective_memory`` = 1 - ``start_weight``, the weight of the data in h (0 to 1, higher is better);
        ``share_moved``, the share of entries outside +-10 % of ``hess_init``, where h started at values that are
        not negligible beside it (the h of ``IVON.auto`` has no start to leave);
        ``share_negative``, the share of entries below zero, where the noisy estimate claims negative curvature
        (lower is better).
    """
    flat = {key: h.detach().float().flatten().cpu() for key, h in hess.items()}
    values = torch.cat(list(flat.values()))
    found = {
        "effective_memory": 1.0 - start_weight,
        "share_negative": (values < 0).double().mean().item(),
    }
    start = start_weight and max(map(abs, hess_init.values()))
    if start > NEGLIGIBLE_START * values.abs().mean().item():
        moved = [(h - hess_init[key]).abs() > 0.1 * abs(hess_init[key]) for key, h in flat.items()]
        found["share_moved"] = torch.cat(moved).double().mean().item()
    return found


def compare_with_reference(hess: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Any]:
    """Does h order the entries as per-example squared gradients do, and on which scale?

    Args:
        hess: h of every stochastic tensor.
        reference: Mean per-example squared gradient, same keys and shapes (``vlora.fisher``).

    Returns:
        ``rank_correlation``, Spearman's over all entries (-1 to 1, higher is better); ``rank_correlation_within``,
        its median over tensors; ``hess_to_reference``, the median of h / reference where the reference is
        positive. None where a side is constant.
    """
    h = {key: value.detach().float().cpu().flatten() for key, value in hess.items()}
    r = {key: reference[key].detach().float().cpu().flatten() for key in hess}
    inner = [found for key in h if (found := spearman(h[key], r[key])) is not None]
    all_h, all_r = torch.cat(list(h.values())), torch.cat(list(r.values()))
    ratio = (all_h / all_r)[all_r > 0]
    return {
        "rank_correlation": spearman(all_h, all_r),
        "rank_correlation_within": statistics.median(inner) if inner else None,
        "hess_to_reference": ratio.median().item() if ratio.numel() else None,
    }


def prior_health(hess: Mapping[str, Tensor], meta: PosteriorMeta) -> dict[str, float]:
    """How much of the width is the prior's: its share of each entry's precision.

        share_i = ess weight_decay / (ess (max(h_i, 0) + weight_decay)) = weight_decay / (max(h_i, 0) + weight_decay)

    An entry with a share of 1 has the width of the prior, whatever the data said. The share does not depend on ``ess``:
    a temperature or a fitted width scales the data's part and the prior's alike. An h below zero, which is noise of its
    estimate, counts as no evidence, as in ``Posterior.site``. The formula is ours; 1 - share is an entry's part of
    MacKay's (1992) number of well-determined parameters.

    Args:
        hess: h of every stochastic tensor.
        meta: Has the ``weight_decay``, one or one per key; with 0, a flat prior, every share is 0.

    Returns:
        ``prior_share``, the median over entries (0 to 1, lower is more data); ``prior_dominated``, the share of entries
        in which it exceeds ``PRIOR_DOMINATES`` (lower is more data). Nothing if there are no entries.
    """
    shares = []
    for key, h in hess.items():
        decay = meta.of("weight_decay", key)
        data = h.detach().float().cpu().flatten().clamp_min(0)
        shares.append(decay / (data + decay) if decay > 0 else torch.zeros_like(data))
    share = torch.cat(shares) if shares else torch.empty(0)
    if not share.numel():
        return {}
    dominated = (share > PRIOR_DOMINATES).double().mean().item()
    return {"prior_share": share.median().item(), "prior_dominated": dominated}


def describe_health(
    mean: Mapping[str, Tensor], hess: Mapping[str, Tensor], std: Mapping[str, Tensor], meta: PosteriorMeta
) -> dict[str, Any]:
    """Spread of the posterior and a verdict in words, for ``vlora inspect`` and the model card.

    Returns:
        ``std`` and ``hess`` as 5/50/95 % quantiles, ``noise_to_weight`` = median of std / |mean| over
        non-zero means, the numbers of :func:`prior_health`, the shares of entries below the spacing of number formats,
        those of :func:`measure_health` and :func:`compare_with_reference` when known, and ``verdict``.
    """
    sd = torch.cat([s.flatten().cpu() for s in std.values()])
    h = torch.cat([value.float().flatten().cpu() for value in hess.values()])
    m = torch.cat([mean[key].float().flatten().cpu() for key in std]).abs()
    ratio = sd[m > 0] / m[m > 0]
    known = {**meta.health, **prior_health(hess, meta), **spacing_health(mean, std)}
    return {
        "std": _quantiles(sd),
        "hess": _quantiles(h),
        "noise_to_weight": ratio.median().item() if ratio.numel() else None,
        **known,
        "verdict": _verdict(known, meta.method),
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    ordered = values.sort().values
    last = ordered.numel() - 1
    return {f"{q}%": ordered[round(q / 100 * last)].item() for q in (5, 50, 95)}


def _verdict(health: Mapping[str, Any], method: str | None) -> str:
    """What the numbers mean, most important first."""
    rank, lost = health.get("rank_correlation"), health["share_below_spacing"]
    share, dominated = health.get("prior_share", 0.0), health.get("prior_dominated", 0.0)
    clauses = [_origin(health.get("share_moved"), health.get("effective_memory"), method)]
    if rank is not None:
        clauses.append(f"{_likeness(rank)} the per-example squared gradients (rank correlation {rank:.2f})")
    if dominated >= ESSENTIALLY_PRIOR:
        clauses.insert(
            0,
            f"this posterior is essentially its prior, which sets the width of {dominated:.0%} of its entries",
        )
    elif share >= PRIOR_LEADS:
        clauses.append(f"{_prior_part(share)} ({share:.0%} of the median entry's precision)")
    if lost > 0.1:
        clauses.append(f"{lost:.0%} of the entries are narrower than the adapter's number format can show")
    return "; ".join(clauses)


def _prior_part(share: float) -> str:
    if share > PRIOR_DOMINATES:
        return "the width of most entries is set by the prior, not by h"
    return "the prior has the larger part in the width of most entries"


def _origin(moved: float | None, memory: float | None, method: str | None) -> str:
    if method == LAPLACE:
        return "h was measured after training (Laplace)"
    if moved is None:
        if memory is None:
            return "not measured: h does not come from one training run"
        if memory < 0.5:
            return f"weak: h started next to zero and has filled to {memory:.0%}; lower beta2 or train longer"
        return "h is the data's: nothing of its start is left"
    if moved < 0.1:
        return "this posterior is still its prior: h has hardly left its start; lower beta2 or train longer"
    if moved < 0.5:
        return "weak: less than half of h has left its start"
    return "h has moved with the data"


def _likeness(rank: float) -> str:
    if rank < 0.5:
        return "it does not rank like"
    return "it ranks loosely like" if rank < 0.8 else "it ranks like"
