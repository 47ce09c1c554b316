"""Where a streamed merge spends its time: CPU seconds of all threads per phase, and the wall clock of the whole.

    python -m benchmarks.merge_io.run --only phases_ties --layers 6

The functions of a phase are wrapped for the duration of one merge. A call counts for its own phase, less what phases
inside it take; the phases of :data:`WHOLE` keep everything that happens in them. Seconds are those of the thread's own
CPU clock, so that waiting (for the disk, the other core or the interpreter's lock) shows only in the wall clock.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

__all__ = ["WHOLE", "Phases", "phase_places", "recorded"]

WHOLE = ("plan", "identities", "agreement sample", "small files and rename")
"""Phases that keep what other phases do inside them."""


class Phases:
    """CPU seconds and number of calls per phase, added over threads."""

    def __init__(self) -> None:
        self._all: list[dict[str, list[float]]] = []
        self._local = threading.local()

    @property
    def spent(self) -> dict[str, dict[str, float]]:
        """Phase -> CPU seconds and calls."""
        names = {name: None for one in self._all for name in one}
        sums = {name: [sum(one.get(name, [0, 0])[i] for one in self._all) for i in (0, 1)] for name in names}
        return {name: {"cpu": cpu, "calls": calls} for name, (cpu, calls) in sums.items()}

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            stack, spent = self._of_this_thread()
            if stack and stack[-1][0] in WHOLE:
                return function(*args, **kwargs)
            stack.append([phase, 0.0])
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                own = time.thread_time() - start
                _, inside = stack.pop()
                if stack:
                    stack[-1][1] += own
                found = spent.setdefault(phase, [0.0, 0])
                found[0] += own - inside
                found[1] += 1

        return counted

    def _of_this_thread(self) -> tuple[list[Any], dict[str, list[float]]]:
        local = self._local
        if not hasattr(local, "stack"):
            local.stack, local.spent = [], {}
            self._all.append(local.spent)
        return local.stack, local.spent


def phase_places() -> dict[str, list[tuple[Any, str]]]:
    """Phase -> functions, by the place from which they are called."""
    from vlora.merge.checkpoints import engine, rules, run, sparse_rules
    from vlora.merge.checkpoints.stream import Files, TensorStream
    from vlora.merge.checkpoints.thresholds import KthLargest

    return {
        "read": [(Files, "read_into")],
        "to float32": [(TensorStream, "_float")],
        "differences": [(sparse_rules, "differences")],
        "threshold: sample": [(KthLargest, "__init__")],
        "threshold: count": [(KthLargest, "add")],
        "threshold: rest of the first pass": [(sparse_rules.Ties, "prepare")],
        "trim": [(sparse_rules, "shrink")],
        "elect": [(sparse_rules, "elect")],
        "add to the base": [(sparse_rules.Ties, "tile")],
        "check for NaN": [(engine, "_check")],
        "weighted sum": [(rules.WeightedMean, "tile"), (rules.WeightedSum, "tile")],
        "round to the output's dtype, and the rest": [(engine, "make_tensor")],
        "write": [(engine, "_write")],
        "flush": [(engine, "_sync")],
        "agreement sample": [(engine, "sampled_agreement")],
        "identities": [(run, "check_output")],
        "small files and rename": [(run, "_write_small_files"), (run.Workspace, "finish")],
        "make the output files": [(run, "create_shards")],
    }


@contextmanager
def recorded() -> Iterator[Phases]:
    """Count the phases of the merges inside."""
    phases = Phases()
    with ExitStack() as stack:
        for phase, places in phase_places().items():
            for owner, name in places:
                stack.enter_context(patch.object(owner, name, phases.wrap(phase, getattr(owner, name))))
        yield phases
