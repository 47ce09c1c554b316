"""Kernel language entropy: published anchor, limits in closed form, bad input."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.semantic.entropy import semantic_entropy
from vlora.eval.semantic.kernels import (
    entailment_weights,
    graph_kernel,
    kernel_language_entropy,
    similarity_weights,
    von_neumann_entropy,
)


def test_published_anchor():
    entail = np.array([[1, 0.9, 0.1], [0.8, 1, 0.2], [0.1, 0.1, 1]])
    contradict = np.array([[0, 0.05, 0.6], [0.05, 0, 0.5], [0.7, 0.6, 0]])
    weights = entailment_weights(np.stack([entail, 1 - entail - contradict, contradict], axis=2))
    assert kernel_language_entropy(weights, scaled=True) == pytest.approx(0.90198283, abs=1e-8)


def test_heat_kernel_is_the_series_of_the_exponential():
    weights = similarity_weights([[1, 0.7, 0.1], [0.7, 1, 0.3], [0.1, 0.3, 1]])
    laplacian = np.diag(weights.sum(axis=1)) - weights
    kernel, term = np.eye(3), np.eye(3)
    for n in range(1, 40):
        term = term @ (-0.3 * laplacian) / n
        kernel = kernel + term
    width = np.sqrt(np.diag(kernel))
    assert graph_kernel(weights) == pytest.approx(kernel / np.outer(width, width) / 3)


def test_matern_kernel_is_the_inverse_for_smoothness_one():
    weights = similarity_weights([[1, 0.7], [0.7, 1]])
    kernel = np.linalg.inv(np.eye(2) * 2 + np.diag(weights.sum(axis=1)) - weights)
    assert graph_kernel(weights, "matern") == pytest.approx(kernel / kernel[0, 0] / 2)


def test_limits():
    """Nothing alike: log M. Cliques joined for a long time: the discrete semantic entropy of the cliques."""
    assert kernel_language_entropy(np.zeros((4, 4))) == pytest.approx(np.log(4))
    clusters = np.array([0, 0, 0, 1, 2])
    same = (clusters[:, None] == clusters).astype(float)
    assert kernel_language_entropy(similarity_weights(same), time=50) == pytest.approx(
        semantic_entropy(clusters)
    )
    assert kernel_language_entropy(np.zeros((1, 1)), scaled=True) == 0.0


def test_the_order_of_the_answers_does_not_matter():
    rng = np.random.default_rng(0)
    similarity = rng.random((6, 6))
    similarity = (similarity + similarity.T) / 2
    order = rng.permutation(6)
    assert kernel_language_entropy(similarity_weights(similarity)) == pytest.approx(
        kernel_language_entropy(similarity_weights(similarity[np.ix_(order, order)]))
    )


def test_bad_input():
    with pytest.raises(DataError, match="trace 1, got trace 2"):
        von_neumann_entropy(np.eye(2))
    with pytest.raises(DataError, match="symmetric square"):
        graph_kernel([[0, 1], [0, 0]])
    with pytest.raises(DataError, match="parameters > 0"):
        graph_kernel(np.zeros((2, 2)), time=0)
    with pytest.raises(DataError, match=r"lie in \[0, 1\]"):
        similarity_weights([[1, 2], [2, 1]])
