"""How long a merge of adapters will take: trials of its kinds of modules, counted as often as the merge runs them.

    seconds = sum over modules of (merge + describe)
            + golden identities, on 3 modules: 2 merges, and one of every adapter alone
            + sensitivity to the prior, on 2 or 4 modules: 2 merges, and 3 times what the report says
            + bytes read and hashed, bytes hashed and written, and two sorts of the merged h for its health
            + a part that does not depend on the merge: page, card, ledger

Hashing and sorting are timed too, the disk is only assumed.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from vlora.merge.adapters.identities import MODULES
from vlora.merge.config import MergeConfig
from vlora.merge.plan.cost import ModuleKind, module_cost
from vlora.merge.plan.trial import Trial, run_trial
from vlora.merge.report.sensitivity import sampled

__all__ = ["duration"]

_DISK = 1e9  # bytes a second; only assumed
_FIXED = 0.2  # seconds; measured once, mostly the template of the page
_TRIED = 3  # kinds of modules that are tried
_HASHED, _SORTED = 2**21, 2**17


def duration(
    config: MergeConfig, kinds: Sequence[ModuleKind], read: int, written: int, uncertain: int
) -> tuple[float, str]:
    """Seconds, and what they were made from.

    Args:
        config: The merge, which must have no problems.
        kinds: One per module.
        read: Bytes of all inputs.
        written: Bytes of the result.
        uncertain: Entries of its h.
    """
    counts = Counter(kinds)
    trials = _trials(config, counts)
    merging = sum(count * (trials[kind].merge + trials[kind].describe) for kind, count in counts.items())
    checking = _checking(config, kinds, trials)
    data, values = bytes(_HASHED), torch.rand(_SORTED, generator=torch.Generator().manual_seed(0))
    hashing, sorting = (
        _HASHED / _seconds(lambda: hashlib.sha256(data).digest()),
        _seconds(values.sort) / _SORTED,
    )
    moving = (read + written) * (1 / _DISK + 1 / hashing) + 2 * uncertain * sorting
    smallest = max((trial.factor for trial in trials.values()), default=1.0)
    basis = (
        f"{merging:.2g} s for the modules and {checking:.2g} s for the checks, from trials on random numbers "
        + (
            "of their shapes"
            if smallest == 1
            else f"of smaller modules (up to {smallest:.0f} times fewer operations)"
        )
        + f" just now; {read / 1e6:.3g} MB read and {written / 1e6:.3g} MB written at an assumed {_DISK / 1e9:g} GB/s, "
        f"hashed at {hashing / 1e9:.2g} GB/s"
    )
    return merging + checking + moving + _FIXED, basis


def _trials(config: MergeConfig, counts: Counter[ModuleKind]) -> dict[ModuleKind, Trial]:
    """Trials of the kinds that matter most; the others by their operations, at the speed of the last of them."""
    costs = {kind: module_cost(config, kind) for kind in counts}
    ordered = sorted(counts, key=lambda kind: -counts[kind] * (costs[kind].flops + costs[kind].telling))
    found = {kind: run_trial(config, kind) for kind in ordered[:_TRIED]}
    for kind in ordered[_TRIED:]:
        like = ordered[_TRIED - 1]
        factor, telling = costs[kind].flops / costs[like].flops, costs[kind].telling / costs[like].telling
        near = found[like]
        found[kind] = Trial(
            near.merge * factor, near.alone * factor, near.describe * telling, near.factor * factor
        )
    return found


def _checking(config: MergeConfig, kinds: Sequence[ModuleKind], trials: dict[ModuleKind, Trial]) -> float:
    """Golden identities and sensitivity, at the cost of the modules' mean."""
    if not kinds:
        return 0.0
    mean = [
        sum(getattr(trials[kind], part) for kind in kinds) / len(kinds)
        for part in ("merge", "alone", "describe")
    ]
    merge, alone, describe = mean
    seconds = 0.0
    if config.verify:
        count = len(config.adapters)
        seconds += min(MODULES, len(kinds)) * ((2 * merge if count > 1 else 0.0) + count * alone)
    if config.method == "gradient_matching":
        weighed = [kind for kind in kinds if kind.curvature in ("kronecker", "separable")]
        widest = max((max(kind.shape) for kind in kinds), default=0)
        seconds += len(sampled([str(i) for i in range(len(weighed))], widest)) * (2 * merge + 3 * describe)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(1e-9, time.perf_counter() - start)
