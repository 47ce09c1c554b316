"""How wide the draws are: a controller that lets the posterior's noise cost a set number of nats.

The expected loss of a draw exceeds the loss of the mean by, to second order and with noise n = theta - m,

    cost = E[L(m + n)] - L(m) ~ 1/2 E[n^T H n] = 1/2 E[n^T grad L(m + n)]      (Stein's identity; Price 1958)

so half the inner product of a step's realised noise with its gradient measures the cost without bias, from numbers
that the step has at hand. With independent entries and h near the true diagonal this is ``P / (2 ess)`` nats for P
parameters that the data hold: why published ``ess`` for LoRA are millions, whatever N is. Instead of an ``ess`` per
model and data set, the controller takes the cost: it moves the typical standard deviation of a draw until the measured
cost meets ``noise_cost``, and derives

    weight_decay = mean(h) / (max_std_ratio^2 - 1)            no entry is wider than max_std_ratio typical deviations
    ess          = 1 / (std^2 (mean(h) + weight_decay))       an entry of average h has standard deviation std

after every step, so that a falling loss, and with it a falling h, does not widen the draws. The target rises over the
run (``noise_target``). Easy tasks get narrow posteriors, noisy ones wide posteriors. The rule is ours; we know of no
paper that states it.

A model that has learned nothing yet loses nothing by noise either, and would get all of it: ``std_limit`` keeps the
draws within a share of the way that the mean can have gone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.ivon.ranges import check_range
from vlora.ivon.shards import sum_of_ranks

__all__ = [
    "COST_MEMORY",
    "Measured",
    "NoiseTally",
    "controlled",
    "derive_ess",
    "next_std",
    "noise_target",
    "prepare_noise",
    "std_limit",
    "update_noise",
]

COST_MEMORY = 0.95
"""Decay of the average of measured costs; one step's measurement has a spread of the size of its value."""

PATH_SHARE = 0.25
"""Typical standard deviation over the longest way that an entry of the mean can have gone; see ``std_limit``."""


def controlled(group: Mapping[str, Any]) -> bool:
    """Whether the controller sets the ``ess`` and ``weight_decay`` of this group."""
    return group.get("noise_cost") is not None


def prepare_noise(group: dict[str, Any], values: dict[str, Any]) -> None:
    """Check the controller's settings of a new group and derive its first ``ess`` and ``weight_decay``.

    Args:
        group: Parameter group, completed in place.
        values: Its settings, defaults filled in.

    Raises:
        ConfigError: A setting is out of range, or the caller fixed what the controller sets.
    """
    if values["noise_cost"] is None:
        if values["ess"] is None:
            raise ConfigError("IVON needs ess (examples) or noise_cost (nats): how wide its draws shall be")
        return
    if values["ess"] is not None or values["prior_precision"] is not None:
        raise ConfigError("noise_cost sets ess and the prior during training; give one of them, not both")
    if values["prior"] != "fixed":
        raise ConfigError(
            "noise_cost sets the prior's weight_decay, prior='empirical_bayes' learns it: choose one"
        )
    if values["noise"] != "shared":
        raise ConfigError(
            'noise_cost needs noise="shared": products of one rank\'s noise are not its cost; for noise="per_rank" '
            "give noise_cost=None and ess"
        )
    for key in ("noise_cost", "noise_rate", "noise_warmup", "init_std", "max_std", "max_std_ratio"):
        check_range(key, values[key])
    check_range("hess_init", values["hess_init"])
    group["std"] = min(values["init_std"], values["max_std"])
    group["cost_average"], group["cost_weight"], group["noise_steps"], group["path"] = 0.0, 0.0, 0, 0.0
    group["ess"], group["weight_decay"] = derive_ess(
        group["std"], values["hess_init"], max_std_ratio=values["max_std_ratio"]
    )


def derive_ess(std: float, mean_hess: float, *, max_std_ratio: float) -> tuple[float, float]:
    """``(ess, weight_decay)`` with which an entry of average h has standard deviation ``std``; see the module.

    Args:
        std: Typical standard deviation of a draw, in parameter units.
        mean_hess: Mean of h over the group, > 0.
        max_std_ratio: Widest standard deviation (of an entry with h = 0) in units of ``std``, > 1.

    Raises:
        ConfigError: If the mean of h is not positive.
    """
    if not mean_hess > 0:
        raise ConfigError(
            f"noise_cost needs a positive mean of h, got {mean_hess:g}: use hess_approx='gradsq' with grad_batch_size, "
            "and check that gradients reach the parameters"
        )
    weight_decay = mean_hess / (max_std_ratio**2 - 1)
    return 1 / (std**2 * (mean_hess + weight_decay)), weight_decay


def next_std(std: float, *, cost: float, noise_cost: float, noise_rate: float, max_std: float) -> float:
    """One step of the controller, multiplicative and bounded.

        std <- min(std exp(noise_rate clip(log(noise_cost / cost), +-1)), max_std)

    Args:
        std: Typical standard deviation now.
        cost: Measured cost, in nats; may be negative by chance, which counts as a twentieth of the target.
        noise_cost: Target, in nats.
        noise_rate: Largest relative change in one step.
        max_std: Largest value, in parameter units.
    """
    distance = math.log(noise_cost / max(cost, noise_cost / 20))
    return min(std * math.exp(noise_rate * max(-1.0, min(1.0, distance))), max_std)


