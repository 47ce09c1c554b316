"""Predictions of the linearised model: Gaussian logits, with the covariance that a posterior gives them.

    logits ~ N(f(m), J Sigma J^T)        J: gradients of the logits, one forward and C backward passes a row

Sigma has the posterior's own h at temperature 1 (precision N h + prior), entries independent or, with the Kronecker
factors gathered while training, correlated (``vlora.posterior.kronecker``). The prior precision is the value of
``PRIORS`` with the lowest validation NLL: one scalar, as a temperature is, and what ``vlora calibrate`` fits.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.posterior_quality.network import Network
from benchmarks.posterior_quality.scores import draws_nll
from benchmarks.posterior_quality.tasks import Rows, Task
from vlora.backward import watched
from vlora.eval.metrics.prior_precision import fit_prior_precision
from vlora.posterior import Posterior
from vlora.posterior.keys import adapter_tensors
from vlora.posterior.kronecker import Independent, Kronecker, Spread, output_covariance, under_priors

PRIORS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 1e4, 1e5)
LOGIT_DRAWS = 64
ROWS = 50

Name = tuple[str, float]
"""Kind of predictor and prior precision."""


KINDS = {"linearised": False, "kronecker": True}
"""Name of the predictor -> whether entries are correlated."""


def linearised(
    network: Network, posterior: Posterior, task: Task, splits: tuple[str, ...], seed: int
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Log-probabilities ``(S, N, C)`` per kind and split under the kind's best prior, and that prior's precision."""
    spreads = {(kind, prior): spread for kind in KINDS for prior, spread in by_prior(posterior, kind).items()}
    validation = predictive_draws(network, task.validation, spreads, seed)
    nll = {name: draws_nll(draws, task.validation.label) for name, draws in validation.items()}
    best = {
        kind: fit_prior_precision(lambda prior, kind=kind: nll[kind, prior], PRIORS).precision
        for kind in KINDS
    }
    chosen = {(kind, prior): spreads[kind, prior] for kind, prior in best.items()}
    found = {split: predictive_draws(network, getattr(task, split), chosen, seed) for split in splits}
    found["validation"] = validation
    return {kind: {split: own[kind, best[kind]] for split, own in found.items()} for kind in KINDS}, best


def by_prior(posterior: Posterior, kind: str, priors: Sequence[float] = PRIORS) -> dict[float, Spread]:
    """Covariances at temperature 1 for every prior precision; their bases do not depend on it and are found once."""
    under = under_priors(posterior.at_temperature(1.0), priors, kronecker=KINDS[kind])
    return dict(zip(priors, under, strict=True))


def predictive_draws(
    network: Network, rows: Rows, spreads: Mapping[Name, Any], seed: int
) -> dict[Name, Tensor]:
    """Log-probabilities ``(S, N, C)`` under every covariance."""
    logits, covariance = logit_moments(network, rows, spreads)
    return {name: _logit_draws(logits, own, seed) for name, own in covariance.items()}


def logit_moments(
    network: Network, rows: Rows, spreads: Mapping[Name, Any]
) -> tuple[Tensor, dict[Name, Tensor]]:
    """Logits ``(N, C)`` of the mean, and their covariance ``(N, C, C)`` under every covariance of the weights."""
    network.eval()
    logits: list[Tensor] = []
    parts: dict[Name, list[Tensor]] = {name: [] for name in spreads}
    bases = {name[0]: spread for name, spread in spreads.items()}
    for i in range(0, len(rows), ROWS):
        part = rows.hidden[i : i + ROWS], rows.mask[i : i + ROWS]
        values, gradients = logit_gradients(network, *part, bases)
        logits.append(values)
        for kind, own in gradients.items():
            names = [name for name in spreads if name[0] == kind]
            widths = [{key: Independent(one.std) for key, one in spreads[name].items()} for name in names]
            for name, found in zip(names, output_covariance(own, widths), strict=True):
                parts[name].append(found)
    return torch.cat(logits), {name: torch.cat(own) for name, own in parts.items()}


def logit_gradients(
    network: Network, hidden: Tensor, mask: Tensor, bases: Mapping[str, Mapping[str, Any]]
) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """Logits ``(N, C)`` and, per kind and key of the adapter, their gradients ``(N, C, *tensor)`` in its basis."""
    gradients: dict[str, dict[str, list[Tensor]]] = {kind: {} for kind in bases}

    def receive(weight: str, bias: str | None, inputs: Tensor, gradient: Tensor) -> None:
        x, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (inputs, gradient))
        for kind, basis in bases.items():
            if weight in basis:
                gradients[kind].setdefault(weight, []).append(_in_basis(x, g, basis[weight]))
            if bias in basis:
                gradients[kind].setdefault(str(bias), []).append(g.sum(1))

    with watched({layer: partial(receive, *keys) for layer, keys in network.linear_layers().items()}):
        logits = network(hidden, mask)
        for k in range(logits.shape[1]):
            logits[:, k].sum().backward(retain_graph=k + 1 < logits.shape[1])
    for parameter in network.trained():
        parameter.grad = None
    stacked = {
        kind: {key: torch.stack(parts, 1) for key, parts in own.items()} for kind, own in gradients.items()
    }
    return logits.detach(), stacked


def _in_basis(x: Tensor, g: Tensor, spread: Independent | Kronecker) -> Tensor:
    """Gradients ``(N, m, n)`` in the basis of a covariance, from inputs ``(N, P, n)`` and gradients ``(N, P, m)``."""
    if isinstance(spread, Kronecker) and x.shape[1] < min(
        x.shape[2], g.shape[2]
    ):  # rotating the factors is cheaper
        return (g @ spread.left).mT @ (x @ spread.right)
    return spread.rotate(g.mT @ x)


def _logit_draws(logits: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Log-probabilities ``(S, N, C)`` of antithetic draws of Gaussian logits."""
    generator = torch.Generator().manual_seed(2000 + seed)
    jitter = 1e-8 * torch.eye(logits.shape[1], dtype=torch.float64)
    root = torch.linalg.cholesky(covariance + jitter)
    noise = torch.randn(LOGIT_DRAWS // 2, *logits.shape, 1, generator=generator, dtype=torch.float64)
    half = (root @ noise)[..., 0]
    return torch.log_softmax(logits.double() + torch.cat([half, -half]), -1)


def plain_posterior(
    network: Network, hess: list[Tensor], num_examples: int, curvature: dict[str, Tensor]
) -> Posterior:
    """Posterior of weights that another optimizer trained, from squared gradients in the order of ``trained()``."""
    from vlora.posterior.export import saved_by_peft
    from vlora.posterior.meta import PosteriorMeta

    mean, config = saved_by_peft(network.peft)
    order = {id(parameter): i for i, parameter in enumerate(network.trained())}
    live = adapter_tensors(network.peft, mean)
    found = {key: hess[order[id(tensor)]] for key, tensor in live.items() if id(tensor) in order}
    meta = PosteriorMeta(num_examples=num_examples, ess=float(num_examples), method="laplace")
    assert math.isclose(sum(h.numel() for h in found.values()), sum(h.numel() for h in hess))
    return Posterior(mean, found, meta, config, curvature)
