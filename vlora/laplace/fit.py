r"""The diagonal Laplace approximation of an adapter in memory: h measured, prior precision chosen, mean untouched.

.. math:: q(\theta) = \mathcal N\left(m, \; 1 / (\lambda h + \alpha)\right), \qquad
          h = \tfrac1N \sum_i \mathbb E\,[g_i^2], \quad \lambda = N / T

h is the diagonal Fisher information at the weights m of the adapter (``vlora.fisher``), :math:`\alpha` the prior
precision (``vlora.laplace.evidence``). In the fields of a posterior: ``hess = h``, ``ess = lambda`` and
``weight_decay = alpha / lambda``.

The prior is centred at zero. For B, which starts there, this says "the adapter does little"; the factor A starts from
random numbers, so its square norm measures the start as much as the training, and its evidence-based precision says
little more than "as wide as the start". The mean stays where training left it all the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from vlora.errors import ConfigError, DataError
from vlora.fisher import LabelKind, Reduction, SquaredGradients, squared_gradients
from vlora.laplace.config import PriorScope
from vlora.laplace.evidence import best_prior_precision, effective_parameters, log_evidence
from vlora.posterior import Posterior
from vlora.posterior.health import LAPLACE
from vlora.posterior.keys import adapter_tensors

__all__ = ["EvidencePrior", "evidence_prior", "laplace_posterior", "stochastic_parameters"]


def stochastic_parameters(
    model: nn.Module, adapter: Posterior, deterministic: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """Parameters of the model that get a variance, by their keys in the adapter.

    Raises:
        ConfigError: ``deterministic`` leaves nothing.
    """
    keys = [key for key in adapter.mean if not any(part in key for part in deterministic)]
    live = {k: v for k, v in adapter_tensors(model, keys).items() if isinstance(v, nn.Parameter)}
    if not live:
        raise ConfigError(f"deterministic: {list(deterministic)} leaves no tensor of this adapter")
    return live


def laplace_posterior(
    model: nn.Module,
    adapter: Posterior,
    batches: Iterable[Mapping[str, Any]],
    *,
    num_examples: int,
    labels: LabelKind = "sampled",
    reduction: Reduction = "mean",
    temperature: float = 1.0,
    max_examples: int | None = None,
    deterministic: Sequence[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> tuple[Posterior, SquaredGradients]:
    """Measure h at the adapter's weights; the prior is still flat, see :meth:`Posterior.with_prior`.

    Args:
        model: PEFT model that holds the adapter's weights under the name ``default``.
        adapter: The same adapter, read from its folder.
        batches: Training rows in random order.
        num_examples: N, all rows that the adapter was trained on.
        labels: Where the labels of the squared gradients come from.
        reduction: Which mean loss h is the curvature of.
        temperature: N / ess.
        max_examples: Rows to look at; None for all.
        deterministic: Tensors whose key contains one of these keep no variance.
        seed: Seed of drawn labels and of the posterior's draws.
        progress: Show a bar on stderr.

    Raises:
        ConfigError: ``deterministic`` leaves nothing.
        DataError: No rows, or a loss that the adapter has no part in.
        TrainingError: A loss or gradient is not finite.
    """
    live = stochastic_parameters(model, adapter, deterministic)
    found = squared_gradients(
        model,
        batches,
        parameters=live,
        labels=labels,
        reduction=reduction,
        max_examples=max_examples,
        seed=seed,
        progress=progress,
    )
    meta = replace(
        adapter.meta,
        num_examples=num_examples,
        ess=num_examples / temperature,
        weight_decay=0.0,
        prior={"kind": "zero"},
        loss_reduction=reduction,
        tokens_per_example=found.tokens_per_example,
        beta2=None,
        hess_init=None,
        method=LAPLACE,
        seed=seed,
        health={},
        ancestor={}
        if adapter.meta.ancestor.get("included")
        else adapter.meta.ancestor,  # h is of these rows alone
    )
    return replace(adapter, hess=found.values, meta=meta, calibration=None, directions=None), found


@dataclass(frozen=True)
class EvidencePrior:
    """Prior precision of highest evidence.

    Attributes:
        precision: Tensor key -> alpha (all equal for one scalar prior).
        log_evidence: In nats, up to constants of the likelihood; higher is better.
        effective_parameters: Parameters that the data determine.
        undetermined: Keys without a maximum of their own (a tensor or its h is all zeros), which took the common one.
    """

    precision: dict[str, float]
    log_evidence: float
    effective_parameters: float
    undetermined: list[str]


def evidence_prior(posterior: Posterior, *, mean_loss: float, scope: PriorScope = "matrix") -> EvidencePrior:
    """Maximise the log evidence over one prior precision per tensor, or over one for all.

    Args:
        posterior: From :func:`laplace_posterior`, with one ``ess``.
        mean_loss: Loss per example of the training rows at the mean.
        scope: ``matrix`` or ``scalar``.

    Raises:
        DataError: The adapter, or every squared gradient, is zero.
    """
    ess = posterior.meta.of("ess", next(iter(posterior.hess)))
    flat = [
        torch.cat([v[k].double().flatten() for k in posterior.hess]) for v in (posterior.mean, posterior.hess)
    ]
    common = best_prior_precision(*flat, ess=ess)
    if common is None:
        raise DataError(
            "no prior precision maximises the evidence: the adapter's weights or all squared gradients are zero; "
            "was it trained, and on this task?"
        )
    own: dict[str, float | None] = dict.fromkeys(posterior.hess, common)
    if scope == "matrix":
        own = {k: best_prior_precision(posterior.mean[k], h, ess=ess) for k, h in posterior.hess.items()}
    precision = {key: value if value is not None else common for key, value in own.items()}
    evidence, effective = -ess * mean_loss, 0.0
    for key, hess in posterior.hess.items():
        settings = {"ess": ess, "prior_precision": precision[key]}
        evidence += log_evidence(posterior.mean[key], hess, mean_loss=0.0, **settings)
        effective += effective_parameters(hess, **settings)
    return EvidencePrior(precision, evidence, effective, [k for k, value in own.items() if value is None])
