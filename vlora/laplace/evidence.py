r"""Log evidence of a diagonal Laplace approximation, and the prior precision that maximises it.

With the loss per example :math:`\bar L` at the mean :math:`m` (P entries), its diagonal Gauss-Newton curvature
:math:`h`, :math:`\lambda` effective examples and the prior :math:`\mathcal N(0, \alpha^{-1})`, the integrand
:math:`p(D|\theta)\,p(\theta)` is replaced by a Gaussian of precision :math:`\lambda h + \alpha` around :math:`m`
(MacKay 1992; Daxberger et al. 2021, arXiv:2106.14806, eq. 6 and 13). The two factors :math:`(2\pi)^{P/2}` cancel:

.. math::
    \log Z(\alpha) = -\lambda \bar L - \tfrac12 \alpha \|m\|^2 + \tfrac{P}{2} \log \alpha
                     - \tfrac12 \sum_i \log(\lambda h_i + \alpha) .

It is exact for a quadratic loss with diagonal curvature whose maximum a posteriori is :math:`m`. As a function of
:math:`\log \alpha` it is concave, with the derivative :math:`\tfrac12 [\gamma(\alpha) - \alpha \|m\|^2]`, where
:math:`\gamma(\alpha) = \sum_i \lambda h_i / (\lambda h_i + \alpha)` counts the parameters that the data determine. The
maximum is the one root of :math:`\gamma(\alpha) = \alpha \|m\|^2`, here found by bisection.

With :math:`\lambda = N / T` the likelihood enters to the power 1 / T, T being the temperature.

Names: alpha -> ``prior_precision``, lambda -> ``ess``, gamma -> ``effective_parameters``, log Z -> ``log_evidence``.
"""

import math

from torch import Tensor

__all__ = ["best_prior_precision", "effective_parameters", "log_evidence"]

_HALVINGS = 50


def log_evidence(
    mean: Tensor, hess: Tensor, *, mean_loss: float, ess: float, prior_precision: float
) -> float:
    """Log evidence in nats; higher is better.

    Args:
        mean: m, any shape.
        hess: h of the same shape, not negative.
        mean_loss: Loss per example at m.
        ess: Effective number of examples.
        prior_precision: alpha > 0.
    """
    precision = ess * hess.double() + prior_precision
    shrink = 0.5 * prior_precision * mean.double().square().sum().item()
    volume = 0.5 * (math.log(prior_precision) - precision.log()).sum().item()
    return -ess * mean_loss - shrink + volume


def effective_parameters(hess: Tensor, *, ess: float, prior_precision: float) -> float:
    """Number of parameters that the data rather than the prior determine, from 0 to the number of entries."""
    curvature = ess * hess.double()
    return (curvature / (curvature + prior_precision)).sum().item()


def best_prior_precision(mean: Tensor, hess: Tensor, *, ess: float) -> float | None:
    """The prior precision of highest evidence at a fixed mean.

    Args:
        mean: m, any shape.
        hess: h of the same shape, not negative.
        ess: Effective number of examples.

    Returns:
        The root, to 12 digits; None where there is none: a mean of zeros wants an infinite precision, and an h of
        zeros an infinitely wide prior.
    """
    square = mean.double().square().sum().item()
    positive = int((hess > 0).sum())
    if not square > 0 or not positive:
        return None

    def rising(log_precision: float) -> bool:
        precision = math.exp(log_precision)
        return effective_parameters(hess, ess=ess, prior_precision=precision) > precision * square

    high = math.log(positive / square)  # gamma is below the number of positive entries
    width = 1.0
    while not rising(high - width):
        width *= 2
    low = high - width
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) else (low, middle)
    return math.exp((low + high) / 2)
