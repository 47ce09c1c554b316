"""Which estimate of h says most about the data, over the length of a run? All are fed by the same draws of one run.

    python -m benchmarks.posterior_quality.estimators --data DATA --work WORK [--jobs 2]

``IVON.auto`` trains; beside it every estimate keeps a moving average of its own with the same beta2:

    gradsq       b g^2                                      one gradient a step, what IVON.auto uses
    price        n g / std^2                                one gradient a step, reparameterisation
    pair         n (g(m + n) - g(m - n)) / (2 std^2)        two gradients a step, antithetic
    draws_4      mean over 4 draws of n g / std^2           four gradients a step
    blend        (gradsq + price) / 2

The reference is the mean squared gradient of 128 held-out rows at the final mean, one row at a time.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.posterior_quality.arms import BATCH
from benchmarks.posterior_quality.health import squared_gradients
from benchmarks.posterior_quality.network import Network
from benchmarks.posterior_quality.pool import load_pool
from benchmarks.posterior_quality.processes import run_units
from benchmarks.posterior_quality.tasks import Rows, load_task
from benchmarks.rows import keep_record
from vlora import IVON
from vlora.posterior.ranks import spearman

RUNS = [
    *((task, steps, seed) for steps in (100, 400, 1600) for seed in (0, 1) for task in ("sst2", "trec")),
    ("pool", 10_000, 0),
]
"""Task, steps and seed: 640 rows of a task, and once all rows of ``lengths``."""
RESULTS = Path(__file__).parent / "results" / "estimators"
REFERENCE_ROWS = 128
NAMES = ("gradsq", "price", "pair", "draws_4", "blend")


def main() -> None:
    """Run what is missing."""
    run_units(str(__doc__), RUNS, one)


def one(unit: tuple[str, int, int, Path, Path]) -> str:
    """One run, unless its file exists."""
    name, length, seed, data, work = unit
    target = RESULTS / f"{name}_{length}_{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    torch.set_num_threads(1)
    load = load_pool if name == "pool" else partial(load_task, name)
    task = load(data, work / "features")

    def make() -> dict[str, Any]:
        return {"task": name, "steps": length, "seed": seed, "estimates": measure(task, length, seed)}

    record = keep_record(target, make)
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(task: Any, length: int, seed: int) -> dict[str, dict[str, float]]:
    """Train for ``length`` steps and compare every estimate with the reference."""
    network = Network(task.num_classes, seed)
    params = network.trained()
    optimizer = IVON.auto(params, num_steps=length, grad_batch_size=BATCH, seed=seed, max_grad_norm=None)
    generator = torch.Generator().manual_seed(seed)
    estimates = Estimates(optimizer, generator, BATCH)
    network.eval()  # no dropout: estimates differ by their noise alone
    for step in range(length):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / (0.06 * length)) * (1 - step / length)
        rows = torch.randint(len(task.train), (BATCH,), generator=generator)
        optimizer.train()
        gradient = estimates.add(partial(gradients, network, task.train, rows))
        for param, grad in zip(params, gradient, strict=True):
            param.grad = grad
        optimizer.step()
    reference = squared_gradients(network, task.validation, REFERENCE_ROWS)
    return {name: compare(h, reference) for name, h in estimates.averages(length).items()}


def gradients(network: Network, data: Rows, rows: Tensor) -> list[Tensor]:
    """Gradients of the mean loss of some rows at the weights as they are."""
    loss = cross_entropy(network(data.hidden[rows], data.mask[rows]), data.label[rows])
    return list(torch.autograd.grad(loss, network.trained()))


class Estimates:
    """Every estimate's moving average of h, fed by the draws of one optimizer."""

    def __init__(self, optimizer: IVON, generator: torch.Generator, batch: int) -> None:
        self.optimizer, self.generator, self.batch = optimizer, generator, batch
        self.group = optimizer.param_groups[0]
        self.keep = self.group["beta2"]
        self.sums = {name: [torch.zeros_like(p) for p in self.group["params"]] for name in NAMES}

    def add(self, gradients: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Six gradients around the draw that the parameters hold; returns that of the draw itself."""
        params, state = self.group["params"], self.optimizer.state
        means = [state[p]["mean"] for p in params]
        variance = [1 / (self.group["ess"] * (state[p]["hess"] + self.group["weight_decay"])) for p in params]
        drawn = [p.detach().clone() for p in params]
        noise = [d - m for d, m in zip(drawn, means, strict=True)]
        plus = gradients()
        _put(params, [m - n for m, n in zip(means, noise, strict=True)])
        minus = gradients()
        products = [[n * g for n, g in zip(noise, plus, strict=True)]]
        for _ in range(3):
            products.append(self._further_draw(params, means, variance, gradients))
        _put(params, drawn)
        for i, v in enumerate(variance):
            draws = [own[i] for own in products]
            for name, value in _all(noise[i], v, plus[i], minus[i], draws, self.batch).items():
                self.sums[name][i].mul_(self.keep).add_(value, alpha=1 - self.keep)
        return plus

    def averages(self, steps: int) -> dict[str, list[Tensor]]:
        """Every h so far, with the start taken out."""
        return {name: [h / (1 - self.keep**steps) for h in own] for name, own in self.sums.items()}

    def _further_draw(
        self,
        params: list[Tensor],
        means: list[Tensor],
        variance: list[Tensor],
        gradients: Callable[[], list[Tensor]],
    ) -> list[Tensor]:
        """Noise times gradient of one more independent draw."""
        noise = [v.sqrt() * torch.randn(v.shape, generator=self.generator) for v in variance]
        _put(params, [m + n for m, n in zip(means, noise, strict=True)])
        return [n * g for n, g in zip(noise, gradients(), strict=True)]


def _all(
    noise: Tensor, variance: Tensor, plus: Tensor, minus: Tensor, products: list[Tensor], batch: int
) -> dict[str, Tensor]:
    """Every estimate of one tensor from one step; ``products`` are noise times gradient of all draws."""
    squares, price = batch * plus.square(), products[0] / variance
    return {
        "gradsq": squares,
        "price": price,
        "pair": noise * (plus - minus) / (2 * variance),
        "draws_4": torch.stack(products).mean(0) / variance,
        "blend": (squares + price) / 2,
    }


def _put(params: list[Tensor], values: list[Tensor]) -> None:
    for param, value in zip(params, values, strict=True):
        param.detach().copy_(value)


def compare(h: list[Tensor], reference: list[Tensor]) -> dict[str, float]:
    """An estimate against the mean squared gradients of held-out rows; ``within`` is the median over tensors."""
    whole, flat = (torch.cat([value.flatten() for value in own]) for own in (h, reference))
    within = [spearman(v.flatten(), r.flatten()) or 0.0 for v, r in zip(h, reference, strict=True)]
    return {
        "rank_correlation": spearman(whole, flat) or 0.0,
        "rank_correlation_within": float(torch.tensor(within).median()),
        "share_negative": float((whole < 0).double().mean()),
        "mean_to_reference": float(whole.mean() / flat.mean()),
    }


if __name__ == "__main__":
    main()
