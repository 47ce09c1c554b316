r"""Kronecker factors gathered while an adapter trains: from every step, at a small share of its cost.

The formulas are those of :mod:`vlora.curvature`, each example with one vote per visit. A full sum over tokens costs
about as much as the layer's own forward pass. The tokens of an example are therefore first combined with random signs

.. math::
    y_{ik} = \sum_t \varepsilon_{kt} \|g_{it}\| \, x_{it}, \qquad z_{ik} = \sum_t \varepsilon_{kt} \, g_{it},
    \qquad \varepsilon_{kt} = \pm 1, \qquad k = 1 \dots K,

and :math:`\frac{1}{K} \sum_k y_{ik} y_{ik}^\top` has the expectation
:math:`\sum_t \|g_{it}\|^2 x_{it} x_{it}^\top` (Hutchinson's argument), so no example and no token is left out;
:math:`S` alike. The cost falls from tokens to ``K`` outer products per example. What differs from one pass afterwards:
gradients are those of the weights on the way (for a variational adapter: of its draws), with dropout.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from vlora.backward import watched
from vlora.curvature.layers import adapted_layers
from vlora.curvature.sums import RunningSum, make_sum, sum_bytes
from vlora.errors import ConfigError, DataError

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["CurvatureStream", "gathering", "stream_bytes"]


class CurvatureStream:
    """Running factors of a model in training; made by :func:`gathering`."""

    def __init__(
        self,
        model: "PeftModel",
        adapter_name: str = "default",
        draws: int | None = 2,
        rank: int | None = None,
        outputs: bool = True,
        activations: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (("draws", draws), ("rank", rank)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1 or None, got {value}")
        self.layers, self.draws, self.seed = adapted_layers(model, adapter_name), draws, seed
        self.sums: dict[str, RunningSum] = {}
        self.visits: dict[str, int] = dict.fromkeys(self.layers, 0)
        self._skipped: dict[str, Tensor] = {}
        self._generators: dict[torch.device, torch.Generator] = {}
        for name, layer in self.layers.items():
            base: Any = layer.get_base_layer()
            sizes = {"input_gram": base.in_features}
            sizes |= {"output_gram": base.out_features} if outputs else {}
            sizes |= {"activation_gram": base.in_features} if activations else {}
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
        norms = norms.nan_to_num(0.0, 0.0, 0.0)
        signs = self._signs(x)
        self.sums[f"{name}.input_gram"].add(_combined(signs, norms * share, x))
        if f"{name}.output_gram" in self.sums:
            self.sums[f"{name}.output_gram"].add(_combined(signs, share.expand_as(norms), g))
        if f"{name}.activation_gram" in self.sums:
            self.sums[f"{name}.activation_gram"].add(_combined(signs, (norms * good > 0).float(), x))

    def _signs(self, x: Tensor) -> Tensor | None:
        """Random signs / sqrt(K), shape ``(rows, K, tokens)``; None where tokens are few enough to take one by one."""
        rows, tokens = x.shape[:2]
        if self.draws is None or tokens <= self.draws:
            return None
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        bits = torch.randint(
            0, 2, (rows, self.draws, tokens), generator=self._generators[x.device], device=x.device
        )
        return (2 * bits - 1) / self.draws**0.5


@contextmanager
def gathering(
    model: "PeftModel",
    *,
    adapter_name: str = "default",
    draws: int | None = 2,
    rank: int | None = None,
    outputs: bool = True,
    activations: bool = False,
    seed: int = 0,
) -> Iterator[CurvatureStream]:
    """Watch the adapted layers of a model for the length of a block, usually around ``trainer.train()``.

    Every backward pass counts: micro-batches of an accumulation, all processes of a DDP run (added by ``result``).
    The first axis of a layer's input must be the examples; several texts packed into one row count as one example.
    An example whose gradient is not finite (an overflow that a gradient scaler will skip) or is zero is left out and
    counted in ``skipped``.

    Args:
        model: a PEFT model, plain or on a bitsandbytes base; wrap it for DDP or compile it afterwards.
        adapter_name: the adapter whose modules are measured.
        draws: K, random combinations per example; None for the exact sums over tokens.
        rank: directions kept per matrix in place of the whole matrix, for wide layers; see :func:`stream_bytes`.
        outputs: gather S too. It costs as much as G; merging needs it for ``mats`` and for truncation to a rank.
        activations: gather the unweighted Gram for ``method: regmean`` too.
        seed: of the signs; their generator is apart from torch's own, so training is not changed by a bit.

    Yields:
        The stream; take ``stream.result()`` after training.

    Raises:
        ConfigError: the adapter is unknown, inactive or disabled, or ``draws`` or ``rank`` is not positive.
        IncompatibleAdaptersError: an adapted layer is not a linear layer of torch or bitsandbytes.
    """
    stream = CurvatureStream(model, adapter_name, draws, rank, outputs, activations, seed)
    layers: dict[str, Any] = dict(stream.layers)
    with watched({layer: partial(stream._add, name) for name, layer in layers.items()}):
        yield stream


def stream_bytes(
    model: "PeftModel", *, adapter_name: str = "default", rank: int | None = None
) -> tuple[int, int]:
    """Bytes of G and S of all adapted layers before anything runs: while gathering, and on disk.

    Args:
        model: a PEFT model.
        adapter_name: the adapter whose modules count.
        rank: as for :func:`gathering`.
    """
    sizes = []
    for layer in adapted_layers(model, adapter_name).values():
        base: Any = layer.get_base_layer()
        sizes += [sum_bytes(base.in_features, rank), sum_bytes(base.out_features, rank)]
    return sum(live for live, _ in sizes), sum(stored for _, stored in sizes)


def _by_example(tensor: Tensor) -> Tensor:
    """Shape ``(rows, tokens, features)``; bfloat16 stays, anything else becomes float32."""
    tensor = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    return tensor if tensor.dtype == torch.bfloat16 else tensor.float()


def _combined(signs: Tensor | None, weights: Tensor, features: Tensor) -> Tensor:
    """Weighted tokens, or their signed sums: rows of shape ``(count, features)`` in float32."""
    if signs is None:
        rows = features * weights[..., None]
    else:
        rows = torch.bmm((signs * weights[:, None]).to(features.dtype), features)
    return rows.flatten(0, 1).float().nan_to_num(0.0, 0.0, 0.0)
