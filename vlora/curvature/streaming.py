r"""Kronecker factors gathered while an adapter or a model trains: from every step, at a small share of its cost.

The formulas are those of :mod:`vlora.curvature`. The vote of a visit is the size of the example's gradient. What an
adapter changed about an example is the sum of the steps it took for it, and these are as large as its gradients: those
of an example that the base knows are small from the start, those of one that is taught until it is known. So these
votes stand for the ones of :mod:`vlora.curvature.votes`, without a pass of the base. A loss scale that stays the same
does not matter; one that changes, a gradient scaler's, is divided out (:attr:`CurvatureStream.scaler`).

The factors of an example are :math:`G = c_i D_i^\top D_i` and :math:`S = c_i D_i D_i^\top` with its gradient of the
weight :math:`D_i = \sum_t g_{it} x_{it}^\top` (:mod:`vlora.curvature.tokens`). Their full sums cost more than
the layer's own forward pass, so random combinations take their place:

.. math::
    y_{ik} = D_i^\top v_{ik}, \qquad z_{ik} = D_i u_{ik}, \qquad v, u = \pm 1 \text{ over outputs and inputs},
    \qquad k = 1 \dots K,

and :math:`\frac{1}{K} \sum_k y_{ik} y_{ik}^\top` has the expectation :math:`D_i^\top D_i` (Hutchinson's argument), so
no example and no token is left out; :math:`S` alike. The cost falls from tokens to ``K`` outer products per example. An
example of one token is exact.

With ``joined=False`` tokens are taken as independent, and combined with random signs as

.. math::
    y_{ik} = \sum_t \varepsilon_{kt} \|g_{it}\| \, x_{it}, \qquad z_{ik} = \sum_t \varepsilon_{kt} \, g_{it},
    \qquad \varepsilon_{kt} = \pm 1,

whose squares have the expectations :math:`\sum_t \|g_{it}\|^2 x_{it} x_{it}^\top` and
:math:`\sum_t g_{it} g_{it}^\top`.

What differs from one pass afterwards:
gradients are those of the weights on the way (for a variational adapter: of its draws), with dropout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlora.backward import watched
from vlora.curvature.layers import layer_sizes, measured_layers
from vlora.curvature.sums import RunningSum, make_sum, sum_bytes
from vlora.curvature.votes import Votes
from vlora.errors import ConfigError, DataError

__all__ = ["CurvatureStream", "gathering", "stream_bytes"]


class CurvatureStream:
    """Running factors of a model in training; made by :func:`gathering`."""

    def __init__(
        self,
        model: nn.Module,
        adapter_name: str = "default",
        draws: int | None = 2,
        rank: int | None = None,
        outputs: bool = True,
        activations: bool = False,
        seed: int = 0,
        joined: bool = True,
        layers: str | None = None,
        votes: Votes = "auto",
    ) -> None:
        for name, value in (("draws", draws), ("rank", rank)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1 or None, got {value}")
        self.layers, self.draws, self.seed = measured_layers(model, adapter_name, layers), draws, seed
        self.joined, self.equal = joined, votes == "equal"
        self.sums: dict[str, RunningSum] = {}
        self.visits: dict[str, int] = dict.fromkeys(self.layers, 0)
        self._skipped: dict[str, Tensor] = {}
        self.scaler: torch.amp.GradScaler | None = None
        """What scales the loss of this run, if anything does and changes it on the way."""
        self._generators: dict[torch.device, torch.Generator] = {}
        for name, (_, base) in self.layers.items():
            count_in, count_out = layer_sizes(base)
            sizes = {"input_gram": count_in}
            sizes |= {"output_gram": count_out} if outputs else {}
            sizes |= {"activation_gram": count_in} if activations else {}
            for gram, size in sizes.items():
                self.sums[f"{name}.{gram}"] = make_sum(size, rank, base.weight.device)

    @property
    def skipped(self) -> dict[str, int]:
        """Examples per layer whose gradient was zero or not finite."""
        return {name: int(self._skipped.get(name, 0)) for name in self.layers}

    def result(self, *, normalise: bool = True) -> dict[str, Tensor]:
        """The factors so far, under the keys of :func:`vlora.curvature.collect_curvature`; call it once, at the end.

        Under ``torch.distributed`` the sums of all processes are added, so every process must call it.

        Args:
            normalise: scale each matrix to mean eigenvalue 1.

        Raises:
            DataError: no gradient has come by.
        """
        if dist.is_initialized() and dist.get_world_size() > 1:
            for running in self.sums.values():
                running.reduce()
        if not any(self.visits.values()):
            raise DataError(
                "expected training steps inside the block, but no gradient reached an adapted layer"
            )
        found: dict[str, Tensor] = {}
        for key, running in self.sums.items():
            found |= running.result(key, normalise)
        return found

    def _add(self, name: str, inputs: Tensor, gradient: Tensor) -> None:
        x, g = _by_example(inputs), _by_example(gradient)
        norms = torch.linalg.vector_norm(g, dim=-1, dtype=torch.float32)
        totals = torch.linalg.vector_norm(norms, dim=-1, keepdim=True)
        good = (totals > 0) & totals.isfinite()
        self.visits[name] += len(x)
        skipped = (~good).sum()  # stays on the device: no waiting in a training step
        self._skipped[name] = self._skipped.get(name, skipped.new_zeros(())) + skipped
        share = torch.where(good, totals, 1.0).reciprocal() * good  # 1 / norm of the example's gradient, or 0
        if not self.equal:
            share = share.sqrt()
            if self.scaler is not None:  # scale() gives a tensor: no waiting
                share = share * self.scaler.scale(torch.ones_like(totals[:1])).rsqrt()
        norms = norms.nan_to_num(0.0, 0.0, 0.0)
        few = x.shape[1] <= (self.draws or x.shape[1])  # tokens, so that each can have a row of its own
        needed = not self.joined or f"{name}.activation_gram" in self.sums
        signs = self._signs(x.shape[:2], x.device) if needed and not few else None
        rows = self._joined(g, x, share) if self.joined else _combined(signs, norms * share, x)
        self.sums[f"{name}.input_gram"].add(rows)
        if f"{name}.output_gram" in self.sums:
            rows = self._joined(x, g, share) if self.joined else _combined(signs, share.expand_as(norms), g)
            self.sums[f"{name}.output_gram"].add(rows)
        if f"{name}.activation_gram" in self.sums:
            self.sums[f"{name}.activation_gram"].add(_combined(signs, (norms * good > 0).float(), x))

    def _joined(self, mixed: Tensor, kept: Tensor, share: Tensor) -> Tensor:
        """Rows whose squares sum to D^T D of D = sum_t mixed_t kept_t^T, exactly or in expectation.

        Args:
            mixed: Shape ``(rows, tokens, features)``; what random signs run over.
            kept: Shape ``(rows, tokens, features)``.
            share: What a row counts, shape ``(rows, 1)``.

        Returns:
            Shape ``(count, features of kept)``.
        """
        tokens, features = mixed.shape[1:]
        if tokens == 1 or (self.draws is None and tokens < features):
            mixing = _root(mixed).mT
        elif self.draws is None or features <= self.draws:
            mixing = mixed.mT
        else:
            signs = self._signs(torch.Size((len(mixed), features)), mixed.device)
            mixing = torch.bmm(signs.to(mixed.dtype), mixed.mT)
        rows = torch.bmm((mixing * share.unsqueeze(-1)).to(kept.dtype), kept)
        return rows.flatten(0, 1).float().nan_to_num(0.0, 0.0, 0.0)

    def _signs(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Random signs / sqrt(K) over the second axis, shape ``(rows, K, columns)``."""
        rows, columns = shape
        assert self.draws is not None
        if device not in self._generators:
            place = dist.get_rank() if dist.is_initialized() else 0  # equal signs would add up equal errors
            self._generators[device] = torch.Generator(device).manual_seed(self.seed + place)
        bits = torch.randint(
            0, 2, (rows, self.draws, columns), generator=self._generators[device], device=device
        )
        return (2 * bits - 1) / self.draws**0.5


