"""Whose width do draws have, the prior's or the data's, and does another one predict better? Validation rows only.

    python -m benchmarks.posterior_quality.widths --data DATA --work WORK [--jobs 2]

``IVON.auto`` at the rate that ``run tune`` chose is trained with other caps (``max_std_ratio``) and with one parameter
group per tensor, so that ``ess`` and ``weight_decay`` come from the tensor's own mean of h and the typical width is
common. The posterior of the default is also drawn with other shapes of its width (``shapes``), each brought to the
same predicted cost 1/2 sum h std^2 first. A width, or a prior, is chosen on one half of the validation rows and judged
on the other, both ways round. Nothing reads the test rows. The forward pass is classification_uq's, which computes the
first token only and has dropout of its own, so that runs differ from those of ``run`` as two seeds do.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record

RESULTS = Path(__file__).parent / "results" / "widths"
SEEDS = (100,)
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "ratio_3": {"max_std_ratio": 3.0},
    "ratio_10": {"max_std_ratio": 10.0},
    "per_tensor": {"per_tensor": True},
    "per_tensor_ratio_10": {"per_tensor": True, "max_std_ratio": 10.0},
}
SCALES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
KEPT = ("accuracy", "nll", "ece", "aurc")


def main() -> None:
    """Run what is missing."""
    from benchmarks.posterior_quality.tasks import TASKS

    run_units(str(__doc__), [(task, way, seed) for seed in SEEDS for task in TASKS for way in WAYS], one)


def one(unit: tuple[str, str, int, Path, Path]) -> str:
    """One task, way and seed, unless its file exists."""
    name, way, seed, data, work = unit
    target = RESULTS / f"{name}__{way}__{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    from benchmarks.posterior_quality.tasks import load_task

    torch.set_num_threads(1)
    task = load_task(name, data, work / "features")
    head = {"task": name, "way": way, "seed": seed}
    record = keep_record(target, lambda: {**head, **measure(task, way, seed)})
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(task: Any, way: str, seed: int) -> dict[str, Any]:
    """Facts and validation scores of one trained posterior; of the default also of other shapes of its width."""
    from benchmarks.classification_uq.network import Network
    from benchmarks.posterior_quality.arms import fit

    network = Network(task.num_classes, seed)
    optimizer = _optimizer(network, task, seed, **WAYS[way])
    loss = fit(network, task.train, optimizer, seed, gather=False)[0]
    optimizer.eval()
    states = [optimizer.posterior_state(parameter) for parameter in network.trained()]
    std = [(state["ess"] * (state["hess"] + state["weight_decay"])).rsqrt() for state in states]
    hess = [state["hess"] for state in states]
    found = {"facts": {"train_loss": loss, **_facts(states, std)}, "scores": {}, "chosen": {}}
    label = task.validation.label
    found["scores"]["mean"] = judged(network.log_probs(task.validation), label)
    drawn = _draws(network, std, task, seed)
    found["scores"]["draws"] = judged(mixture(drawn[1.0]), label)
    for name, options in {"width": drawn, "linearised": _linearised(network, hess, task, seed)}.items():
        log_probs, found["chosen"][name] = crossfitted(options, label)
        found["scores"][name] = judged(log_probs, label)
    if way == "default":
        for name, width in shapes(hess, std).items():
            log_probs, found["chosen"][name] = crossfitted(_draws(network, width, task, seed), label)
            found["scores"][name] = judged(log_probs, label)
    return found


def _optimizer(network: Any, task: Any, seed: int, *, per_tensor: bool = False, **given: Any) -> Any:
    from benchmarks.posterior_quality.arms import BATCH, num_steps
    from benchmarks.posterior_quality.units import best_given
    from vlora import IVON

    params = network.trained()
    return IVON.auto(
        [{"params": [param]} for param in params] if per_tensor else params,
        num_steps=num_steps(task.train),
        grad_batch_size=BATCH,
        seed=seed,
        lr=best_given("ivon_auto", task.name)["lr"],
        max_grad_norm=None,
        **given,
    )


def shapes(hess: list[Tensor], std: list[Tensor]) -> dict[str, list[Tensor]]:
    """Standard deviations of other shapes, all of the predicted cost ``1/2 sum h std^2`` of ``std``.

    ``equal`` does not use h at all, ``tensor`` only its mean in each tensor.

    Args:
        hess: h of every tensor, >= 0.
        std: Standard deviations that the cost is taken from, same shapes.
    """
    mean = float(sum(h.sum() for h in hess) / sum(h.numel() for h in hess))
    precision: dict[str, list[Tensor]] = {
        f"ratio {ratio:g}": [h + mean / (ratio**2 - 1) for h in hess] for ratio in (3.0, 10.0, 30.0)
    }
    precision["per tensor, own ess"] = [1.5 * (h / h.mean() + 0.5) for h in hess]
    precision["per tensor, one ess"] = [h + h.mean() / 2 for h in hess]
    precision["tensor"] = [torch.ones_like(h) * h.mean() for h in hess]
    precision["equal"] = [torch.ones_like(h) for h in hess]
    cost = _cost(hess, std)
    found = {}
    for name, values in precision.items():
        width = [value.rsqrt() for value in values]
        factor = math.sqrt(cost / _cost(hess, width))
        found[name] = [factor * one for one in width]
    return found


def _cost(hess: list[Tensor], std: list[Tensor]) -> float:
    return 0.5 * sum(float((h * sd.square()).double().sum()) for h, sd in zip(hess, std, strict=True))


def crossfitted(options: Mapping[float, Tensor], label: Tensor) -> tuple[Tensor, list[float]]:
    """Mixtures ``(N, C)`` in which each half has the option of lowest NLL on the other half, and the two chosen.

    Args:
        options: Log-probabilities of draws ``(S, N, C)`` by width or prior.
        label: Classes ``(N,)``.
    """
    from benchmarks.posterior_quality.scores import draws_nll

    middle = len(label) // 2
    halves = (slice(0, middle), slice(middle, None))
    best = [min(options, key=lambda o, h=half: draws_nll(options[o][:, h], label[h])) for half in halves]
    parts = [mixture(options[choice][:, half]) for choice, half in zip(reversed(best), halves, strict=True)]
    return torch.cat(parts), best


def mixture(draws: Tensor) -> Tensor:
    """Log-probabilities ``(N, C)`` of the mixture of draws ``(S, N, C)``."""
    return draws.logsumexp(0) - math.log(len(draws))


def judged(log_probs: Tensor, label: Tensor) -> dict[str, float]:
    """Some of ``scores.quality``."""
    from benchmarks.posterior_quality.scores import quality

    found = quality(log_probs.double().numpy(), label.numpy())
    return {key: found[key] for key in KEPT}


def _draws(network: Any, std: list[Tensor], task: Any, seed: int) -> dict[float, Tensor]:
    """Log-probabilities of draws of the validation rows by factor on the width."""
    from benchmarks.posterior_quality.arms import draw_log_probs

    mean = [parameter.detach().clone() for parameter in network.trained()]
    return {
        scale: draw_log_probs(network, mean, [scale * sd for sd in std], task.validation, seed)
        for scale in SCALES
    }


def _linearised(network: Any, hess: list[Tensor], task: Any, seed: int) -> dict[float, Tensor]:
    """Log-probabilities of the linearised model of the validation rows by prior precision."""
    from benchmarks.posterior_quality.linearised import by_prior, plain_posterior, predictive_draws

    posterior = plain_posterior(network, hess, len(task.train), {})
    spreads = {("linearised", prior): spread for prior, spread in by_prior(posterior, "linearised").items()}
    drawn = predictive_draws(network, task.validation, spreads, seed)
    return {prior: log_probs for (_, prior), log_probs in drawn.items()}


def _facts(states: list[dict[str, Any]], std: list[Tensor]) -> dict[str, Any]:
    share = torch.cat([(s["weight_decay"] / (s["hess"] + s["weight_decay"])).flatten() for s in states])
    wide = torch.cat([sd.flatten() for sd in std])
    return {
        "prior_share": float(share.median()),
        "prior_dominated": float((share > 0.9).double().mean()),
        "std_quantiles": [float(wide.quantile(q)) for q in (0.05, 0.5, 0.95)],
        "ess": sorted({float(s["ess"]) for s in states}),
        "predicted_cost": _cost([s["hess"] for s in states], std),
    }


if __name__ == "__main__":
    main()
