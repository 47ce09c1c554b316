r"""Uncertainty-based gradient matching for LoRA (Daheim et al. 2024, arXiv:2310.12808).

    theta' = theta_0 + sum_t w_t (H_0 + sum_u w_u H_u)^-1 (H_0 + H_t) (theta_t - theta_0)

exact for quadratic losses. What stands in for the Hessians H_t decides how well it works, best first:

=========== ============================== ======================================================================
sites       frozen A, h on B               exact sums of natural parameters in factor space
sites       one ancestor, h on A and B     the same for runs that went on from it (:mod:`vlora.merge.methods.lineage`)
kronecker   input Gram G of every adapter  closed form in update space; by far the largest gain for independent A
separable   only h                         lifted to row col^T, weighted re-factorisation; a small gain
isotropic   nothing                        H_t = 0 against H_0 = tau I: the weighted sum (task arithmetic)
=========== ============================== ======================================================================

Weights count an adapter's data: w = 1 for all approximates joint training, and one adapter of weight 1 is unchanged.

A negative weight has two meanings (``negative``):

``negate``  unlearning: the merge gets the adapter's negative, -W_t with weight \|w\| and curvature H_t > 0. It moves
            away from W_t as far as w says, and little where the others have curvature. Always well posed.
``remove``  the formula as it stands: data that are in the sum are taken out of it. Exact for sites that are in there;
            else the objective l_0 - \|w\| l_t has no minimum where H_t outweighs the rest. Precisions are then kept at
            5 % of their positive part (:mod:`vlora.merge.curvature.positive`), and the clamped share is reported.

The default is ``remove`` for sites, where it undoes a merge, and ``negate`` for all other curvatures. In a linear model
of two tasks with overlapping inputs (``tests/merge/methods/test_unlearning.py``) ``remove`` with Kronecker curvature
blows up both losses; at the same weight ``negate`` costs the task that stays about half of what subtracting the update
does.

``keep`` gives the base model a say: the curvature P of its own inputs, with a weight, as of one more adapter whose
update is zero, w P in the total and nothing beside it on the right. A prior does not do that: it stands on both sides.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram
from vlora.merge.curvature.kept import Kept
from vlora.merge.kronecker.closed_form import passing_metric
from vlora.merge.kronecker.under_prior import solution_under_prior
from vlora.merge.low_rank.algebra import resolve_rank
from vlora.merge.low_rank.recompress import recompress
from vlora.merge.methods.lineage import merge_lineage
from vlora.merge.methods.separable import separable_merge
from vlora.merge.methods.sites import merge_shared_a
from vlora.merge.methods.task_arithmetic import weighted_sum
from vlora.merge.update import LoraUpdate, MergedModule, present, shared_a

__all__ = ["CURVATURES", "DEFAULT_TAU", "NEGATIVE", "choose_curvature", "gradient_matching"]

DEFAULT_TAU = 0.3
"""Prior precision if none is given."""

CURVATURES = ("auto", "sites", "kronecker", "separable", "isotropic")
"""Accepted values of the option ``curvature``."""
NEGATIVE = ("negate", "remove")
"""Accepted values of the option ``negative``."""


class ModulePrior(Protocol):
    """H_0 of one module, relative to tau."""

    @property
    def input(self) -> Gram:
        """P over the inputs. Shape ``(n, n)``."""
        ...

    @property
    def rows(self) -> Tensor:
        """Diagonal over the outputs. Shape ``(m,)``."""
        ...

    @property
    def columns(self) -> Tensor:
        """Diagonal over the inputs. Shape ``(n,)``."""
        ...


class PriorSource(Protocol):
    """Where priors come from."""

    def of(self, module: str, outputs: int, inputs: int) -> ModulePrior:
        """That of a module, by its name and its size."""
        ...


class KeepSource(Protocol):
    """Where the curvature of what the base is to keep comes from."""

    def of(self, module: str, outputs: int, inputs: int, weight: float) -> Kept:
        """That of a module, by its name, its size and the weight it is to have."""
        ...


class AncestorSource(Protocol):
    """Where an ancestor's updates come from."""

    def of(self, module: str) -> LoraUpdate:
        """Mean m_0 and precision S_0 of a module."""
        ...


