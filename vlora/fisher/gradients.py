r"""Mean over examples of the squared gradient of each example's loss: the diagonal Fisher information.

.. math:: h_j = \frac{1}{N} \sum_i \mathbb E_{y} \left[ \left( \partial \ell_i(y) / \partial \theta_j \right)^2 \right]

With labels drawn from the model this is the diagonal of the Fisher matrix, which for a softmax likelihood is the
generalised Gauss-Newton matrix, hence a non-negative stand-in for the Hessian of the *mean* loss (Martens 2020,
arXiv:1412.1193). With the labels of the data it is the empirical Fisher, the same only where the model fits the data
(Kunstner et al. 2019, arXiv:1905.12558): on an over-fitted training set it falls towards zero.

``reduction="token_mean"`` divides by the mean number of target tokens, as the loss is then
:math:`(1 / N \bar T) \sum_i \ell_i`. The squared-gradient estimate of IVON sees the gradient of that loss and
therefore has :math:`\bar T` once more in the denominator.

Every row is an example. The model runs in eval mode, without dropout; weights, gradients, modes, ``requires_grad``
and the global random state are left as they were.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlora.data.pieces import pieces, single_rows
from vlora.errors import ConfigError, DataError, TrainingError
from vlora.fisher.hooks import RowGradients, RowsMixedError, linear_layers
from vlora.fisher.losses import LabelKind, Places, Reduction, label_passes, read_places

__all__ = ["SquaredGradients", "squared_gradients"]

_CLOSE = 0.1
"""Relative difference up to which hooks and autograd count as one: bf16 rounding, not another gradient."""


@dataclass(frozen=True)
class SquaredGradients:
    """Result of :func:`squared_gradients`.

    Attributes:
        values: Parameter name -> h, shape of the parameter, on the CPU; units of loss / weight^2 (nats).
        num_examples: N, rows with at least one label.
        mean_loss: Loss under the labels of the data, nats per example or per token.
        tokens_per_example: Mean number of target tokens of a text; None for classification.
        method: ``hooks`` or ``loop``.
    """

    values: dict[str, Tensor]
    num_examples: int
    mean_loss: float
    tokens_per_example: float | None
    method: str


def squared_gradients(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    parameters: Mapping[str, nn.Parameter] | None = None,
    labels: LabelKind = "given",
    reduction: Reduction = "mean",
    method: Literal["auto", "loop"] = "auto",
    max_examples: int | None = None,
    seed: int = 0,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
) -> SquaredGradients:
    """Measure the diagonal Fisher information of ``parameters`` at the model's present weights.

    Args:
        model: Returns ``logits``: [rows, classes], or [rows, tokens, vocabulary] of a causal model.
        batches: Keyword arguments of the model with ``labels``, rows first; -100 marks what is not predicted.
        parameters: Name -> parameter of the model; None for all that require a gradient.
        labels: Empirical (``given``) or true Fisher (``sampled``, or ``expected`` for classification).
        reduction: Which mean loss the result is the curvature of.
        method: ``auto`` takes every row's gradient from one pass with hooks where all parameters are weights or
            biases of linear layers, and goes row by row elsewhere (the first row is done both ways and must
            agree). ``loop`` goes row by row with autograd.
        max_examples: Stop after this many rows; None for all.
        seed: Seed of drawn labels; a row's draw does not depend on the batches.
        progress: Show a bar on stderr.
        dtype: Of the sums and the result.

    Raises:
        ConfigError: Unknown ``labels`` or ``reduction``, no parameters, ``max_examples`` below 1.
        DataError: No rows with labels, or a loss that does not depend on the parameters.
        TrainingError: A loss or a gradient is not finite.
    """
    if labels not in get_args(LabelKind) or reduction not in get_args(Reduction):
        raise ConfigError(
            f"labels must be one of {get_args(LabelKind)} and reduction of {get_args(Reduction)}"
        )
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples must be at least 1 or None for all rows, got {max_examples}")
    if parameters is None:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ConfigError("no parameter to measure: the model has none that requires a gradient")
    run = _Run(model, parameters, labels, seed, dtype)
    if method == "loop":
        run.hooks = None
    with (
        restored(model),
        torch.enable_grad(),
        tqdm(total=max_examples, desc="squared gradients", unit="row", disable=not progress) as bar,
    ):
        for rows, batch in pieces(batches, max_examples):
            run.add(batch)
            bar.update(rows)
    return run.result(reduction)


class _Run:
    """Running sums of one pass."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        labels: LabelKind,
        seed: int,
        dtype: torch.dtype,
    ):
        self.model, self.parameters, self.seed, self.dtype = model, parameters, seed, dtype
        self.labels: LabelKind = labels
        self.sums = {n: torch.zeros(p.shape, dtype=dtype, device=p.device) for n, p in parameters.items()}
        self.examples, self.tokens, self.rows, self.loss = 0, 0, 0, 0.0
        self.reached = self.is_text = False
        layers = linear_layers(model, parameters)
        self.hooks = RowGradients(layers, dtype) if layers else None
        self.proved = False

    def add(self, batch: Mapping[str, Any]) -> None:
        """Add one batch, in one pass where hooks see everything, else row by row."""
        rows = next(len(v) for v in batch.values() if isinstance(v, Tensor) and v.dim())
        found = None
        if self.hooks is not None:
            try:
                if self._proved(batch):
                    found = self._with_hooks(self.hooks, batch, count=True)
            except RowsMixedError:  # packed or routed tokens
                pass
        if found is None:
            self.hooks = None
            found = self._row_by_row(batch)
        for name, value in found.items():
            self.sums[name] += value
            self.reached = True
        self.rows += rows

    def _proved(self, batch: Mapping[str, Any]) -> bool:
        """Whether hooks and autograd agree; tried on the first row that has a label."""
        if self.proved:
            return True
        assert self.hooks is not None
        for row in single_rows(batch):
            want = self._by_autograd(row, first_row=self.rows, count=False)
            if want:
                self.proved = True
                got = self._with_hooks(self.hooks, row, count=False)
                return got.keys() == want.keys() and all(_close(got[name], want[name]) for name in want)
        return True

    def _with_hooks(self, hooks: RowGradients, batch: Mapping[str, Any], *, count: bool) -> dict[str, Tensor]:
        hooks.take()
        with differentiable(self.model, ()), hooks.attached():
            places = read_places(self.model, batch)
            hooks.rows = places.num_rows
            for losses, weights, more in _with_last(
                label_passes(places, self.labels, seed=self.seed, first_row=self.rows)
            ):
                hooks.weights = weights
                if losses.requires_grad and len(places.targets):
                    losses.sum().backward(retain_graph=more)
        if count:
            self._count(places)
        return hooks.take()

    def _row_by_row(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for index, row in enumerate(single_rows(batch)):
            for name, value in self._by_autograd(row, first_row=self.rows + index, count=True).items():
                total[name] = total[name] + value if name in total else value
        return total

    def _by_autograd(self, row: Mapping[str, Any], *, first_row: int, count: bool) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        parameters = list(self.parameters.values())
        with differentiable(self.model, parameters):
            places = read_places(self.model, row)
            if count:
                self._count(places)
            if not len(places.targets) or not places.logits.requires_grad:
                return {}
            for losses, weights, more in _with_last(
                label_passes(places, self.labels, seed=self.seed, first_row=first_row)
            ):
                found = torch.autograd.grad(losses.sum(), parameters, retain_graph=more, allow_unused=True)
                for name, gradient in zip(self.parameters, found, strict=True):
                    if gradient is not None:
                        value = gradient.to(self.dtype).square() * weights.to(self.dtype).squeeze()
                        total[name] = total[name] + value if name in total else value
        return total

    @torch.no_grad()
    def _count(self, places: Places) -> None:
        self.loss += float(places.row_losses(places.targets).double().sum())
        self.tokens += len(places.targets)
        self.examples += len(places.row_of.unique())
        self.is_text = places.is_text

    def result(self, reduction: Reduction) -> SquaredGradients:
        """Means over examples on the scale of ``reduction``."""
        if self.examples == 0:
            raise DataError(
                "expected rows with labels to take gradients of, got none: all may be -100 (masked)"
            )
        if not self.reached:
            raise DataError(
                "the loss does not depend on any of the parameters: is the adapter used by this task?"
            )
        length = self.tokens / self.examples
        scale = 1 / (self.examples * (length if reduction == "token_mean" else 1.0))
        values = {name: (total * scale).cpu() for name, total in self.sums.items()}
        broken = next((name for name, value in values.items() if not value.isfinite().all()), None)
        if broken is not None:
            raise TrainingError(f"a squared gradient of {broken} is not finite: load the base in float32")
        return SquaredGradients(
            values,
            self.examples,
            self.loss / (self.tokens if reduction == "token_mean" else self.examples),
            length if self.is_text else None,
            "loop" if self.hooks is None else "hooks",
        )


def _close(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).norm() <= _CLOSE * want.norm())


def _with_last(passes: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Each pass with whether another one follows, as the graph is needed until then."""
    current = next(passes)
    for following in passes:
        yield *current, True
        current = following
    yield *current, False


@contextmanager
def differentiable(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients for these parameters only; with none of them, hooks start the graph."""
    wanted = {id(parameter) for parameter in parameters}
    former = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in former:
            if parameter.requires_grad != (id(parameter) in wanted):
                parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in former:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside as it was, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