@contextmanager
def gathering(
    model: nn.Module,
    *,
    adapter_name: str = "default",
    draws: int | None = 2,
    rank: int | None = None,
    outputs: bool = True,
    activations: bool = False,
    seed: int = 0,
    joined: bool = True,
    layers: str | None = None,
    votes: Votes = "auto",
) -> Iterator[CurvatureStream]:
    """Watch the layers of a model for the length of a block, usually around ``trainer.train()``.

    Every backward pass counts: micro-batches of an accumulation, all processes of a DDP run (added by ``result``).
    The first axis of a layer's input must be the examples; several texts packed into one row count as one example.
    An example whose gradient is not finite (an overflow that a gradient scaler will skip) or is zero is left out and
    counted in ``skipped``.

    Args:
        model: a PEFT model, plain or on a bitsandbytes base, or a model that is trained whole; wrap it for DDP or
            compile it afterwards.
        adapter_name: the adapter whose modules are measured.
        draws: K, random combinations per example; None for the exact sums over tokens.
        rank: directions kept per matrix in place of the whole matrix, for wide layers; see :func:`stream_bytes`.
        outputs: gather S too. It costs as much as G; merging needs it for ``mats`` and for truncation to a rank.
        activations: gather the unweighted Gram for ``method: regmean`` too.
        seed: of the signs, in process r of a DDP run ``seed + r``; their generator is apart from torch's own, so
            training is not changed by a bit.
        joined: add the gradients of an example's tokens up before they are squared, see above.
        layers: of a model without an adapter: regular expression that is searched in the names of its linear layers;
            None for all but the one that predicts tokens.
        votes: what a visit counts: ``auto`` and ``change`` the size of its gradient, see above; ``equal`` one each.

    Yields:
        The stream; take ``stream.result()`` after training.

    Raises:
        ConfigError: the adapter is unknown, inactive or disabled, ``layers`` matches none, or ``draws`` or ``rank`` is
            not positive.
        IncompatibleAdaptersError: a layer is not a linear layer of torch or bitsandbytes, or a ``Conv1D``.
    """
    stream = CurvatureStream(
        model, adapter_name, draws, rank, outputs, activations, seed, joined, layers, votes
    )
    with watched({layer: partial(stream._add, name) for name, (layer, _) in stream.layers.items()}):
        yield stream


