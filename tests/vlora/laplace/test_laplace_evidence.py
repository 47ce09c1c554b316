"""The log evidence where it is exact, conjugate linear regression with orthogonal inputs, and its maximum."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from vlora.laplace.evidence import best_prior_precision, effective_parameters, log_evidence

ROWS, FEATURES = 40, 6


def regression():
    """Orthogonal columns of several lengths, unit noise."""
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64)
    x = torch.linalg.qr(draw).Q * torch.linspace(0.5, 9, FEATURES)
    weights = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    return x, x @ weights + torch.randn(ROWS, generator=generator, dtype=torch.float64)


def pieces(x, y, alpha, temperature=1.0):
    """Maximum a posteriori, diagonal curvature and mean loss of the (tempered) regression."""
    ess = ROWS / temperature
    hess = x.square().sum(0) / ROWS
    mean = (x.T @ y / ROWS * ess) / (ess * hess + alpha)
    loss = (0.5 * (y - x @ mean).square() + 0.5 * math.log(2 * math.pi)).mean().item()
    return mean, hess, loss, ess


def exact(x, y, alpha):
    covariance = torch.eye(ROWS, dtype=torch.float64) + x @ x.T / alpha
    return MultivariateNormal(torch.zeros(ROWS, dtype=torch.float64), covariance).log_prob(y).item()


@pytest.mark.parametrize("alpha", [1e-3, 0.7, 50.0])
def test_it_is_the_exact_log_evidence_of_linear_regression(alpha):
    x, y = regression()
    mean, hess, loss, ess = pieces(x, y, alpha)
    found = log_evidence(mean, hess, mean_loss=loss, ess=ess, prior_precision=alpha)
    assert found == pytest.approx(exact(x, y, alpha), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.25, 3.0])
def test_temperature_raises_the_likelihood_to_a_power(temperature):
    """N(y; xw, 1)^(1/T) is, up to its constant, the likelihood of rows scaled by 1/sqrt(T)."""
    x, y = regression()
    mean, hess, loss, ess = pieces(x, y, 0.7, temperature)
    found = log_evidence(mean, hess, mean_loss=loss, ess=ess, prior_precision=0.7)
    scaled = exact(x / temperature**0.5, y / temperature**0.5, 0.7)
    constant = 0.5 * ROWS * math.log(2 * math.pi) * (1 - 1 / temperature)
    assert found == pytest.approx(scaled + constant, rel=1e-9)


def test_alternating_with_the_mean_finds_the_maximum_of_the_exact_evidence():
    x, y = regression()
    alpha = 1.0
    for _ in range(100):
        mean, hess, _, ess = pieces(x, y, alpha)
        found = best_prior_precision(mean, hess, ess=ess)
        assert found is not None
        alpha = found
    assert exact(x, y, alpha) >= max(exact(x, y, alpha * factor) for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


def test_the_root_with_equal_curvature_in_closed_form():
    """P lambda h / (lambda h + a) = a |m|^2 is a quadratic in a."""
    mean, hess, ess = torch.tensor([[0.3, -0.2], [0.1, 0.5]]), torch.full((2, 2), 0.02), 500.0
    square, curvature = mean.double().square().sum().item(), ess * hess[0, 0].double().item()
    want = (-curvature + math.sqrt(curvature**2 + 4 * 4 * curvature / square)) / 2
    assert best_prior_precision(mean, hess, ess=ess) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_the_root_is_the_maximum_for_any_scale_and_with_zeros_in_h(scale):
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(200, generator=generator) * 0.1
    hess = scale * torch.rand(200, generator=generator).pow(6)
    hess[::3] = 0
    best = best_prior_precision(mean, hess, ess=300.0)
    assert best is not None
    square = mean.double().square().sum().item()
    assert effective_parameters(hess, ess=300.0, prior_precision=best) == pytest.approx(
        best * square, rel=1e-9
    )

    def evidence(alpha):
        return log_evidence(mean, hess, mean_loss=0.0, ess=300.0, prior_precision=alpha)

    assert all(evidence(best) > evidence(best * factor) for factor in (0.01, 0.9, 1.1, 100))


def test_no_root_without_weights_or_curvature():
    some, none = torch.ones(3), torch.zeros(3)
    assert best_prior_precision(none, some, ess=10.0) is None
    assert best_prior_precision(some, none, ess=10.0) is None


def test_effective_parameters_go_from_all_to_none():
    hess = torch.tensor([1.0, 2.0])
    counts = [effective_parameters(hess, ess=10.0, prior_precision=p) for p in (1e-9, 10.0, 1e12)]
    assert counts == pytest.approx([2, 0.5 + 2 / 3, 0], abs=1e-6)
