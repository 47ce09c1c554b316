"""Golden identities, run on the actual inputs before anything is written.

    single        the method on one adapter of weight 1 gives that adapter back (times ``scale``; without ``keep``)
    linear        the merged sum equals sum_t w_t s_t B_t A_t, and the mean that divided by sum_t w_t
    permutation   the order of the inputs changes nothing
    written       the factors as PEFT will read them, rank, alpha and dtype included, are the update that was computed

Two updates are compared on the same few random vectors, |X v - Y v| / |Y v| in the Frobenius norm, lower is better:
products of thin matrices, no m x n matrix, no cancellation. The modules are chosen by a fixed rule
(:func:`chosen_modules`), all of them where there are few. The identities are those that the field's tools broke for
years: PEFT scaled ``svd`` combinations twice from 2024 until 0.21.2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import IdentityError
from vlora.merge.adapters.reading import Inputs, read_inputs
from vlora.merge.layers import OptionsByModule
from vlora.merge.low_rank.algebra import relative_difference
from vlora.merge.methods import Method
from vlora.merge.methods.linear import linear
from vlora.merge.methods.task_arithmetic import task_arithmetic
from vlora.merge.update import LoraUpdate, present
from vlora.merge.weights import Weights
from vlora.posterior import Posterior

__all__ = ["MODULES", "TOLERANCE", "check_before", "check_written", "chosen_modules", "worst_difference"]

MODULES = 3
"""How many modules are looked at."""
TOLERANCE = 1e-6
"""Largest relative difference that passes for arithmetic in double precision; most methods stay below 1e-12, the rest
is room for iterative ones."""
_STORED_STEPS = 8.0  # of the stored dtype's precision: each factor is rounded once

_DRAWN = ("keep", "keep_weight")  # with them a single adapter is drawn to the base

Result = dict[str, Any]
Merge = Callable[[Sequence[LoraUpdate], Sequence[float]], LoraUpdate]


def chosen_modules(inputs: Inputs) -> list[str]:
    """First, middle and last module, in name order, of those that the most adapters have."""
    count = {m: sum(m in layout for layout in inputs.layouts) for m in inputs.modules}
    most = [module for module in inputs.modules if count[module] == max(count.values())]
    picks = [round(i * (len(most) - 1) / (MODULES - 1)) for i in range(MODULES)]
    return [most[i] for i in sorted(set(picks))]


def check_before(
    inputs: Inputs, weights: Weights, method: Method, rank: str | float, options: OptionsByModule
) -> Result:
    """Run the identities that need no result: single, linear, permutation.

    Args:
        inputs: The adapters of the merge.
        weights: Their weights.
        method: The method that is about to run.
        rank: As asked for.
        options: The method's own options.

    Returns:
        Plain data for the report: modules, tolerance, and per identity the largest difference, or why it was left out.

    Raises:
        IdentityError: An identity does not hold; which one, where, and by how much.
    """
    modules = chosen_modules(inputs)
    result: Result = {"modules": modules, "tolerance": TOLERANCE}
    result["single"] = _single(inputs, modules, method, options)
    result["linear"] = worst_difference(
        "linear", {m: _linear_error(*_counted(inputs, weights, m)) for m in modules}
    )
    if len(inputs.posteriors) < 2:
        return result | {"permutation": "one adapter only"}

    def merge(updates: Sequence[LoraUpdate], shares: Sequence[float]) -> LoraUpdate:
        return method.function(updates, shares, rank=rank, **options.of(updates[0].module)).update

    errors = {m: _permutation_error(merge, *_counted(inputs, weights, m)) for m in modules}
    return result | {"permutation": worst_difference("permutation", errors)}


def check_written(merged: Posterior, computed: Mapping[str, LoraUpdate]) -> float:
    """Compare what will be written with what was computed.

    Args:
        merged: The assembled posterior, in the dtype and with the configuration that go to disk.
        computed: Module -> merged update in double precision.

    Returns:
        The largest difference; as large as the stored dtype's rounding.

    Raises:
        IdentityError: A factor, rank or scaling got lost on the way.
    """
    stored = read_inputs([merged], ["the merge"])
    errors = {m: relative_difference(stored.update(0, m), update) for m, update in computed.items()}
    rounding = max(torch.finfo(v.dtype).eps for v in merged.mean.values())
    return worst_difference("written", errors, max(TOLERANCE, _STORED_STEPS * rounding))


def _single(inputs: Inputs, modules: Sequence[str], method: Method, settings: OptionsByModule) -> float | str:
    if method.single == "changed" or settings.common.get("task_rank") is not None:
        return "this method changes a single adapter"
    errors = {}
    for module in modules:
        options = {name: value for name, value in settings.of(module).items() if name not in _DRAWN}
        factor = options.get("scale", 1.0) if method.single == "sum" else 1.0
        for update in present(inputs.updates(module), [1.0] * len(inputs.posteriors))[0]:
            done = method.function([update], [1.0], rank="keep", **options).update
            own = task_arithmetic([update], [1.0], rank="lossless", scale=factor).update
            errors[f"{update.adapter}, {module}"] = relative_difference(done, own)
    return worst_difference("single", errors)


def _linear_error(updates: Sequence[LoraUpdate], shares: Sequence[float]) -> float:
    """Sum, and mean where it is defined, against the products of B, A and a vector written out."""
    updates, shares = present(updates, shares)

    def literal(vectors: Tensor) -> Tensor:
        parts = [w * u.scale * (u.b @ (u.a @ vectors)) for u, w in zip(updates, shares, strict=True)]
        return torch.stack(parts).sum(0)

    total = task_arithmetic(updates, shares, rank="lossless").update
    error = relative_difference(total, literal)
    if sum(shares) > 0:
        mean = linear(updates, shares, rank="lossless").update
        error = max(error, relative_difference(mean, lambda v: literal(v) / sum(shares)))
    return error


def _permutation_error(merge: Merge, updates: Sequence[LoraUpdate], shares: Sequence[float]) -> float:
    given = merge(updates, shares)
    return relative_difference(merge(list(reversed(updates)), list(reversed(shares))), given)


def _counted(inputs: Inputs, weights: Weights, module: str) -> tuple[list[LoraUpdate], list[float]]:
    counted = weights.counted(module, [i for i, layout in enumerate(inputs.layouts) if module in layout])
    return [inputs.update(i, module) for i, _ in counted], [w for _, w in counted]


def worst_difference(identity: str, errors: Mapping[str, float], tolerance: float = TOLERANCE) -> float:
    """The largest difference of an identity.

    Args:
        identity: Its name.
        errors: Module or tensor -> relative difference, 0 is best.
        tolerance: Largest one that passes.

    Raises:
        IdentityError: It is larger, or not a number.
    """
    place = max(errors, key=lambda key: errors[key])
    if not errors[place] <= tolerance:  # not a number counts as a failure
        raise IdentityError(
            f"golden identity {identity!r} fails in {place}: relative difference {errors[place]:.2g}, expected at most "
            f"{tolerance:.2g}; nothing was written. Please report it; verify: false merges without the check"
        )
    return errors[place]
