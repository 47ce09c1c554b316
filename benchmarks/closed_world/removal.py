"""Unlearning: adapter A is taken out again, of its merge with B, of one training on both, and of nothing.

*Removed* is ``vlora merge remove`` on the folder that ``vlora merge`` wrote, with the ledger. Without it, A is merged
once more with a negative weight: its update subtracted (``task_arithmetic``), or by its curvature
(``gradient_matching``, as ``negate`` or as ``remove``), from the merge, from an adapter that was taught both at once,
and from the base model alone.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.closed_world.groups import Group
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.sweeps import Labelled
from vlora import Posterior
from vlora.config import load_config
from vlora.errors import VloraError
from vlora.merge.config import MergeConfig
from vlora.merge.in_memory import merge_adapters
from vlora.merge.run import run_merge
from vlora.merge.unmerge.run import remove_contributors
from vlora.posterior.hashing import tensors_sha256

__all__ = ["SUBTRACTIONS", "units"]

SOURCE = "adamw"
WEIGHTS = (-0.5, -1.0)
SUBTRACTIONS: dict[str, dict[str, Any]] = {
    "subtracted": {"method": "task_arithmetic"},
    "negate": {"method": "gradient_matching"},
    "remove": {"method": "gradient_matching", "negative": "remove"},
}
"""Name -> method and options of a merge in which A has a negative weight."""


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """The one unit of a world."""
    return {"unlearning": partial(_unit, Group(seed, "ab", optimizers, work))}


def _unit(group: Group) -> dict[str, Any]:
    a, b = group.inputs(SOURCE)
    merge = merge_adapters([a, b], rank="lossless")
    both = group.joint(SOURCE)
    found = {"base": _asked(group, None)}
    found |= {
        "a": _asked(group, a),
        "b": _asked(group, b),
        "merge": _asked(group, merge),
        "joint": _asked(group, both),
    }
    left, facts = _removed(group, [a, b])
    found["merge, removed"] = _asked(group, left)
    for name, options in SUBTRACTIONS.items():
        for weight in WEIGHTS:
            given = {**options, "rank": "lossless"}
            found[f"merge, {name} {weight:g}"] = _less(group, [a, b, a], [1.0, 1.0, weight], given)
            found[f"joint, {name} {weight:g}"] = _less(group, [both, a], [1.0, weight], given)
            if name != "remove":  # nothing is in the base that could be removed
                found[f"base, {name} {weight:g}"] = _less(group, [a], [weight], given)
    return {"world": group.seed, "source": SOURCE, "found": found, "facts": facts}


def _less(
    group: Group, inputs: Sequence[Posterior], weights: Sequence[float], options: dict[str, Any]
) -> dict[str, Any]:
    """What is left, or why the merge is refused."""
    try:
        return _asked(group, merge_adapters(inputs, weights=weights, verify=False, **options))
    except VloraError as error:
        return {"refused": str(error)}


def _removed(group: Group, inputs: Sequence[Posterior]) -> tuple[Posterior, dict[str, Any]]:
    """B's side of the merge, by the program, and whether it is B to the last bit."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / adapter for adapter in group.adapters]
        for posterior, path in zip(inputs, paths, strict=True):
            posterior.save_pretrained(path)
        config = {
            "adapters": [{"path": str(path)} for path in paths], "rank": "lossless", "output": f"{folder}/merge",
        }  # fmt: skip
        merge = run_merge(load_config(MergeConfig, config))
        done = remove_contributors(merge, ["a"], Path(folder) / "left")
        left = Posterior.from_pretrained(done.output)
    same = tensors_sha256(left.mean) == tensors_sha256(inputs[1].mean)
    return left, {"way": done.way, "reproduced": done.reproduced, "same_bits": same}


def _asked(group: Group, posterior: Posterior | None) -> dict[str, Any]:
    """Recall and NLL of the test facts."""
    with wearing(posterior) as model:
        return Labelled(group.setting().asked, ("test",)).numbers(model)
