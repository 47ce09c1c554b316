"""The methods compared: how each is trained and predicts. Every arm sees the same rows in the same order.

An arm returns log-probabilities per predictor and split: ``mean`` (N, C) of one set of weights, ``draws`` (S, N, C)
with the width that training or a formula chose, ``scaled`` (S, N, C) with the standard deviation multiplied by the
factor of ``SCALES`` that has the lowest NLL on the validation rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.posterior_quality.health import health, settings_of, squared_gradients
from benchmarks.posterior_quality.linearised import linearised, plain_posterior
from benchmarks.posterior_quality.network import Network
from benchmarks.posterior_quality.scores import draws_nll
from benchmarks.posterior_quality.tasks import Rows, Task
from vlora import IVON, Posterior
from vlora.curvature import gathering

BATCH, EPOCHS, WARMUP = 16, 5, 0.06
DRAWS = 8
CHOICE_DRAWS = 4
"""Draws with which a width or a prior is chosen on the validation rows."""
SCALES = (0.125, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
SPLITS = ("validation", "test", "foreign")
PRIORS = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5)
PUBLISHED: dict[str, Any] = {
    "ess": 1e7, "hess_init": 3e-4, "beta2": 0.99999, "weight_decay": 0.0, "clip_radius": 1e-3, "rescale_lr": False,
}  # fmt: skip
"""Variational LoRA (arXiv:2411.04421) on WinoGrande-S and BoolQ, but for the learning rate."""


@dataclass
class Outcome:
    """What a trained arm says, and what is known about it."""

    predictions: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def num_steps(rows: Rows) -> int:
    """Optimizer steps of ``EPOCHS`` passes."""
    return EPOCHS * math.ceil(len(rows) / BATCH)


def batches(rows: Rows, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end, every pass in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator)
        for part in order.split(BATCH):
            yield rows.hidden[part], rows.mask[part], rows.label[part]


def fit(
    network: Network,
    rows: Rows,
    optimizer: Any,
    seed: int,
    steps: int | None = None,
    *,
    gather: bool = True,
    losses: list[float] | None = None,
    clip: float | None = None,
) -> tuple[float, dict[str, Tensor]]:
    """Train with a warm-up and a cosine; returns the mean loss of the last 20 steps and the curvature on the way.

    Without ``gather`` there is no curvature. The loss of every step is added to ``losses``, if given.
    """
    total = steps or num_steps(rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (WARMUP * total), 0.5 * (1 + math.cos(math.pi * step / total))),
    )
    torch.manual_seed(seed)
    network.train()
    losses = [] if losses is None else losses
    with gathering(network.peft, votes="equal", joined=False) if gather else nullcontext() as stream:
        for hidden, mask, label in islice(batches(rows, seed), total):
            if isinstance(optimizer, IVON):
                optimizer.train()
            loss = cross_entropy(network(hidden, mask), label)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(network.trained(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return sum(losses[-20:]) / 20, stream.result() if stream else {}


def adamw(
    task: Task, seed: int, *, test: bool, lr: float, posthoc: bool = True, clip: float | None = None
) -> Outcome:
    """AdamW; with ``posthoc`` also MC dropout and a diagonal Laplace posterior. Gradients are cut to norm ``clip``."""
    network = Network(task.num_classes, seed)
    optimizer = torch.optim.AdamW(network.trained(), lr=lr, weight_decay=0.0)
    loss = fit(network, task.train, optimizer, seed, task.steps, gather=False, clip=clip)[0]
    out = Outcome(facts={"lr": lr, "train_loss": loss})
    splits = SPLITS if test else SPLITS[:1]
    out.predictions["mean"] = {split: network.log_probs(getattr(task, split)) for split in splits}
    if test and posthoc:
        out.predictions["dropout"] = {
            split: torch.stack([network.log_probs(getattr(task, split), dropout=True) for _ in range(DRAWS)])
            for split in SPLITS
        }
        laplace(network, task, seed, out)
    return out


def adamw_laplace(task: Task, seed: int, *, test: bool, lr: float) -> Outcome:
    """The same AdamW run, its Laplace posterior and the linearised model: h from 256 training rows."""
    network = Network(task.num_classes, seed)
    optimizer = torch.optim.AdamW(network.trained(), lr=lr, weight_decay=0.0)
    loss, curvature = fit(network, task.train, optimizer, seed, task.steps)
    out = Outcome(facts={"lr": lr, "train_loss": loss})
    out.predictions["mean"] = {split: network.log_probs(getattr(task, split)) for split in SPLITS}
    hess = squared_gradients(network, task.train, 256)
    if test:
        gaussian(network, plain_posterior(network, hess, len(task.train), curvature), task, seed, out)
    return out


def ensemble(folder: Path, task: Task, seeds: Iterable[int]) -> Outcome:
    """Mixture of runs that differ in seed, from their kept log-probabilities (of one model, or of its draws)."""
    kept = [load_file(folder / f"{task.name}_{seed}.safetensors") for seed in seeds]
    draws = {split: torch.cat([_as_draws(member[split]) for member in kept]) for split in SPLITS}
    mixture = {split: value.logsumexp(0) - math.log(len(value)) for split, value in draws.items()}
    return Outcome({"mean": mixture, "members": draws})


def _as_draws(log_probs: Tensor) -> Tensor:
    return log_probs if log_probs.ndim == 3 else log_probs[None]


def gaussian(network: Network, posterior: Posterior, task: Task, seed: int, out: Outcome) -> None:
    """Predictions of the linearised model, with independent entries and with Kronecker factors."""
    found, priors = linearised(network, posterior, task, SPLITS[1:], seed)
    out.predictions |= found
    out.facts |= {f"{kind}_prior_precision": prior for kind, prior in priors.items()}


def laplace(network: Network, task: Task, seed: int, out: Outcome) -> None:
    """Draws of diagonal Laplace."""
    mean = [parameter.detach().clone() for parameter in network.trained()]
    std, prior = laplace_std(network, task.train, task.validation, seed)
    out.predictions["laplace"] = {
        split: draw_log_probs(network, mean, std, getattr(task, split), seed) for split in SPLITS
    }
    out.facts["laplace_prior_precision"] = prior


def laplace_std(
    network: Network, train: Rows, validation: Rows, seed: int, hess: list[Tensor] | None = None
) -> tuple[list[Tensor], float]:
    """Diagonal Laplace: precision N h + prior, h from 256 training rows unless given, prior by validation NLL."""
    hess = hess or squared_gradients(network, train, 256)
    mean = [parameter.detach().clone() for parameter in network.trained()]
    widths = {prior: [(len(train) * h + prior).rsqrt() for h in hess] for prior in PRIORS}

    def nll(prior: float) -> float:
        draws = draw_log_probs(network, mean, widths[prior], validation, seed, CHOICE_DRAWS)
        return draws_nll(draws, validation.label)

    prior = min(PRIORS, key=nll)
    return widths[prior], prior


def ivon(
    task: Task,
    seed: int,
    build: Callable[[Network], IVON],
    *,
    test: bool,
    scales: tuple[float, ...] = (),
    losses: list[float] | None = None,
) -> Outcome:
    """IVON with the settings of ``build``: its mean, its draws, and draws of the best of ``scales`` on validation rows.

    Without ``test`` only the validation rows are predicted, by the mean and the draws.
    """
    network = Network(task.num_classes, seed)
    optimizer = build(network)
    loss, curvature = fit(
        network, task.train, optimizer, seed, task.steps, gather=bool(scales), losses=losses
    )
    optimizer.eval()
    states = [optimizer.posterior_state(parameter) for parameter in network.trained()]
    mean = [state["mean"] for state in states]
    std = [(state["ess"] * (state["hess"] + state["weight_decay"])).rsqrt() for state in states]

    def predict(scale: float, split: str, num_draws: int = DRAWS) -> Tensor:
        scaled = [scale * sd for sd in std]
        return draw_log_probs(network, mean, scaled, getattr(task, split), seed, num_draws)

    splits = SPLITS if test else SPLITS[:1]
    out = Outcome(facts={"train_loss": loss, **settings_of(optimizer)})
    out.predictions["mean"] = {split: network.log_probs(getattr(task, split)) for split in splits}
    out.predictions["draws"] = {split: predict(1.0, split) for split in splits}
    if test:
        out.facts |= health(network, task, states, std)
    if test and scales:
        label = task.validation.label
        nll = {scale: draws_nll(predict(scale, "validation", CHOICE_DRAWS), label) for scale in scales}
        best = min(scales, key=nll.__getitem__)
        out.predictions["scaled"] = {split: predict(best, split) for split in splits}
        out.facts |= {"scale": best, "validation_nll_by_scale": {str(s): nll[s] for s in scales}}
        posterior = Posterior.from_optimizer(network.peft, optimizer, num_examples=len(task.train), seed=seed)
        gaussian(network, replace(posterior, curvature=curvature), task, seed, out)
    return out


def auto(
    task: Task,
    seed: int,
    *,
    test: bool,
    scales: tuple[float, ...] = SCALES,
    losses: list[float] | None = None,
    **given: Any,
) -> Outcome:
    """IVON with ``IVON.auto``: nothing chosen by hand but what ``given`` says; without ``scales`` mean and draws.

    The loss of every step is added to ``losses``.
    """
    build = partial(auto_optimizer, task=task, seed=seed, **given)
    return ivon(task, seed, build, test=test, scales=scales, losses=losses)


def auto_optimizer(network: Network, *, task: Task, seed: int, **given: Any) -> IVON:
    """``IVON.auto`` for one run; no gradient is clipped, as for the other arms, unless ``given`` says so."""
    return IVON.auto(
        network.trained(),
        num_steps=task.steps or num_steps(task.train),
        grad_batch_size=BATCH,
        seed=seed,
        **{"max_grad_norm": None, **given},
    )


def published(task: Task, seed: int, *, test: bool, lr: float) -> Outcome:
    """IVON with the published LoRA settings."""
    return ivon(task, seed, lambda network: IVON(network.trained(), lr, seed=seed, **PUBLISHED), test=test)


@torch.no_grad()
def draw_log_probs(
    network: Network, mean: list[Tensor], std: list[Tensor], rows: Rows, seed: int, num_draws: int = DRAWS
) -> Tensor:
    """Log-probabilities ``(S, N, C)`` of antithetic draws; the mean is in the network afterwards."""
    generator = torch.Generator().manual_seed(1000 + seed)
    out = []
    for _ in range(num_draws // 2):
        noise = [torch.randn(m.shape, generator=generator) for m in mean]
        for sign in (1, -1):
            for parameter, m, sd, n in zip(network.trained(), mean, std, noise, strict=True):
                parameter.copy_(m + sign * sd * n)
            out.append(network.log_probs(rows))
    for parameter, m in zip(network.trained(), mean, strict=True):
        parameter.copy_(m)
    return torch.stack(out)
