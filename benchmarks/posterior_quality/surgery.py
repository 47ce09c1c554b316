"""Pruning by signal-to-noise ratio, and a learned prior: do they help on real tasks?

    python -m benchmarks.posterior_quality.surgery --data DATA --work WORK [--jobs 2]

The adapter of ``IVON.auto`` at the rate that ``run tune`` chose is pruned by ``vlora prune``'s functions and, with the
same counts, by size alone and at random; and trained again at the ``ess`` it ended with, with the fixed prior and with
``prior="empirical_bayes"``. Nothing is chosen, so test rows are used. A unit whose file exists is not repeated.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record
from vlora import Posterior
from vlora.posterior.lora_layout import split_keys
from vlora.posterior.pruning import prune_entries
from vlora.posterior.signal import component_snr

RESULTS = Path(__file__).parent / "results" / "surgery"
SEEDS = (0, 1)
FRACTIONS = (0.25, 0.5, 0.75, 0.9)
RANKS = (4, 2, 1)


def main() -> None:
    """Run what is missing."""
    from benchmarks.posterior_quality.tasks import TASKS

    run_units(str(__doc__), [(task, seed) for seed in SEEDS for task in TASKS], one)


def one(unit: tuple[str, int, Path, Path]) -> str:
    """One task and seed, unless its file exists."""
    name, seed, data, work = unit
    target = RESULTS / f"{name}_{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.tasks import load_task

    torch.set_num_threads(1)
    task = load_task(name, data, work / "features")
    record = keep_record(target, lambda: {"task": name, "seed": seed, **measure(task, seed)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(task: Any, seed: int) -> dict[str, Any]:
    """Scores of every way to prune, and of both priors."""
    from benchmarks.posterior_quality.arms import auto, auto_optimizer, fit
    from benchmarks.posterior_quality.network import Network
    from benchmarks.posterior_quality.units import best_given
    from vlora import Posterior

    lr = best_given("ivon_auto", task.name)["lr"]
    network = Network(task.num_classes, seed)
    optimizer = auto_optimizer(network, task=task, seed=seed, lr=lr)
    fit(network, task.train, optimizer, seed, task.steps, gather=False)
    optimizer.eval()
    ess = optimizer.posterior_state(network.trained()[0])["ess"]
    posterior = Posterior.from_optimizer(network.peft, optimizer, num_examples=len(task.train), seed=seed)
    found = {"lr": lr, "ess": ess, "pruned": pruned(network, task, posterior, seed), "priors": {}}
    for prior in ("fixed", "empirical_bayes"):
        outcome = auto(task, seed, test=True, scales=(), lr=lr, ess=ess, prior=prior)
        found["priors"][prior] = {
            name: predictor_quality(value["test"], task.test.label)
            for name, value in outcome.predictions.items()
        }
    return found


def predictor_quality(log_probs: Tensor, label: Tensor) -> dict[str, float]:
    """Metrics of log-probabilities ``(N, C)``, or of the mixture of draws ``(S, N, C)``."""
    from benchmarks.posterior_quality.scores import quality
    from vlora.eval.metrics.uncertainty import mixture_log_probs

    values = log_probs.double().numpy()
    return quality(mixture_log_probs(values) if values.ndim == 3 else values, label.numpy())


def pruned(network: Any, task: Any, posterior: Posterior, seed: int) -> dict[str, dict[str, float]]:
    """Test metrics of the mean for every way and amount, keyed ``<what>, <how>, <amount>``."""
    from vlora.posterior.keys import adapter_tensors

    live = adapter_tensors(network.peft, posterior.mean)
    out = {}
    for name, mean in {"all": posterior.mean, **means(posterior, seed)}.items():
        with torch.no_grad():
            for key, tensor in live.items():
                tensor.copy_(mean[key])
        out[name] = predictor_quality(network.log_probs(task.test), task.test.label)
    return out


def means(posterior: Posterior, seed: int) -> dict[str, dict[str, Tensor]]:
    """Means of pruned posteriors: by the package's ratios, by size alone, and at random, with equal counts."""
    generator = torch.Generator().manual_seed(seed)
    random = {key: torch.rand(value.shape, generator=generator) for key, value in posterior.mean.items()}
    out = {}
    for fraction in FRACTIONS:
        out[f"entries, ratio, {fraction:g}"] = prune_entries(posterior, fraction=fraction).posterior.mean
        for how, score in (("size", {k: v.abs() for k, v in posterior.mean.items()}), ("random", random)):
            out[f"entries, {how}, {fraction:g}"] = lowest_dropped(posterior, score, fraction)
    for rank in RANKS:
        for how in ("ratio", "size", "random"):
            out[f"components, {how}, {rank}"] = components_kept(posterior, how, rank, random)
    return out


def lowest_dropped(posterior: Posterior, score: dict[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """The mean with this share of every factor's entries of lowest score at zero."""
    factors = {key for keys in split_keys(posterior.mean)[0].values() for key in (keys.a, keys.b)}

    def cut(key: str, value: Tensor) -> Tensor:
        order = score[key].flatten().argsort()
        flat = value.flatten().clone()
        flat[order[: round(fraction * flat.numel())]] = 0
        return flat.view_as(value)

    return {key: cut(key, value) if key in factors else value for key, value in posterior.mean.items()}


def components_kept(
    posterior: Posterior, how: str, rank: int, random: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The mean with all but ``rank`` components of every module at zero."""
    mean = dict(posterior.mean)
    for keys in split_keys(posterior.mean)[0].values():
        a, b = mean[keys.a], mean[keys.b]
        score = {
            "ratio": lambda keys=keys: component_snr(posterior, keys),
            "size": lambda a=a, b=b: a.norm(dim=1) * b.norm(dim=0),
            "random": lambda keys=keys: random[keys.a][:, 0],
        }[how]()
        mean[keys.b] = b.masked_fill(score.argsort().argsort() < len(score) - rank, 0)
    return mean


if __name__ == "__main__":
    main()
