r"""The tokens of an example in its Kronecker factors: added up before they are squared, or squared one by one.

With inputs :math:`x_{t}` and gradients :math:`g_{t}` of one example, and its gradient of the weight
:math:`D = \sum_t g_t x_t^\top`,

.. math::
    \text{joined:}\quad & G = D^\top D = \sum_{t,u} (g_t \cdot g_u)\, x_t x_u^\top, \quad
                          S = D D^\top = \sum_{t,u} (x_t \cdot x_u)\, g_t g_u^\top \\
    \text{apart:}\quad  & G = \sum_t \|g_t\|^2 x_t x_t^\top, \quad S = \sum_t g_t g_t^\top .

*Joined* are the partial traces of :math:`\mathrm{vec} D \, \mathrm{vec} D^\top` (vec by rows), the example's term of
the empirical Fisher matrix; divided by m and by n they are the nearest :math:`I \otimes G` and :math:`S \otimes I` in
the Frobenius norm. *Apart* takes tokens as independent ("expand" against "reduce" of Eschenhagen et al. 2023,
arXiv:2311.00636); G has the terms t = u of the former, and S without the size of the inputs.

D takes m n numbers, :math:`L m n + m n^2 + m^2 n` operations with its squares. The Gram matrices of the tokens,
:math:`K_g = g g^\top` and :math:`K_x = x x^\top` of L x L, give the same as :math:`x^\top K_g x` and
:math:`g^\top K_x g` for :math:`2 L^2 (m + n)` operations more than the :math:`L (m^2 + n^2)` of *apart*. The shorter
way is taken. An example whose tokens cancel up to rounding has no say.
"""

import torch
from torch import Tensor

__all__ = ["add_examples"]

_NUMBERS = 1 << 24
"""Of L x L or m x n matrices at once; examples are taken some at a time."""


def add_examples(input_gram: Tensor, output_gram: Tensor, x: Tensor, g: Tensor, *, joined: bool) -> None:
    """Add the terms of some examples to the sums G and S.

    Args:
        input_gram: Sum over examples, shape ``(n, n)``; changed in place.
        output_gram: Sum over examples, shape ``(m, m)``; changed in place.
        x: Inputs, shape ``(N, L, n)``; anything, NaN too, where g is zero.
        g: Gradients of the outputs, times what an example counts, shape ``(N, L, m)``.
        joined: Add up tokens before they are squared.
    """
    used = g.any(dim=-1)
    if not joined:
        _add_apart(input_gram, output_gram, x[used], g[used])
        return
    x = x.where(used[..., None], 0.0)
    tokens, n, m = *x.shape[1:], g.shape[2]
    by_weight = tokens * m * n + m * n * (m + n) < 2 * tokens**2 * (m + n) + tokens * (m**2 + n**2)
    count = max(1, _NUMBERS // (m * n if by_weight else tokens**2))
    for some in zip(x.split(count), g.split(count), strict=True):
        (_add_weights if by_weight else _add_tokens)(input_gram, output_gram, *some)


def _add_apart(input_gram: Tensor, output_gram: Tensor, x: Tensor, g: Tensor) -> None:
    weighted = x * g.norm(dim=-1, keepdim=True)
    input_gram.addmm_(weighted.T, weighted)
    output_gram.addmm_(g.T, g)


def _add_weights(input_gram: Tensor, output_gram: Tensor, x: Tensor, g: Tensor) -> None:
    whole = g.mT @ x
    whole = whole * _told(whole.square().sum((1, 2)), x, g)
    by_output, by_input = whole.flatten(0, 1), whole.mT.flatten(0, 1)
    input_gram.addmm_(by_output.T, by_output)
    output_gram.addmm_(by_input.T, by_input)


def _add_tokens(input_gram: Tensor, output_gram: Tensor, x: Tensor, g: Tensor) -> None:
    of_inputs, of_gradients = x @ x.mT, g @ g.mT
    told = _told((of_inputs * of_gradients).sum((1, 2)), x, g)
    input_gram.addmm_(x.flatten(0, 1).T, (told * of_gradients @ x).flatten(0, 1))
    output_gram.addmm_(g.flatten(0, 1).T, (told * of_inputs @ g).flatten(0, 1))


def _told(size: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """1 for every example whose |D|^2, ``size``, is more than rounding of |x|^2 |g|^2, else 0; shape ``(N, 1, 1)``."""
    largest = x.square().sum((1, 2)) * g.square().sum((1, 2))
    return (size > 32 * torch.finfo(size.dtype).eps * largest).to(size)[:, None, None]
