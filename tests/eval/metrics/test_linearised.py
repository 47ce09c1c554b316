"""Softmax of Gaussian logits against quadrature, closed forms and limits."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.linearised import logit_variance, softmax_mean, softmax_moments


def _quadrature(gap: float, sd: float) -> tuple[float, float]:
    """E[sigmoid(z)] and E[H(sigmoid(z))] for z ~ N(gap, sd^2), by Gauss-Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    p = 1 / (1 + np.exp(-(gap + sd * nodes)))
    weights = weights / weights.sum()
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    return float(weights @ p), float(weights @ entropy)


@pytest.mark.parametrize(("gap", "sd"), [(0.0, 1.0), (1.0, 0.3), (2.0, 1.5), (-3.0, 2.0)])
def test_two_classes_equal_quadrature(gap, sd):
    # only the variance of the difference counts: var(z0) + var(z1) - 2 cov
    covariance = sd**2 * np.array([[0.8, 0.1], [0.1, 0.4]])
    got = softmax_moments([[gap, 0.0]], covariance[None], num_pairs=8_000)
    probability, entropy = _quadrature(gap, sd)
    assert np.exp(got.log_probs[0, 0]) == pytest.approx(probability, abs=4e-3)
    assert got.expected_entropy[0] == pytest.approx(entropy, abs=4e-3)
    mixture = -(probability * np.log(probability) + (1 - probability) * np.log1p(-probability))
    assert got.mutual_information[0] == pytest.approx(mixture - entropy, abs=4e-3)
    probit = 1 / (1 + np.exp(-gap / np.sqrt(1 + np.pi / 8 * sd**2)))  # MacKay 1992
    assert np.exp(got.log_probs[0, 0]) == pytest.approx(probit, abs=0.02)


def test_no_variance_is_the_softmax_and_a_common_shift_changes_nothing():
    mean = np.log([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0 + 1e-300]])
    mean[1, 2] = -np.inf
    got = softmax_moments(mean, np.zeros((2, 3, 3)))
    np.testing.assert_allclose(np.exp(got.log_probs), np.exp(mean), atol=1e-12)
    np.testing.assert_array_equal(softmax_mean(mean, np.zeros((2, 3, 3))), got.log_probs)
    np.testing.assert_allclose(got.mutual_information, 0, atol=1e-12)
    common = np.ones((2, 3, 3)) * 4.0  # all logits move together
    common[1, 2] = common[1, :, 2] = 0
    shifted = softmax_moments(mean + 3.0, common)
    np.testing.assert_allclose(np.exp(shifted.log_probs), np.exp(mean), atol=1e-6)


def test_variance_of_the_logits_is_that_of_what_choices_differ_by():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    covariance, shift = root @ root.T, 7.0
    # mean over all pairs of var(z_i - z_j) / 2
    pairs = [covariance[i, i] + covariance[j, j] - 2 * covariance[i, j] for i in range(3) for j in range(i)]
    padded = np.zeros((2, 4, 4))
    padded[:, :3, :3] = covariance
    padded[1, :3, :3] += shift
    got = logit_variance(padded, [[True, True, True, False]] * 2)
    assert got == pytest.approx([np.mean(pairs) / 2] * 2, rel=1e-12)


def test_the_default_number_of_draws_is_enough():
    """Against many more: probabilities within 0.01 and mutual information within 5 % where it is large."""
    rng = np.random.default_rng(3)
    mean, roots = rng.normal(size=(40, 4)), rng.normal(size=(40, 4, 4)) * 0.7
    covariance = roots @ roots.transpose(0, 2, 1)
    got, reference = (
        softmax_moments(mean, covariance),
        softmax_moments(mean, covariance, num_pairs=6_000, seed=1),
    )
    assert np.abs(np.exp(got.log_probs) - np.exp(reference.log_probs)).max() < 0.02
    np.testing.assert_allclose(got.mutual_information, reference.mutual_information, rtol=0.1, atol=0.01)


def test_bad_input_is_refused():
    with pytest.raises(
        DataError, match=r"expected logits \(N, K\) and covariances \(N, K, K\), got \(1, 2\), \(2, 2\)"
    ):
        softmax_moments([[0.0, 1.0]], np.eye(2))
    with pytest.raises(DataError, match="a covariance of logits must not have negative eigenvalues, got -2"):
        softmax_moments([[0.0, 1.0]], np.diag([1.0, -2.0])[None])