def gradient_matching(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    *,
    rank: str | float = "keep",
    tau: float = DEFAULT_TAU,
    scale: float = 1.0,
    curvature: str = "auto",
    negative: str | None = None,
    prior: PriorSource | None = None,
    keep: KeepSource | None = None,
    keep_weight: float = 1.0,
    ancestor: AncestorSource | None = None,
) -> MergedModule:
    """Merge the updates of one module by what each adapter is sure of.

    Args:
        updates: Updates of one module with whatever posterior and curvature they have.
        weights: w_t, how often an adapter's data count; negative takes them away.
        rank: ``keep``, ``lossless`` (not for separable curvature), a number, a share of energy, or ``auto``:
            lossless where that exists.
        tau: Prior precision H_0 relative to the mean curvature of an adapter. Hardly matters between .1 and 1.
        scale: Factor on the merged update; 1 leaves a single adapter unchanged.
        curvature: ``auto`` takes the best that all adapters have, see :data:`CURVATURES`.
        negative: What a negative weight means, ``negate`` or ``remove``; see above for the default.
        prior: Gives P of H_0 = tau P per module (:mod:`vlora.merge.adapters.prior`), for Kronecker and separable
            curvature; the identity if not given. Sites have the priors of their posteriors.
        keep: Gives the curvature P of what the base model is to keep, per module (:mod:`vlora.merge.adapters.keep`),
            for Kronecker and separable curvature: an adapter of Gram P without an update. Sites are not chosen then.
        keep_weight: w >= 0 of P, in adapters; 0 is no ``keep``, a large one draws the merge to zero.
        ancestor: What all updates went on from, if they do not name it themselves (``LoraUpdate.ancestor``); their
            precisions are then those of their own data. They are summed by sites, at the ancestor's rank.

    Returns:
        The merged update; its report names the curvature that was used.

    Raises:
        IncompatibleAdaptersError: The curvature asked for is not at hand, or ranks do not fit.
    """
    updates, weights = present(updates, weights)
    keep = keep if keep_weight > 0 else None
    if ancestor is not None:
        updates = [replace(u, ancestor=u.ancestor or ancestor.of(u.module)) for u in updates]
    if updates[0].ancestor is not None:
        return _of_one_lineage(updates, weights, rank, scale, curvature, negative, keep is not None)
    kind = choose_curvature(updates, keep is None) if curvature == "auto" else curvature
    _check_keep(kind, updates, keep is not None)
    wanted = resolve_rank(updates, rank, exact=kind != "separable")
    if (negative or ("remove" if kind == "sites" else "negate")) == "negate":
        updates = [replace(u, b=-u.b) if w < 0 else u for u, w in zip(updates, weights, strict=True)]
        weights = [abs(w) for w in weights]
    known, place = None, (updates[0].module, updates[0].b.shape[0], updates[0].a.shape[1])
    if prior is not None and kind in ("kronecker", "separable"):
        known = prior.of(*place)
    kept = None if keep is None else keep.of(*place, keep_weight)
    if kind == "sites":
        merged = _sites(updates, weights, wanted)
    elif kind == "kronecker":
        merged = _kronecker(updates, weights, wanted, tau, None if known is None else known.input, kept)
    elif kind == "separable":
        merged = separable_merge(
            updates, weights, wanted, tau, None if known is None else (known.rows, known.columns), kept
        )
    else:
        merged = weighted_sum(updates, weights, rank)
    report = {**merged.report, "curvature": kind}
    return MergedModule(replace(merged.update, scale=merged.update.scale * scale), report)


def choose_curvature(updates: Sequence[LoraUpdate], sites: bool = True) -> str:
    """Best kind of curvature that every update of a module has; ``sites`` or not."""
    if all(u.precision_b is not None for u in updates):
        if sites and shared_a(updates) and all(u.precision_a is None for u in updates):
            return "sites"
        fallback = "separable"
    else:
        fallback = "isotropic"
    return "kronecker" if all(u.input_gram is not None for u in updates) else fallback


def _check_keep(kind: str, updates: Sequence[LoraUpdate], keeps: bool) -> None:
    """Refuse curvatures that P cannot be weighed against."""
    if not keeps or kind in ("kronecker", "separable"):
        return
    reason = {
        "sites": "sites know no other curvature than h of the adapters' factors",
        "isotropic": "no adapter's curvature would stand against it",
    }[kind]
    cure = (
        "set curvature: auto" if kind == "sites" else "gather curvature for every adapter (vlora.curvature)"
    )
    raise IncompatibleAdaptersError(
        f"keep goes with Kronecker or separable curvature, but {updates[0].module} is merged by curvature: {kind}, "
        f"where {reason}; {cure}, or leave keep out"
    )


def _sites(updates: Sequence[LoraUpdate], weights: Sequence[float], rank: int | float | None) -> MergedModule:
    for update in updates:
        if update.precision_b is None or update.precision_a is not None or not shared_a(updates):
            raise IncompatibleAdaptersError(
                f"curvature: sites needs one frozen A and h on B for all adapters, which does not hold for "
                f"{update.adapter!r} on {update.module}; set curvature: auto"
            )
    merged = merge_shared_a(updates, weights)
    done = recompress(merged.update, updates, weights, rank)
    return MergedModule(done.update, {**merged.report, **done.report})


def _of_one_lineage(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    rank: str | float,
    scale: float,
    curvature: str,
    negative: str | None,
    keeps: bool,
) -> MergedModule:
    own = updates[0].rank
    if keeps:
        raise IncompatibleAdaptersError(
            "runs of one ancestor are summed by sites; leave keep out, or ancestor"
        )
    if curvature not in ("auto", "sites") or scale != 1:
        raise IncompatibleAdaptersError(
            "runs of one ancestor are summed by sites, with scale 1; leave curvature and scale out, or ancestor"
        )
    if rank not in ("auto", "keep", "lossless", own):
        raise IncompatibleAdaptersError(
            f"rank is {rank!r}, but runs of one ancestor keep its rank, {own} on {updates[0].module}; leave rank out"
        )
    return merge_lineage(updates, weights, negate=negative == "negate")


def _kronecker(
    updates: Sequence[LoraUpdate],
    weights: Sequence[float],
    rank: int | float | None,
    tau: float,
    prior: Gram | None,
    keep: Kept | None,
) -> MergedModule:
    """Closed form at full rank, then S^1/2 X G^1/2 truncated; S is left out unless every adapter and P have it."""
    full, clamped, total = solution_under_prior(updates, weights, tau, prior, keep)
    metrics = None
    if rank is not None and full.rank > rank:
        outputs = [(u.output_gram, w) for u, w in zip(updates, weights, strict=True)]
        outputs += [] if keep is None else [(keep.output, keep.weight)]
        metrics = passing_metric([gram for gram, _ in outputs], [w for _, w in outputs], tau), total
    done = recompress(full, updates, weights, rank, metrics=metrics)
    return MergedModule(done.update, {"clamped_fraction": clamped, **done.report})
