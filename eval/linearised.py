r"""Covariance of an item's logits, straight from the posterior: one forward pass and K backward passes.

.. math:: C = J \Sigma J^\top, \qquad J_{kp} = \partial f_k / \partial \theta_p, \quad
          \Sigma = \mathrm{diag}\, 1 / (\lambda (h + \delta))

with :math:`f` the K logits of a classifier, or the log-likelihoods of an item's K choices as whole strings; for a text
there is one, :math:`f = \log p(y)`, and :math:`g^\top \Sigma g` is the variance of its score. Every row of a batch has
a copy of the mean of its own (:mod:`vlora.stacked`), so one backward pass gives the gradients of all rows apart.

Other kinds of :math:`\Sigma` are in :mod:`vlora.posterior.kinds`. One Jacobian serves as many covariances as are wanted
(:class:`Wanted`): of all kinds, at the width of the draws and under a prior, or under all priors of a fit. It also
gives the share of the prior variance that the data left (:class:`WantedShare`).

Prompts are run in full: a key/value cache shared between items would hide the prefix's own dependence on the weights.
Blocks below the first adapted one need no backward pass.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlora.errors import ConfigError
from vlora.eval.batching import Batch, run_halving
from vlora.eval.forward import model_device, place_logits, repeated
from vlora.eval.sink import Sink
from vlora.eval.tree_forward import sharing_obstacle, tree_logits
from vlora.eval.trees import TreeBatch, Trees
from vlora.posterior import Posterior
from vlora.posterior.decisions import Kind
from vlora.posterior.kinds import missing, output_covariances, source_identity
from vlora.stacked import Stack, obstacle

__all__ = ["Linearised", "Wanted", "WantedShare", "linearised_name", "share_name"]

logger = logging.getLogger(__name__)

_BYTES = 2**30  # most memory for the Jacobians of a batch
Measure = Callable[[Mapping[str, Tensor], Tensor], list[Tensor]]
"""From gradients, key -> ``(N, K, *tensor)``, and which outputs are there, ``(N, K)``, to what is wanted, by row."""


def linearised_name(posterior: Posterior, kind: Kind, *, prior: float | None = None) -> str:
    """Name under which the covariances of a posterior are stored; curvature or directions are part of it.

    Args:
        posterior: The posterior.
        kind: Covariance of the weights.
        prior: Prior precision at temperature 1; None: at the width of the draws.
    """
    name = "linearised"
    for sha256 in source_identity(posterior, kind).values():
        name = f"linearised_{kind}_{sha256[:16]}"
    return name if prior is None else f"{name}_prior_{posterior.meta.num_examples}_{prior!r}"


def share_name(posterior: Posterior) -> str:
    """Name under which the shares of a posterior as read from its folder, with leading directions, are stored."""
    assert posterior.directions is not None
    (sha256,) = source_identity(posterior, "leading").values()
    return f"linearised_share_{sha256[:16]}_{posterior.directions.share_precision!r}"


@dataclass(frozen=True)
class Wanted:
    """Covariances that are wanted of every item, all of one adapter.

    Attributes:
        posteriors: Posteriors that differ in scale and prior only, each for one covariance.
        kind: Covariance of the weights.
        priors: Instead of one covariance a posterior, one under each of these prior precisions.
    """

    posteriors: Sequence[Posterior]
    kind: Kind = "independent"
    priors: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.priors) or len(self.posteriors)

    def on(self, device: torch.device) -> Measure:
        """From gradients to covariances, see :func:`vlora.posterior.kinds.output_covariances`.

        Raises:
            ConfigError: The posterior lacks what the kind needs.
        """
        found = output_covariances(self.posteriors, self.kind, priors=self.priors, device=device)
        return lambda gradients, present: found(gradients)


@dataclass(frozen=True)
class WantedShare:
    """The share of the prior variance that the data left of every item, one number each.

    Attributes:
        posteriors: The posterior, alone; its prior and temperature play no part.
    """

    posteriors: Sequence[Posterior]

    def __len__(self) -> int:
        return 1

    def on(self, device: torch.device) -> Measure:
        """From gradients to shares, see :meth:`vlora.posterior.leading.Leading.share_left`.

        Raises:
            ConfigError: The posterior lacks directions.
        """
        directions = self.posteriors[0].directions
        if directions is None:
            raise ConfigError(f"share_left cannot be had: {missing(self.posteriors[0], 'leading')}")
        there = directions.to(device)
        return lambda gradients, present: [there.share_left(gradients, present=present)]


class Linearised:
    """A model at its mean whose outputs' covariance is wanted."""

    def __init__(self, model: nn.Module, wanted: Sequence[Wanted | WantedShare], outputs: int) -> None:
        """Prepare.

        Args:
            model: PEFT model in eval mode that holds the posterior's mean.
            wanted: What is wanted; an item's covariances and shares come in this order.
            outputs: Most outputs of an item, K.

        Raises:
            ConfigError: The adapter's tensors cannot be copied row by row, or there is no curvature or direction.
        """
        posterior = wanted[0].posteriors[0]
        if (reason := obstacle(model, posterior)) is not None:
            raise ConfigError(f"linearised: true cannot be had: {reason}; leave it out")
        self.model, self.outputs = model, outputs
        device = model_device(model)
        self._wanted = [one.on(device) for one in wanted]
        self._mean = {key: posterior.mean[key].to(device) for key in posterior.hess}
        size = 4 * sum(mean.numel() for mean in self._mean.values())
        self.max_rows = max(1, _BYTES // (size * (outputs + 2)))

    def labels(self, batch: Batch, sink: Sink) -> None:
        """Covariance of the class logits of every row, handed to the sink."""

        def work(some: Batch) -> None:
            inputs = repeated(some.inputs, 1, model_device(self.model))
            sizes = [self.outputs] * len(some)
            found = self._measured(sizes, lambda: self.model(**inputs).logits.float())
            self._take(sink, some.rows.tolist(), found, some.num_tokens)

        with sink.timed():
            run_halving(batch, work)

    def strings(self, trees: Trees, pad_id: int, lengths: Sequence[Sequence[int]], sink: Sink) -> None:
        """Covariance of the log-likelihoods of every item's strings, handed to the sink.

        Args:
            trees: Items without a prefix.
            pad_id: Token that fills rows.
            lengths: Scored tokens of every string of every item.
            sink: Where results go.
        """

        def work(some: Trees) -> None:
            batch = TreeBatch.of(some.trees, pad_id)
            sizes = [lengths[item] for item in some.items]
            found = self._measured([*map(len, sizes)], lambda: _strings(self.model, batch, sizes))
            self._take(sink, some.items, found, batch.num_tokens)

        with sink.timed():
            run_halving(trees, work)

    def _measured(self, sizes: Sequence[int], outputs: Callable[[], Tensor]) -> list[Tensor]:
        """What is wanted of every row: ``J Sigma J^T``, float64 [rows, K, K], or a share, float64 [rows].

        Args:
            sizes: Number of outputs of every row; those behind it are padding.
            outputs: Gives the outputs, [rows, K].
        """
        rows = len(sizes)
        copies = {
            key: value.expand(rows, *value.shape).clone().requires_grad_()
            for key, value in self._mean.items()
        }
        stack = Stack(self.model, copies)
        self._backward = stack.cost(2) - stack.cost(1)  # no gradient flows below the first adapted block
        with stack.active(same_rows=False), torch.enable_grad():
            values = outputs()
            found = [
                torch.autograd.grad(
                    values[:, output].sum(),
                    list(copies.values()),
                    retain_graph=output + 1 < values.shape[1],
                    materialize_grads=True,
                )
                for output in range(values.shape[1])
            ]
        columns = zip(copies, zip(*found, strict=True), strict=True)
        gradients = {key: torch.stack(own, dim=1) for key, own in columns}
        self._backward *= values.shape[1]
        present = torch.arange(values.shape[1]) < torch.tensor(sizes)[:, None]
        present = present.to(values.device)
        return [one.cpu() for measure in self._wanted for one in measure(gradients, present)]

    def _take(self, sink: Sink, items: list[int], found: list[Tensor], tokens: int) -> None:
        values = [list(own) for own in zip(*(_rounded(one.tolist()) for one in found), strict=True)]
        cost = 1 + self._backward
        sink.take(items, slice(None), values, tokens=tokens * cost)


def _rounded(value: Any) -> Any:
    """Numbers to the eight digits that float32 gradients can tell."""
    return [_rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.8g}")


def _strings(model: nn.Module, batch: TreeBatch, lengths: Sequence[Sequence[int]]) -> Tensor:
    """Log-likelihood of every string of every row, float32 [rows, K]; 0 for strings that a row does not have."""
    if sharing_obstacle(model) is not None and batch.mask is not None:
        raise ConfigError(f"linearised: true cannot be had: {sharing_obstacle(model)}; leave it out")
    if batch.mask is None:
        mask = torch.arange(batch.inputs["input_ids"].shape[1]) < batch.lengths[:, None]
        logits = place_logits(model, {**_ids(batch), "attention_mask": mask.long()}, batch.rows, batch.nodes)[
            0
        ]
    else:
        logits = tree_logits(model, batch, None, 1)[0]
    log_probs = logits.float().log_softmax(-1)
    device = log_probs.device
    found = log_probs[batch.place.to(device), batch.targets.to(device)]
    width = max(map(len, lengths))
    slots = [
        row * width + i for row, own in enumerate(lengths) for i, size in enumerate(own) for _ in range(size)
    ]
    sums = torch.zeros(len(lengths) * width, device=device)
    return sums.index_add(0, torch.tensor(slots, device=device), found).view(len(lengths), width)


def _ids(batch: TreeBatch) -> dict[str, Tensor]:
    return {"input_ids": batch.inputs["input_ids"]}