def stream_bytes(
    model: nn.Module,
    *,
    adapter_name: str = "default",
    rank: int | None = None,
    layers: str | None = None,
) -> tuple[int, int]:
    """Bytes of G and S of all measured layers before anything runs: while gathering, and on disk.

    Args:
        model: a PEFT model, or one without an adapter.
        adapter_name: the adapter whose modules count.
        rank: as for :func:`gathering`.
        layers: as for :func:`gathering`.
    """
    sizes = []
    for _, base in measured_layers(model, adapter_name, layers).values():
        sizes += [sum_bytes(size, rank) for size in layer_sizes(base)]
    return sum(live for live, _ in sizes), sum(stored for _, stored in sizes)


def _by_example(tensor: Tensor) -> Tensor:
    """Shape ``(rows, tokens, features)``; bfloat16 stays, anything else becomes float32."""
    tensor = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    return tensor if tensor.dtype == torch.bfloat16 else tensor.float()


def _root(rows: Tensor) -> Tensor:
    """R with R R^T = rows rows^T, shape ``(examples, tokens, tokens)``."""
    if rows.shape[1] == 1:  # without squares, which underflow sooner
        return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    gram = (rows.float() @ rows.float().mT).nan_to_num(0.0, 0.0, 0.0)
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp_min(0).sqrt()[:, None]


def _combined(signs: Tensor | None, weights: Tensor, features: Tensor) -> Tensor:
    """Weighted tokens, or their signed sums: rows of shape ``(count, features)`` in float32."""
    if signs is None:
        rows = features * weights[..., None]
    else:
        rows = torch.bmm((signs * weights[:, None]).to(features.dtype), features)
    return rows.flatten(0, 1).float().nan_to_num(0.0, 0.0, 0.0)
