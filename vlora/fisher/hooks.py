r"""Squared gradients of every row of a batch from one backward pass, for the weights of linear layers.

For a linear layer :math:`y = W x + b` and the tokens t of row i, the gradient of the row's loss is
:math:`g_i = \sum_t d_{it} x_{it}^\top` with :math:`d_{it} = \partial \ell_i / \partial y_{it}` (and
:math:`\sum_t d_{it}` for the bias). Inputs and output gradients are seen by hooks; the product is formed row by row,
[rows, out, in] numbers at a time, which is cheap for the factors of a LoRA. Gradients of parameters are never made.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from vlora.backward import watched

__all__ = ["RowGradients", "RowsMixedError", "linear_layers"]

_BUDGET = 2**24
"""Entries of per-row gradients of one layer held at a time."""


class RowsMixedError(Exception):
    """A layer saw tokens that cannot be told apart by row."""


def linear_layers(
    model: nn.Module, parameters: Mapping[str, nn.Parameter]
) -> dict[nn.Linear, dict[str, str]] | None:
    """The linear layers that hold all of ``parameters``: layer -> {``weight`` or ``bias``: name in ``parameters``}.

    None when a parameter lies elsewhere (embeddings, norms, magnitudes) or in several layers: then hooks on linear
    layers do not see its whole gradient.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers: dict[nn.Linear, dict[str, str]] = {}
    for module in model.modules():
        for role, parameter in module.named_parameters(recurse=False):
            name = names.get(id(parameter))
            if name is None:
                continue
            if type(module) is not nn.Linear:
                return None
            layers.setdefault(module, {})[role] = name
    found = [name for roles in layers.values() for name in roles.values()]
    return layers if sorted(found) == sorted(parameters) else None


class RowGradients:
    """Sums over rows of weighted squared gradients, filled while a backward pass goes by.

    Attributes:
        rows: Number of rows of the batch that is being run.
        weights: Weight of each row's square, [rows].
        sums: Parameter name -> sum so far, in ``dtype``; emptied by :meth:`take`.
    """

    def __init__(self, layers: Mapping[nn.Linear, Mapping[str, str]], dtype: torch.dtype):
        self.layers, self.dtype = layers, dtype
        self.rows, self.weights = 0, torch.empty(0)
        self.sums: dict[str, Tensor] = {}

    def take(self) -> dict[str, Tensor]:
        """The sums, and a fresh start."""
        sums, self.sums = self.sums, {}
        return sums

    def attached(self) -> AbstractContextManager[None]:
        """Hooks on every layer for the length of the block."""
        return watched({layer: partial(self._add, roles) for layer, roles in self.layers.items()})

    def _add(self, roles: Mapping[str, str], inputs: Tensor, gradient: Tensor) -> None:
        if self.rows != 1 and inputs.shape[0] != self.rows:
            raise RowsMixedError
        x = inputs.to(self.dtype).reshape(self.rows, -1, inputs.shape[-1])
        d = gradient.to(self.dtype).reshape(self.rows, -1, gradient.shape[-1])
        weights = self.weights.to(self.dtype)
        if "weight" in roles:
            self._keep(roles["weight"], weighted_squares(x, d, weights))
        if "bias" in roles:
            self._keep(roles["bias"], weights @ d.sum(1).square())

    def _keep(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value


def weighted_squares(x: Tensor, d: Tensor, weights: Tensor) -> Tensor:
    """``sum_i w_i (sum_t d_it x_it^T)^2``, entry by entry.

    Args:
        x: Inputs [rows, tokens, in].
        d: Output gradients [rows, tokens, out].
        weights: [rows].

    Returns:
        [out, in].
    """
    if x.shape[1] == 1:  # a square of an outer product is the outer product of squares
        return (weights.unsqueeze(1) * d[:, 0].square()).T @ x[:, 0].square()
    shape = (d.shape[2], x.shape[2])
    total = x.new_zeros(shape[0] * shape[1])
    step = max(1, _BUDGET // len(total))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        gradients = torch.bmm(d[part].transpose(1, 2), x[part]).flatten(1)
        total += weights[part] @ gradients.square_()
    return total.reshape(shape)
