r"""How good the posterior's draws are on rows kept out of training, and the prior precision under which they are best.

The predictive of an example is the mean over draws of the probability of its whole label (one draw of the weights for
all tokens of a text), so its loss is :math:`-\log \frac1S \sum_s e^{-\ell_{is}}`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlora.errors import DataError, TrainingError
from vlora.fisher import example_losses
from vlora.posterior import Posterior

__all__ = ["HeldOut", "best_factor", "mean_nll", "sampled_nll"]


@dataclass(frozen=True)
class HeldOut:
    """Search over factors on a prior precision.

    Attributes:
        factor: The best one.
        nll: Factor -> negative log-likelihood of the draws, nats per example; lower is better. Infinite where draws
            gave no finite loss.
        mean_nll: The same at the mean, without draws.
    """

    factor: float
    nll: dict[float, float]
    mean_nll: float


def best_factor(
    model: nn.Module,
    posterior: Posterior,
    precision: Mapping[str, float],
    batches: Sequence[Mapping[str, Any]],
    *,
    factors: Sequence[float],
    num_samples: int = 8,
    progress: bool = True,
) -> HeldOut:
    """Try ``factor * precision`` as prior precision for every factor; equal noise in all of them.

    Args:
        model: PEFT model with the adapter, in eval mode.
        posterior: From :func:`vlora.laplace.fit.laplace_posterior`.
        precision: Prior precision per tensor that the factors multiply.
        batches: Held-out rows; a sequence, as every draw must see them in the same order.
        factors: What to try.
        num_samples: Draws per factor, in antithetic pairs.
        progress: Show a bar on stderr.

    Raises:
        DataError: No rows with labels.
    """
    nll: dict[float, float] = {}
    with tqdm(
        total=len(factors) * num_samples, desc="held-out draws", unit="draw", disable=not progress
    ) as bar:
        for factor in sorted(set(factors)):
            wide = posterior.with_prior({key: factor * value for key, value in precision.items()})
            nll[factor] = sampled_nll(model, wide, batches, num_samples=num_samples, bar=bar)
    return HeldOut(min(nll, key=lambda f: (nll[f], -f)), nll, mean_nll(model, batches))


def mean_nll(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> float:
    """Negative log-likelihood of the rows under the weights that the model holds, nats per example."""
    return _losses(model, batches).mean().item()


def sampled_nll(
    model: nn.Module,
    posterior: Posterior,
    batches: Sequence[Mapping[str, Any]],
    *,
    num_samples: int,
    bar: tqdm | None = None,
) -> float:
    """Negative log-likelihood of the rows under the mean over draws of their probability, nats per example."""
    draws = []
    for k in range(num_samples):
        try:
            with posterior.sampled(model, k, antithetic=True):
                draws.append(-_losses(model, batches))
        except TrainingError:  # so wide that the activations overflow
            return math.inf
        finally:
            if bar is not None:
                bar.update()
    return math.log(num_samples) - torch.stack(draws).logsumexp(0).mean().item()


def _losses(model: nn.Module, batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Loss of every row that has a label, float64 [rows]."""
    found = []
    for batch in batches:
        used = (
            (batch["labels"] != -100).flatten(1).any(1)
            if batch["labels"].dim() > 1
            else batch["labels"] != -100
        )
        found.append(example_losses(model, batch).double().cpu()[used.cpu()])
    losses = torch.cat(found) if found else torch.empty(0)
    if not len(losses):
        raise DataError("expected held-out rows with labels, got none")
    return losses
