"""Subtracting an adapter from a merge whose other inputs are not at hand, and how far that may be off.

    one frozen A    natural parameters, S - w S_t and S m - w S_t m_t; exact up to the rounding of the stored dtype
    one lineage     the same relative to the ancestor, which must be at hand
    scaled sums     X - w W_t; off by what the truncation to the merged rank had cut away
    anything else   refused: the merge is no sum

The residual is an upper estimate of |result - merge of the others| / |merge of the others|, the largest of all modules.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.in_memory import merge_with_report
from vlora.merge.low_rank.algebra import inner_product
from vlora.merge.unmerge.remove import remove_adapter
from vlora.posterior import Posterior

__all__ = ["subtract"]

_NO_ENERGY_LOST = 1 - 1e-12


def subtract(
    merged: Posterior,
    adapter: Posterior,
    source: Mapping[str, Any],
    report: Mapping[str, Any],
    ancestor: Posterior | None = None,
) -> tuple[Posterior, float]:
    """Take an adapter's own site or update out of a merge.

    Args:
        merged: The merge.
        adapter: The contributor.
        source: Its entry in the lineage of the merge: name, weight.
        report: Content of ``merge_report.json``.
        ancestor: What the merge was relative to, for one lineage.

    Returns:
        The rest, and the estimated relative residual (0 is exact).

    Raises:
        IncompatibleAdaptersError: The merge is not a sum.
    """
    if source.get("module_weights") or report.get("options", {}).get("module_options"):
        raise IncompatibleAdaptersError(
            f"{source['name']!r} has weights or options per module, which cannot be subtracted again; merge the "
            "others anew"
        )
    if report.get("options", {}).get("ancestor") and report["options"].get("negative") == "negate":
        raise IncompatibleAdaptersError(
            "a negative weight of this merge stood for the adapter's negative, which is not subtracted; merge the "
            "others anew"
        )
    curvatures = {values.get("curvature") for values in report["modules"].values()}
    method, weight = report["method"], float(source["weight"])
    factor = report.get("options", {}).get("scale", 1.0)
    if method == "gradient_matching" and curvatures == {"sites"} and factor == 1:
        rest = remove_adapter(merged, adapter, weight=weight, ancestor=ancestor)
        return rest, _rounding(merged, rest)
    if not (method == "task_arithmetic" or (method == "gradient_matching" and curvatures == {"isotropic"})):
        raise IncompatibleAdaptersError(
            f"a {method} merge is no sum that {source['name']!r} could be subtracted from, and not all of the other "
            "inputs are at hand; merge the others anew, or say where they are: --source NAME=FOLDER"
        )
    weights = [1.0, -weight * factor]
    rest, _ = merge_with_report(
        [merged, adapter], method="task_arithmetic", weights=weights, rank=_NO_ENERGY_LOST, verify=False
    )
    return rest, _truncated(merged, rest, report)


def _rounding(merged: Posterior, rest: Posterior) -> float:
    """Rounding of the merge's stored natural parameters, relative to those that are left."""
    worst = 0.0
    for key, hess in rest.hess.items():
        step = torch.finfo(merged.mean[key].dtype).eps
        before = (merged.hess[key] + merged.meta.of("weight_decay", key)).double() * merged.mean[key].double()
        after = (hess + rest.meta.of("weight_decay", key)).double() * rest.mean[key].double()
        share = merged.meta.num_examples / rest.meta.num_examples
        worst = max(worst, step * share * before.norm().item() / max(after.norm().item(), 1e-300))
    return worst


def _truncated(merged: Posterior, rest: Posterior, report: Mapping[str, Any]) -> float:
    """|cut away| = |X| sqrt((1 - retained) / retained), relative to what is left."""
    before, after, worst = read_inputs([merged], ["merge"]), read_inputs([rest], ["rest"]), 0.0
    step = max(torch.finfo(value.dtype).eps for value in merged.mean.values())
    for module in after.modules:
        retained = report["modules"].get(module, {}).get("retained_energy", 1.0)
        size, left = (
            math.sqrt(max(0.0, inner_product(u, u)))
            for u in (before.update(0, module), after.update(0, module))
        )
        cut = size * math.sqrt(max(0.0, 1 - retained) / max(retained, 1e-300))
        worst = max(worst, (cut + step * size) / max(left, 1e-300))
    return worst
