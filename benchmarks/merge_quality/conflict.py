"""Is the predicted cost of merging one module the measured one?

Take an adapter, put the merged update into one module only, and look at the task's NLL: that is the measured cost of
this module for this task. With D = merged - own update and the curvature at the adapter, a quadratic predicts

    kronecker   1/2 c tr(S D G D^T)              what the conflict map predicts (merge/curvature/quadratic.py), c from h
    separable   1/2 sum_ij row_i col_j D_ij^2    the lifted h
    shape       tr(S D G D^T)                    without the scale c, which Grams alone do not have
    distance    |D|^2                            no curvature

in nats per example for the first two. What a quadratic around the adapter describes is the loss that the adapter was
trained on; on test rows an adapter is not at a minimum, and a module of a merge can even help. So both are measured: on
the training rows and on test rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter
from benchmarks.merge_quality.network import MODULES
from vlora.grams import dense
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.quadratic import metric_of
from vlora.merge.curvature.unit import normalised_gram

Nll = Callable[[str, Mapping[str, Tensor], str], float]
"""Task, updates and split -> mean NLL."""
SPLITS = {"measured": "test", "measured_train": "train"}


def conflict(adapters: Sequence[Adapter], merged: Mapping[str, Tensor], nll: Nll) -> list[dict[str, Any]]:
    """Predicted and measured cost of every module for every task."""
    found = []
    for adapter in adapters:
        own = adapter.deltas()
        before = {split: nll(adapter.task, own, split) for split in SPLITS.values()}
        for module in MODULES:
            mixed = {**own, module: merged[module]}
            row = {"task": adapter.task, "module": module}
            row |= {name: nll(adapter.task, mixed, split) - before[split] for name, split in SPLITS.items()}
            found.append(row | predicted(adapter, module, merged[module]))
    return found


def predicted(adapter: Adapter, module: str, merged: Tensor) -> dict[str, float]:
    """The four predictions for one module."""
    update = adapter.update(module)
    difference = merged.double() - update.delta()
    assert update.input_gram is not None
    assert update.output_gram is not None
    g, s = (normalised_gram(gram, module) for gram in (update.input_gram, update.output_gram))
    shape = ((s @ difference @ g) * difference).sum().item()
    out = {"shape": shape, "distance": difference.square().sum().item()}
    lifted = lift_update(update)
    if lifted is not None:
        row, col = lifted
        out["separable"] = 0.5 * (row @ difference.square() @ col).item() / adapter.num_examples
        raw = (dense(update.output_gram) @ difference @ dense(update.input_gram) * difference).sum().item()
        out["kronecker"] = 0.5 * metric_of(update).scale * raw / adapter.num_examples
    return out
