"""What a trained posterior is like: its settings, and its h beside squared gradients of rows it has not seen."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.posterior_quality.network import Network
from benchmarks.posterior_quality.tasks import Rows, Task
from vlora import IVON
from vlora.posterior.ranks import spearman

__all__ = ["health", "settings_of", "squared_gradients"]


def squared_gradients(network: Network, rows: Rows, count: int) -> list[Tensor]:
    """Mean squared per-example gradient at the weights as they are, one row at a time."""
    network.eval()
    total = [torch.zeros_like(parameter) for parameter in network.trained()]
    for i in range(min(count, len(rows))):
        loss = cross_entropy(network(rows.hidden[i : i + 1], rows.mask[i : i + 1]), rows.label[i : i + 1])
        for sum_, grad in zip(total, torch.autograd.grad(loss, network.trained()), strict=True):
            sum_ += grad.square()
    return [sum_ / min(count, len(rows)) for sum_ in total]


def settings_of(optimizer: IVON) -> dict[str, Any]:
    """The settings of a run as plain numbers."""
    keys = ("ess", "weight_decay", "beta2", "hess_init", "mean_step", "hess_approx", "noise_cost", "std")
    group = optimizer.param_groups[0]
    return {key: group.get(key) for key in keys} | {"lr": optimizer.defaults["lr"]}


def health(network: Network, task: Task, states: list[dict[str, Any]], std: list[Tensor]) -> dict[str, Any]:
    """How far h has left its start, and how it ranks against squared gradients of 64 held-out rows."""
    reference = squared_gradients(network, task.validation, 64)
    hess = torch.cat([state["hess"].flatten() for state in states])
    start = torch.cat([torch.full_like(state["hess"].flatten(), state["hess_init"]) for state in states])
    flat = torch.cat([value.flatten() for value in reference])
    within = [
        spearman(state["hess"].flatten(), value.flatten()) or 0.0
        for state, value in zip(states, reference, strict=True)
    ]
    wide = torch.cat([sd.flatten() for sd in std])
    return {
        "rank_correlation": spearman(hess, flat),
        "rank_correlation_within": float(torch.tensor(within).median()),
        "share_moved": float(((hess / start - 1).abs() > 0.1).double().mean()),
        "hess_to_reference": float(hess.mean() / flat.mean()),
        "std_quantiles": [float(wide.quantile(q)) for q in (0.05, 0.5, 0.95)],
    }
