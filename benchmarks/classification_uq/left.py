r"""How much of what the prior left open about an output have the data settled? The rest is a score for foreign rows.

    left = tr(J Sigma J^T) / tr(J Sigma_0 J^T),      prior Sigma_0 = I / alpha, posterior Sigma = (F + alpha I)^-1

of the logits apart from the shift that all share: between 0 (settled) and 1 (the data say nothing about this output).
The variance of the logits alone also says how long the gradient of a row is, which foreign rows need not have longer
than own ones. alpha is the posterior's own prior precision, that of ``IVON.auto``, and the same number for AdamW, so
nothing is fitted. F is the Fisher matrix: the posterior's h (*linearised*: independent entries), with the directions of
the Grams (*kronecker*), or all eigenvectors over all tensors at once (*leading*).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.classification_uq.arms import adamw_rate, distances, train_ivon, trained_adamw
from benchmarks.classification_uq.leading import measure_directions, shares_left
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.practice import pairs
from benchmarks.classification_uq.scores import RISKS, abstention, of_mean, separation, variance
from benchmarks.classification_uq.tasks import Task, mixed
from benchmarks.posterior_quality.health import squared_gradients
from benchmarks.posterior_quality.linearised import KINDS, by_prior, logit_moments, plain_posterior
from benchmarks.posterior_quality.units import best_given
from vlora.posterior import Posterior
from vlora.posterior.kronecker import Independent

__all__ = ["FACTORS", "measure_left", "practise_left", "tested", "trained"]

FACTORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""On the prior precision, for practice rows."""
Scores = dict[str, np.ndarray]
"""A score of uncertainty by split."""


def measure_left(task: Task, seed: int, splits: tuple[str, ...]) -> dict[str, Any]:
    """What the score separates on test rows, by who trained and kind; and what a gate on it declines."""
    found: dict[str, Any] = {}
    label = tested({split: task.splits[split].label.numpy() for split in splits})
    for name, network, posterior, alpha in trained(task, seed):
        said = {s: network.log_probs(task.splits[s]).double().numpy() for s in splits}
        means = {split: of_mean(own) for split, own in tested(said).items()}
        for kind, scores in shares(network, posterior, task, splits, [alpha]).items():
            own = tested(scores[alpha])
            found[f"{name}_{kind}"] = {
                "separation": {"left": separation(own)},
                "gated by left": {str(risk): abstention(means, label, risk, own) for risk in RISKS},
            }
        if name == "laplace":
            rows = {split: task.splits[split] for split in splits}
            away = {split: one.numpy() for split, one in distances(network, task.train, rows).items()}
            found["distance"] = {"separation": {"distance": separation(tested(away))}}
    return {"task": task.name, "seed": seed, "scores": found}


def practise_left(task: Task, seed: int) -> dict[str, Any]:
    """The same on practice rows, at multiples of the prior precision."""
    found: dict[str, Any] = {}
    for name, network, posterior, alpha in trained(task, seed):
        alphas = [factor * alpha for factor in FACTORS]
        for kind, scores in shares(network, posterior, task, ("calibration", "practice"), alphas).items():
            for factor, (own, foreign) in zip(FACTORS, (s.values() for s in scores.values()), strict=True):
                found[f"{name}_{kind}, {factor:g}"] = pairs(own, foreign)
    return {"task": task.name, "seed": seed, "scores": found}


def shares(
    network: Network, posterior: Posterior, task: Task, splits: tuple[str, ...], alphas: list[float]
) -> dict[str, dict[float, Scores]]:
    """The share that is left of the variance of the logits, ``(N,)``: kind -> prior precision -> split."""
    kinds = {kind: by_prior(posterior, kind, alphas) for kind in KINDS}
    spreads = {(kind, alpha): spread for kind, own in kinds.items() for alpha, spread in own.items()}
    ones = {key: Independent(torch.ones_like(own)) for key, own in posterior.hess.items()}
    whole = measure_directions(network, posterior, task.train, len(task.train) * task.num_classes)
    found: dict[str, dict[float, Scores]] = {k: {a: {} for a in alphas} for k in (*KINDS, "leading")}
    for split in splits:
        rows = task.splits[split]
        _, covariance = logit_moments(network, rows, {**spreads, ("prior", 0.0): ones})
        at_one = variance(covariance["prior", 0.0].numpy())
        for (kind, alpha), own in covariance.items():
            if kind != "prior":
                found[kind][alpha][split] = alpha * variance(own.numpy()) / at_one
        for alpha, share in shares_left(network, posterior, rows, whole, alphas).items():
            found["leading"][alpha][split] = share.numpy()
    return found


def trained(task: Task, seed: int) -> Iterator[tuple[str, Network, Posterior, float]]:
    """Name, network, posterior at N examples and prior precision: IVON's, then AdamW's with the same precision."""
    network = Network(task.num_classes, seed)
    posterior, optimizer, _ = train_ivon(network, task.train, seed, best_given("ivon_auto", task.name))
    group = optimizer.param_groups[0]
    alpha = float(group["ess"] * group["weight_decay"])
    yield "ivon", network, posterior, alpha
    network, _, curvature = trained_adamw(task, seed, adamw_rate(task.name))
    hess = squared_gradients(network, task.train, 256)
    yield "laplace", network, plain_posterior(network, hess, len(task.train), curvature), alpha


def tested(scores: Scores) -> Scores:
    """With the test rows as they come in training."""
    marked = mixed(torch.as_tensor(scores["clean"]), torch.as_tensor(scores["ambiguous"]))
    return scores | {"test": marked.numpy()}
