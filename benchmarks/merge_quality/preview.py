"""Are the losses that ``vlora merge preview`` predicts the ones that merges have? Thirty weightings of a set, measured.

    python -m benchmarks.merge_quality.preview --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

Four adapters at a time, independent starts, IVON: domains of one task under one head, and different tasks with
their own heads. Each weighting is predicted as the preview does it, and merged without loss of rank; the merge is
scored on all training rows (what the curvature was gathered on), on validation and on test rows. Weightings: every
adapter alone, equal weights of 1/T, 1/2, 1 and 1.5, eight of the simplex, seven of twice the simplex, seven of the box
[0, 1.5]^T. The weightings that the preview itself names are merged and scored beside them, without knowing what an
adapter is worth, and with that measured on the training rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.network import ALPHA, MODULES, RANK
from benchmarks.merge_quality.run import RESULTS, Unit, arguments
from benchmarks.merge_quality.training import logits
from benchmarks.rows import keep_and_tell
from vlora.eval.metrics.proper_scores import correctness, negative_log_likelihood
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.config import AdapterSource, MergeConfig
from vlora.merge.methods import get_method
from vlora.merge.preview.build import build_model
from vlora.merge.preview.model import PreviewModel
from vlora.merge.preview.search import preview
from vlora.merge.preview.weightings import Family
from vlora.posterior import Posterior, PosteriorMeta

METHODS: dict[str, dict[str, Any]] = {
    "gradient_matching": {"curvature": "kronecker", "tau": 0.3},
    "task_arithmetic": {},
}
SPLITS = ("train", "validation", "test")
COUNT = 2000
"""Weightings that the preview itself looks at."""
HIGH = 1.5
NOISE_COST = 0.01


def units(seeds: Sequence[int]) -> list[Unit]:
    """Sets whose weightings are measured."""
    return [Unit(family, 4, "independent", "ivon", seed) for seed in seeds for family in ("domains", "mixed")]


def main() -> None:
    """One JSON per set of adapters."""
    measure_sets("preview", str(__doc__), evaluate)


def measure_sets(part: str, description: str, measure: Callable[[Unit, Library], dict[str, Any]]) -> None:
    """Measure every set that is asked for and has no record in this part."""
    args = arguments(description).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for unit in units(args.seeds or range(3)):
        if args.only in unit.name:
            keep_and_tell(RESULTS, part, unit.name, lambda u=unit: measure(u, library))


def evaluate(unit: Unit, library: Library) -> dict[str, Any]:
    """Predicted and measured losses of all weightings of one set, by both methods."""
    adapters = library.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    own = [measured(library, adapters, adapter.deltas()) for adapter in adapters]
    record = {
        **vars(unit),
        "tasks": list(unit.tasks),
        "examples": [adapter.num_examples for adapter in adapters],
        "own": {
            split: {
                metric: [own[t][split][metric][t] for t in range(len(own))] for metric in ("nll", "accuracy")
            }
            for split in SPLITS
        },
        "without": measured(library, adapters, {}),
    }
    weights = weightings(len(adapters), unit.seed)
    record["weights"] = weights.tolist()
    pairs = zip(record["without"]["train"]["nll"], record["own"]["train"]["nll"], strict=True)
    gains = [without - with_it for without, with_it in pairs]
    record["methods"] = {
        name: of_method(name, library, adapters, weights, unit.seed, gains) for name in METHODS
    }
    return record


def weightings(count: int, seed: int) -> Tensor:
    """Thirty rows of weights, see above. Shape ``(30, T)`` for four tasks."""
    generator = torch.Generator().manual_seed(seed)
    ones = torch.ones(1, count, dtype=torch.float64)
    equal = [share * ones for share in (1 / count, 0.5, 1.0, HIGH)]
    drawn = torch.rand(15, count, generator=generator, dtype=torch.float64).log().neg()
    simplex = drawn / drawn.sum(1, keepdim=True)
    box = HIGH * torch.rand(7, count, generator=generator, dtype=torch.float64)
    double = (2 * simplex[8:]).clamp_max(HIGH)
    return torch.cat([torch.eye(count, dtype=torch.float64), *equal, simplex[:8], double, box])


def of_method(
    name: str,
    library: Library,
    adapters: Sequence[Adapter],
    weights: Tensor,
    seed: int,
    gains: Sequence[float],
) -> dict[str, Any]:
    """Predictions and measurements of one method.

    Args:
        name: Of the method.
        library: Tasks.
        adapters: What is merged.
        weights: Shape ``(k, T)``.
        seed: Of the preview.
        gains: Nats per training example that every adapter is worth.

    Returns:
        ``increase`` and its ``std`` relative to no adapter; ``quadratic`` and ``without``, the quadratic form in nats
        per example by h; what was measured, and the named weightings.
    """
    tasks = [adapter.task for adapter in adapters]
    posteriors = [as_posterior(adapter) for adapter in adapters]
    model = modelled(name, posteriors, adapters)
    increase, std = Family(model, False, 0.0, HIGH).relative(weights)
    assert std is not None
    examples = torch.tensor([float(adapter.num_examples) for adapter in adapters], dtype=torch.float64)
    found: dict[str, Any] = {
        "increase": increase.tolist(),
        "std": std.tolist(),
        "quadratic": (model.predict(weights)[0] / examples).tolist(),
        "without": (model.without() / examples).tolist(),
        "measured": together(
            [measured(library, adapters, merged(name, adapters, w)) for w in weights.tolist()]
        ),
    }
    for label, worth in (("named", None), ("named by worth", dict(zip(tasks, gains, strict=True)))):
        settings = {"count": COUNT, "high": HIGH, "seed": seed, "variance": False}
        told = preview(configuration(name, adapters), posteriors, worth=worth, **settings)
        found[label] = {}
        for which in ("best average", "best worst task"):
            row = told.row(told.named[which])
            chosen = [row["weights"][task] for task in tasks]
            scored = measured(library, adapters, merged(name, adapters, chosen))
            increases = [row["increase"][task] for task in tasks]
            found[label][which] = {"weights": chosen, "increase": increases, "measured": scored}
    return found


def modelled(name: str, posteriors: Sequence[Posterior], adapters: Sequence[Adapter]) -> PreviewModel:
    """The quadratic model of a preview, as ``vlora.merge.preview.preview`` makes it."""
    tasks = [adapter.task for adapter in adapters]
    return build_model(
        read_inputs(posteriors, tasks), tasks, tau=METHODS[name].get("tau"), box=(0.0, HIGH), variance=True
    )


def configuration(name: str, adapters: Sequence[Adapter]) -> MergeConfig:
    """The merge with equal weights."""
    sources = [AdapterSource(path=adapter.task) for adapter in adapters]
    return MergeConfig(adapters=tuple(sources), output="", method=name, **METHODS[name])


def merged(name: str, adapters: Sequence[Adapter], weights: Sequence[float]) -> dict[str, Tensor]:
    """Dense merged update per module; adapters of weight 0 are left out."""
    method, chosen = get_method(name), [i for i, w in enumerate(weights) if w]
    return {
        module: method.function(
            [adapters[i].update(module) for i in chosen],
            [weights[i] for i in chosen],
            rank="lossless",
            **METHODS[name],
        ).update.delta().float()
        for module in MODULES
    }  # fmt: skip


def measured(
    library: Library, adapters: Sequence[Adapter], deltas: Mapping[str, Tensor]
) -> dict[str, dict[str, list[float]]]:
    """Split -> ``nll`` (mean, nats) and ``accuracy`` -> one number per task."""
    found: dict[str, dict[str, list[float]]] = {}
    for split in SPLITS:
        scores: dict[str, list[float]] = {"nll": [], "accuracy": []}
        for adapter in adapters:
            states = library.states(adapter.task, split, dict(deltas))
            log_probs = torch.log_softmax(logits(states, adapter.head()).double(), -1).numpy()
            label = library.rows(adapter.task, split).label.numpy()
            scores["nll"].append(float(negative_log_likelihood(log_probs, label).mean))
            scores["accuracy"].append(float(correctness(log_probs, label).mean()))
        found[split] = scores
    return found


def together(
    rows: Sequence[Mapping[str, Mapping[str, list[float]]]],
) -> dict[str, dict[str, list[list[float]]]]:
    """Weighting after weighting."""
    return {
        split: {metric: [row[split][metric] for row in rows] for metric in rows[0][split]} for split in SPLITS
    }


def as_posterior(adapter: Adapter) -> Posterior:
    """What the preview reads from a folder.

    The adapters were kept without their ess. It is the one at which a draw's noise costs ``NOISE_COST`` nats by the
    adapter's own h, sum h / (2 ess (h + delta)), which is what ``IVON.auto`` trains them to.
    """
    mean, hess, decay, curvature, seen = {}, {}, {}, {}, 0.0
    for module in MODULES:
        stem = f"base_model.model.{module}"
        for side in ("a", "b"):
            key = f"{stem}.lora_{side.upper()}.weight"
            mean[key] = adapter.tensors[f"{module}.{side}"]
            hess[key] = adapter.tensors[f"{module}.hess_{side}"]
            decay[key] = adapter.tensors[f"{module}.decay_{side}"].item()
            seen += (hess[key].double() / (hess[key].double() + decay[key])).sum().item()
        for side in ("input", "output"):
            curvature[f"{stem}.{side}_gram"] = adapter.tensors[f"{module}.{side}_gram"]
    meta = PosteriorMeta(num_examples=adapter.num_examples, ess=seen / (2 * NOISE_COST), weight_decay=decay)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["query", "value", "dense"],
    }
    return Posterior(mean, hess, meta, config, curvature)


if __name__ == "__main__":
    main()
