"""Why is a predicted increase not the measured one? The training loss on the way from an adapter to the merge.

    python -m benchmarks.merge_quality.rays --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

The sets of :mod:`benchmarks.merge_quality.preview`, merged with all weights 1. For task t the loss of its training rows
at W_t + s (X - W_t) is measured at s = -.05, 0, .05 and 1, with W_t its own adapter and X the merge: slope and
curvature at s = 0 by central differences. A quadratic model knows the curvature only: slope 0, and q at s = 1.
"""

from typing import Any

import torch

from benchmarks.merge_quality.adapters import Library
from benchmarks.merge_quality.preview import METHODS, as_posterior, measure_sets, merged, modelled
from benchmarks.merge_quality.run import Unit
from benchmarks.merge_quality.training import logits
from vlora.eval.metrics.proper_scores import negative_log_likelihood

STEP = 0.05


def main() -> None:
    """One JSON per set of adapters."""
    measure_sets("rays", str(__doc__), evaluate)


def evaluate(unit: Unit, library: Library) -> dict[str, Any]:
    """Slope, half curvature, what was measured and what the model says, per method and task; nats per example."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    posteriors, ones = [as_posterior(adapter) for adapter in adapters], [1.0] * len(adapters)
    found = {}
    for name in METHODS:
        quadratic = modelled(name, posteriors, adapters).predict(torch.tensor([ones], dtype=torch.float64))[
            0
        ][0]
        target = merged(name, adapters, ones)
        rows = []
        for adapter, value in zip(adapters, quadratic.tolist(), strict=True):
            own = adapter.deltas()

            def loss(step: float, adapter: Any = adapter, own: Any = own, target: Any = target) -> float:
                deltas = {m: w.float() + step * (target[m] - w.float()) for m, w in own.items()}
                states = library.states(adapter.task, "train", deltas)
                log_probs = torch.log_softmax(logits(states, adapter.head()).double(), -1).numpy()
                label = library.rows(adapter.task, "train").label.numpy()
                return float(negative_log_likelihood(log_probs, label).mean)

            before, here, after, there = (loss(step) for step in (-STEP, 0.0, STEP, 1.0))
            rows.append(
                {
                    "task": adapter.task,
                    "slope": (after - before) / (2 * STEP),
                    "half_curvature": (after + before - 2 * here) / (2 * STEP**2),
                    "measured": there - here,
                    "quadratic": value / adapter.num_examples,
                }
            )
        found[name] = rows
    return {**vars(unit), "tasks": list(unit.tasks), "methods": found}


if __name__ == "__main__":
    main()
