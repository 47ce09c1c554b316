"""Kronecker factors of a finished adapter or model: one pass over data, see :mod:`vlora.curvature` for the formulas."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlora.backward import watched
from vlora.curvature.layers import layer_sizes, measured_layers
from vlora.curvature.tokens import add_examples
from vlora.curvature.votes import Votes, base_logits, change_votes
from vlora.data.pieces import pieces
from vlora.errors import ConfigError, DataError, TrainingError

__all__ = ["collect_curvature"]


def collect_curvature(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    adapter_name: str = "default",
    max_examples: int | None = None,
    normalise: bool = True,
    votes: Votes = "auto",
    activations: bool = False,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
    layers: str | None = None,
    joined: bool = True,
) -> dict[str, Tensor]:
    r"""Gather the input Gram G and the output Gram S of every module that a LoRA adapter changes, or of linear layers.

    The model runs as it is (for a variational adapter: at the mean) in eval mode, hence without dropout and
    without gradient checkpointing. Rows of a batch do not interact in such a model, so the gradient of the
    batch loss holds each row's own gradient up to one factor per row, which the normalisation removes: the
    result depends neither on the batch size nor on the loss reduction. Padding has exactly zero gradient and
    so adds nothing. Afterwards modes, ``requires_grad`` and every ``.grad`` are as they were.

    Args:
        model: a PEFT model whose active adapter is ``adapter_name``, or a model without an adapter; the layers may be
            plain or bitsandbytes 8-bit or 4-bit linear layers, or ``Conv1D``.
        batches: keyword arguments for the model, rows first, with ``labels``, so that there is a loss; rows
            whose labels are all -100 are passed over.
        adapter_name: the adapter whose modules are measured.
        max_examples: stop after this many rows; None for all of them.
        normalise: divide each example's token gradients by their common norm (c_i above) and scale each matrix to mean
            eigenvalue 1 (trace = its size; a module without any gradient keeps zeros). False: c_i = 1, the plain sums
            of the rows' own losses, computed one row at a time, which is slower, and no votes.
        votes: v_i of normalised examples: ``change`` by what the adapter changed (:mod:`vlora.curvature.votes`; one
            forward pass more, without the adapter), ``equal`` one each, ``auto`` the former where it is defined.
        activations: gather the unweighted Gram of the inputs too, for ``method: regmean``.
        progress: show a progress bar on stderr.
        dtype: of the sums and the result, float32 or float64.
        layers: of a model without an adapter: regular expression that is searched in the names of its linear layers;
            None for all but the one that predicts tokens.
        joined: add the gradients of an example's tokens up before they are squared (:mod:`vlora.curvature.tokens`).

    Returns:
        ``{"<module>.input_gram": G, "<module>.output_gram": S}``, with ``activations`` also
        ``"<module>.activation_gram"``, on the CPU, symmetric and positive
        semi-definite; ``<module>`` is the adapter's key in the checkpoint without ``.lora_A.weight``, or the name of
        the layer.

    Raises:
        ConfigError: the adapter is unknown, inactive, disabled or merged, ``layers`` matches none, ``max_examples`` is
            not positive, or votes by change are asked for where they are not defined.
        IncompatibleAdaptersError: a layer is not a linear layer of torch or bitsandbytes, or a ``Conv1D``.
        DataError: no rows with labels, a loss without a path to the layers, or rows that cannot be told apart.
        TrainingError: a loss or a gradient is not finite.
    """
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples must be at least 1 or None for all rows, got {max_examples}")
    collector = _Collector(
        measured_layers(model, adapter_name, layers), normalise, activations, dtype, joined
    )
    device = next(model.parameters()).device
    with (
        _restored(model),
        collector.attached(),
        torch.enable_grad(),
        tqdm(total=max_examples, desc="curvature", unit="row", disable=not progress) as bar,
    ):
        for rows, batch in pieces(batches, max_examples, one_by_one=not normalise):
            bar.update(rows)
            if _unlabelled(batch):
                continue
            collector.rows = rows
            inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            collector.add(model, inputs, votes if normalise else "equal")
    return collector.result()


class _Collector:
    """Running sums of G and S of all measured layers, fed by hooks.

    ``rows`` is the current batch size, ``votes`` what its rows count, None for one each.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[nn.Module, Any]],
        normalise: bool,
        activations: bool,
        dtype: torch.dtype,
        joined: bool,
    ):
        self.layers, self.normalise, self.dtype, self.rows = layers, normalise, dtype, 0
        self.activations, self.joined = activations, joined
        self.votes: Tensor | None = None
        self.sums: dict[str, Tensor] = {}
        for name, (_, base) in layers.items():
            inputs, outputs = layer_sizes(base)
            sizes = {"input_gram": inputs, "output_gram": outputs}
            if activations:
                sizes["activation_gram"] = inputs
            for gram, size in sizes.items():
                self.sums[f"{name}.{gram}"] = torch.zeros(size, size, dtype=dtype, device=base.weight.device)

    @property
    def modules(self) -> list[nn.Module]:
        """The layers that are watched."""
        return [layer for layer, _ in self.layers.values()]

    def add(self, model: nn.Module, inputs: Mapping[str, Any], votes: Votes) -> None:
        """One batch: what its rows count, then its gradients."""
        base = base_logits(votes, model, self.modules, inputs)
        output = model(**inputs)
        loss = _finite_loss(output)
        self.votes = None if base is None else change_votes(model, output.logits, base, inputs["labels"])
        loss.backward()

    def attached(self) -> AbstractContextManager[None]:
        """Hooks on every layer for the length of the block."""
        return watched({layer: partial(self._add, name) for name, (layer, _) in self.layers.items()})

    def _add(self, name: str, inputs: Tensor, gradient: Tensor) -> None:
        if self.rows != 1 and inputs.shape[0] != self.rows:
            raise DataError(
                f"{name} sees {inputs.shape[0]} rows in a batch of {self.rows}: its tokens cannot be told"
                " apart by example (padding-free batches or expert layers); use batches of one row"
            )
        x = inputs.to(self.dtype).reshape(self.rows, -1, inputs.shape[-1])
        g = gradient.to(self.dtype).reshape(self.rows, -1, gradient.shape[-1])
        if self.normalise:
            g = _unit_per_row(g)
        if self.activations:
            used = x[g.any(dim=-1)]
            self.sums[f"{name}.activation_gram"].addmm_(used.T, used)
        if self.votes is not None:
            g = g * self.votes.to(g).sqrt()[:, None, None]
        input_gram, output_gram = self.sums[f"{name}.input_gram"], self.sums[f"{name}.output_gram"]
        add_examples(input_gram, output_gram, x, g, joined=self.joined)

    def result(self) -> dict[str, Tensor]:
        """Symmetric, scaled matrices on the CPU."""
        if self.rows == 0:
            raise DataError(
                "expected rows with labels to measure curvature on, got none: all may be -100 (masked)"
            )
        finished = {key: _finish(total, self.normalise) for key, total in self.sums.items()}
        broken = next((key for key, gram in finished.items() if not gram.isfinite().all()), None)
        if broken is not None:
            raise TrainingError(f"{broken} is not finite: a gradient overflowed; load the base in float32")
        return finished