def std_limit(group: dict[str, Any]) -> float:
    """Largest typical standard deviation of a draw after the steps so far, in parameter units.

        min(max_std, max(init_std, PATH_SHARE sum_t lr_t))            mean_step "adam", else max_std

    An entry moves by about lr per step of Adam, so the sum is the longest way from its start. Noise of the size of what
    was learned drowns it: on 500 rows and 100 steps, where the cost of noise stays near zero, validation NLL was .692
    without this limit, .682 with a share of a half, .677 with a quarter, .676 without noise (three seeds,
    ``benchmarks/posterior_quality``). There it decides the final width of runs of 100 steps, and no longer that of 400.

    Args:
        group: Parameter group with the sum of its learning rates as ``path``.
    """
    if group["mean_step"] != "adam":
        return group["max_std"]
    return min(group["max_std"], max(group["init_std"], PATH_SHARE * group["path"]))


def noise_target(noise_cost: float, *, step: int, noise_warmup: int) -> float:
    """Target of the controller at a step: ``noise_cost min(step / noise_warmup, 1)^2``.

    Noise blurs the gradient, and a mean that is still far from an optimum is slowed by it for nothing; what the
    posterior needs is its width at the end.

    Args:
        noise_cost: Final target, in nats.
        step: 1-based number of the step.
        noise_warmup: Steps over which the target rises; 0 for none.
    """
    return noise_cost * min(step / noise_warmup, 1.0) ** 2 if noise_warmup else noise_cost


@dataclass(frozen=True)
class Measured:
    """What one optimizer step tells about its noise."""

    cost: float
    """Half the mean over draws of noise times gradient, over the controlled groups; in nats."""
    mean_hess: dict[int, float]
    """Mean of the updated h, by number of the group; groups without an update are left out."""


class NoiseTally:
    """Sums over one optimizer step: noise times gradient of its draws, and h by group."""

    def __init__(self) -> None:
        self.draws = 1
        """Draws that the cost is a sum over."""
        self.factor: Tensor | float = 1.0
        """What happened to all gradients since they were added: a loss scale taken off, clipping."""
        self._costs: list[Tensor] = []
        self._hesses: dict[int, tuple[list[Tensor], int]] = {}

    def add_draw(self, param: Tensor, mean: Tensor, grad: Tensor, out: Tensor | None = None) -> None:
        """Add ``(param - mean) . grad`` of one tensor that holds a draw; ``out`` is room for the noise."""
        noise = torch.sub(param, mean, out=out)
        self._costs.append(torch.dot(noise.reshape(-1), grad.reshape(-1)))

    def add_hess(self, group: dict[str, Any], hess: Tensor) -> None:
        """Add the updated h of one tensor of a group."""
        sums, entries = self._hesses.setdefault(id(group), ([], 0))
        sums.append(hess.sum())
        self._hesses[id(group)] = (sums, entries + hess.numel())

    def measured(self, groups: Sequence[dict[str, Any]], params: Sequence[Tensor]) -> Measured:
        """Cost and mean h, over all processes that hold parts of the parameters.

        Args:
            groups: All parameter groups.
            params: Parameters of controlled groups that took part in the step, whole or as DTensors.
        """
        parts = [self._hesses.get(id(group), ([], 0)) for group in groups]
        sums = [
            0.5 * float(self.factor) * _total(self._costs) / self.draws,
            *(_total(hess) for hess, _ in parts),
        ]
        cost, *totals = sum_of_ranks([*sums, *(float(entries) for _, entries in parts)], params)
        hess, counts = totals[: len(groups)], totals[len(groups) :]
        # a mesh that keeps several copies of a shard counts its entries as often
        copies = sum(counts) / max(sum(param.numel() for param in params), 1)
        means = {number: h / n for number, (h, n) in enumerate(zip(hess, counts, strict=True)) if n}
        return Measured(cost / max(copies, 1.0), means)


def _total(values: list[Tensor]) -> float:
    if not values:
        return 0.0
    return float(torch.stack([value.to(values[0].device, torch.float64) for value in values]).sum())


def update_noise(groups: Sequence[dict[str, Any]], measured: Measured) -> None:
    """Take in one step's measurement and derive ``ess`` and ``weight_decay`` of every controlled group.

    The cost is that of the draw as a whole, so all controlled groups follow one average.

    Args:
        groups: Parameter groups, changed in place.
        measured: What the step tells.
    """
    for number, group in enumerate(groups):
        if controlled(group):
            _follow(group, measured.cost, measured.mean_hess.get(number))


def _follow(group: dict[str, Any], cost: float, hess: float | None) -> None:
    """The controller's step for one group."""
    group["cost_average"] = COST_MEMORY * group["cost_average"] + (1 - COST_MEMORY) * cost
    group["cost_weight"] = COST_MEMORY * group["cost_weight"] + (1 - COST_MEMORY)
    group["noise_steps"] += 1
    group["path"] = group.get("path", 0.0) + float(group["lr"])
    target = noise_target(group["noise_cost"], step=group["noise_steps"], noise_warmup=group["noise_warmup"])
    group["std"] = next_std(
        group["std"],
        cost=group["cost_average"] / group["cost_weight"],
        noise_cost=target,
        noise_rate=group["noise_rate"],
        max_std=std_limit(group),
    )
    if hess is not None and hess > 0:
        group["ess"], group["weight_decay"] = derive_ess(
            group["std"], hess, max_std_ratio=group["max_std_ratio"]
        )
