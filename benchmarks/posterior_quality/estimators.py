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

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.posterior_quality.processes import run_units
from benchmarks.rows import keep_record

RUNS = [
    *((task, steps, seed) for steps in (100, 400, 1600) for seed in (0, 1) for task in ("sst2", "trec")),
    ("pool", 10_000, 0),
]
"""Task, steps and seed: 640 rows of a task, and once all rows of ``lengths``."""
RESULTS = Path(__file__).parent / "results" / "estimators"
REFERENCE_ROWS = 128


def main() -> None:
    """Run what is missing."""
    run_units(str(__doc__), RUNS, one)


def one(unit: tuple[str, int, int, Path, Path]) -> str:
    """One run, unless its file exists."""
    name, length, seed, data, work = unit
    target = RESULTS / f"{name}_{length}_{seed}.json"
    if target.exists():
        return f"{target.stem}: there"
    import torch

    from benchmarks.posterior_quality.pool import load_pool
    from benchmarks.posterior_quality.tasks import load_task

    torch.set_num_threads(1)
    load = load_pool if name == "pool" else partial(load_task, name)
    task = load(data, work / "features")

    def make() -> dict[str, Any]:
        return {"task": name, "steps": length, "seed": seed, "estimates": measure(task, length, seed)}

    record = keep_record(target, make)
    return f"{target.stem}: {record['seconds']:.0f} s" if record else f"{target.stem}: there"


def measure(task: Any, length: int, seed: int) -> dict[str, dict[str, float]]:
    """Train for ``length`` steps and compare every estimate with the reference."""
    import torch
    from torch.nn.functional import cross_entropy

    from benchmarks.posterior_quality.arms import BATCH, squared_gradients
    from benchmarks.posterior_quality.network import Network
    from vlora import IVON
    from vlora.posterior.ranks import spearman

    network = Network(task.num_classes, seed)
    params = network.trained()
    optimizer = IVON.auto(params, num_steps=length, grad_batch_size=BATCH, seed=seed)
    keep = optimizer.param_groups[0]["beta2"]
    generator = torch.Generator().manual_seed(seed)
    names = ("gradsq", "price", "pair", "draws_4", "blend")
    averages = {name: [torch.zeros_like(p) for p in params] for name in names}

    def gradients(rows: torch.Tensor) -> list[torch.Tensor]:
        loss = cross_entropy(network(task.train.hidden[rows], task.train.mask[rows]), task.train.label[rows])
        return list(torch.autograd.grad(loss, params))

    @torch.no_grad()
    def put(values: list[torch.Tensor]) -> None:
        for param, value in zip(params, values, strict=True):
            param.copy_(value)

    network.eval()  # no dropout: estimates differ by their noise alone
    for step in range(length):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / (0.06 * length)) * (1 - step / length)
        rows = torch.randint(len(task.train), (BATCH,), generator=generator)
        optimizer.train()
        group = optimizer.param_groups[0]
        means = [optimizer.state[p]["mean"] for p in params]
        variance = [1 / (group["ess"] * (optimizer.state[p]["hess"] + group["weight_decay"])) for p in params]
        drawn = [p.detach().clone() for p in params]
        noise = [d - m for d, m in zip(drawn, means, strict=True)]
        plus = gradients(rows)
        put([m - n for m, n in zip(means, noise, strict=True)])
        minus = gradients(rows)
        products = [[n * g for n, g in zip(noise, plus, strict=True)]]
        for _ in range(3):
            other = [v.sqrt() * torch.randn(v.shape, generator=generator) for v in variance]
            put([m + n for m, n in zip(means, other, strict=True)])
            products.append([n * g for n, g in zip(other, gradients(rows), strict=True)])
        put(drawn)
        for i, v in enumerate(variance):
            squares, price = BATCH * plus[i].square(), products[0][i] / v
            found = {
                "gradsq": squares,
                "price": price,
                "pair": noise[i] * (plus[i] - minus[i]) / (2 * v),
                "draws_4": torch.stack([product[i] for product in products]).mean(0) / v,
                "blend": (squares + price) / 2,
            }
            for name, value in found.items():
                averages[name][i].mul_(keep).add_(value, alpha=1 - keep)
        for param, grad in zip(params, plus, strict=True):
            param.grad = grad
        optimizer.step()
    reference = squared_gradients(network, task.validation, REFERENCE_ROWS)
    flat = torch.cat([value.flatten() for value in reference])
    out = {}
    for name, values in averages.items():
        h = torch.cat([value.flatten() for value in values]) / (1 - keep**length)
        within = [spearman(v.flatten(), r.flatten()) or 0.0 for v, r in zip(values, reference, strict=True)]
        out[name] = {
            "rank_correlation": spearman(h, flat) or 0.0,
            "rank_correlation_within": float(torch.tensor(within).median()),
            "share_negative": float((h < 0).double().mean()),
            "mean_to_reference": float(h.mean() / flat.mean()),
        }
    return out


if __name__ == "__main__":
    main()