def _unit_per_row(g: Tensor) -> Tensor:
    """Each row [tokens, features] of g divided by its norm, without underflow; zero rows stay zero."""
    tiny = torch.finfo(g.dtype).tiny
    g = g / g.abs().amax(dim=(1, 2), keepdim=True).clamp_min(tiny)
    return g / g.norm(dim=(1, 2), keepdim=True).clamp_min(tiny)


def _finish(total: Tensor, normalise: bool) -> Tensor:
    gram = (total + total.T) / 2  # a matrix product is symmetric only up to rounding
    trace = gram.trace()
    if normalise and trace > 0:
        gram = gram * (len(gram) / trace)
    return gram.cpu()


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Eval mode and frozen parameters inside; outside as it was, module by module."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def _unlabelled(batch: Mapping[str, Any]) -> bool:
    labels = batch.get("labels")
    return isinstance(labels, Tensor) and bool((labels == -100).all())


def _finite_loss(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise DataError("the model returned no loss: expected a 'labels' entry in every batch")
    if not loss.requires_grad:
        raise DataError(
            "the loss does not depend on any measured layer: expected an adapter, or layers, that the task uses"
        )
    if not loss.isfinite():
        raise TrainingError(f"the loss is {loss.item()}: the weights or inputs may not be finite")
    return loss
