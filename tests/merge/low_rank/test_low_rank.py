"""Factored algebra against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import gram, make_update, rand

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.curvature.positive import add_clamped, subtract_clamped
from vlora.merge.low_rank.algebra import (
    concatenate,
    cosine,
    inner_product,
    relative_distance,
    resolve_rank,
    truncate,
    truncate_in_metric,
)


def dense_truncation(matrix, rank, left=None, right=None):
    left = torch.eye(matrix.shape[0], dtype=matrix.dtype) if left is None else left
    right = torch.eye(matrix.shape[1], dtype=matrix.dtype) if right is None else right
    u, s, vh = torch.linalg.svd(left.mT @ matrix @ right, full_matrices=False)
    small = (u[:, :rank] * s[:rank]) @ vh[:rank]
    retained = (s[:rank].square().sum() / s.square().sum()).item()
    return torch.linalg.inv(left.mT) @ small @ torch.linalg.inv(right), retained


@settings(deadline=None, max_examples=30)
@given(m=st.integers(1, 9), n=st.integers(1, 9), big=st.integers(1, 12), rank=st.integers(1, 6))
def test_truncation_is_the_dense_svd_whatever_the_shapes(m, n, big, rank):
    b, a = rand(m, big, seed=1), rand(big, n, seed=2)
    new_b, new_a, retained = truncate(b, a, rank)
    expected, energy = dense_truncation(b @ a, rank)
    torch.testing.assert_close(new_b @ new_a, expected, rtol=1e-8, atol=1e-9)
    assert retained == pytest.approx(energy, abs=1e-12)
    assert new_b.shape[1] <= rank


def test_weighted_truncation_is_optimal_in_its_metric():
    b, a = rand(8, 6, seed=3), rand(6, 10, seed=4)
    left, right = torch.linalg.cholesky(gram(8, 5)), torch.linalg.cholesky(gram(10, 6))
    new_b, new_a, retained = truncate(b, a, 2, left, right)
    expected, energy = dense_truncation(b @ a, 2, left, right)
    torch.testing.assert_close(new_b @ new_a, expected, rtol=1e-8, atol=1e-8)
    assert retained == pytest.approx(energy, abs=1e-12)

    def weighted_error(x):
        return (left.mT @ (x - b @ a) @ right).square().sum().item()

    plain_b, plain_a, _ = truncate(b, a, 2)
    assert weighted_error(new_b @ new_a) < 0.9 * weighted_error(plain_b @ plain_a)


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(1, 9), n=st.integers(1, 9), big=st.integers(1, 12), rank=st.integers(1, 6),
    sides=st.sampled_from(["both", "left", "right", "none"]),
)  # fmt: skip
def test_truncation_from_the_metrics_is_that_from_their_roots(m, n, big, rank, sides):
    b, a = rand(m, big, seed=1), rand(big, n, seed=2)
    s = gram(m, 5) if sides in ("both", "left") else None
    g = gram(n, 6) if sides in ("both", "right") else None
    roots = [None if metric is None else torch.linalg.cholesky(metric) for metric in (s, g)]
    old_b, old_a, old_retained = truncate(b, a, rank, *roots)
    new_b, new_a, retained = truncate_in_metric(b, a, rank, s, g)
    torch.testing.assert_close(new_b @ new_a, old_b @ old_a, rtol=1e-7, atol=1e-8)
    assert retained == pytest.approx(old_retained, abs=1e-10)
    assert new_b.shape[1] == new_a.shape[0] <= rank


def test_a_zero_update_truncates_to_zero_without_loss():
    b, a, retained = truncate(torch.zeros(5, 4), torch.ones(4, 3), 2)
    assert retained == 1.0
    assert not (b @ a).any()


def test_concatenation_is_exact_and_carries_the_precision_of_the_sum_of_draws():
    first, second = make_update(1, r=2, scale=3.0), make_update(20, r=3, scale=0.5)
    merged = concatenate([first, second], [0.7, -2.0])
    torch.testing.assert_close(merged.delta(), 0.7 * first.delta() - 2.0 * second.delta())
    assert merged.rank == 5
    assert merged.scale == 1.0
    # Var(c B) = c^2 Var(B), A untouched
    torch.testing.assert_close(merged.precision_b[:, :2], first.precision_b / (0.7 * 3.0) ** 2)
    torch.testing.assert_close(merged.precision_b[:, 2:], second.precision_b / (2.0 * 0.5) ** 2)
    torch.testing.assert_close(merged.precision_a, torch.cat([first.precision_a, second.precision_a]))
    # one prior for all of B: the smaller one, so that no entry claims less data than it has
    assert merged.prior_b == pytest.approx(0.01 / (0.7 * 3.0) ** 2)
    assert merged.prior_a == first.prior_a


def test_draws_of_a_concatenation_have_the_variance_of_the_sum():
    first, second = make_update(2), make_update(30)
    merged = concatenate([first, second], [0.5, 1.5])

    def variance(
        u,
    ):  # exact variance of the product of independent entries, s^2 (V_B A^2 + B^2 V_A + V_B V_A)
        v_b, v_a = 1 / u.precision_b, 1 / u.precision_a
        return u.scale**2 * (v_b @ u.a**2 + u.b**2 @ v_a + v_b @ v_a)

    torch.testing.assert_close(variance(merged), 0.25 * variance(first) + 2.25 * variance(second))


def test_inner_products_and_distances_match_dense_ones():
    first, second, metric = make_update(3), make_update(40), gram(9, 7)
    dense = torch.trace(first.delta() @ metric @ second.delta().mT).item()
    assert inner_product(first, second, metric) == pytest.approx(dense)
    assert cosine(first, first) == pytest.approx(1.0)
    flat = torch.nn.functional.cosine_similarity(first.delta().flatten(), second.delta().flatten(), dim=0)
    assert cosine(first, second) == pytest.approx(flat.item())
    error = first.delta() - second.delta()
    expected = torch.trace(error @ metric @ error.mT) / torch.trace(
        second.delta() @ metric @ second.delta().mT
    )
    assert relative_distance(first, second, metric) == pytest.approx(expected.item())
    assert relative_distance(first, first) == pytest.approx(0.0, abs=1e-12)


def test_keep_refuses_different_ranks_and_names_them():
    updates = [make_update(1, r=2), make_update(2, r=4)]
    with pytest.raises(
        IncompatibleAdaptersError, match=r"'adapter1' has r=2 and 'adapter2' has r=4 on layers.0"
    ):
        resolve_rank(updates, "keep")
    assert resolve_rank(updates, "lossless") is None
    assert resolve_rank(updates, 3) == 3


def test_differences_of_precisions_are_exact_when_positive_and_clamped_when_not():
    matrix, clamped = subtract_clamped(gram(5, 1), 1e-3 * gram(5, 2))
    torch.testing.assert_close(matrix, gram(5, 1) - 1e-3 * gram(5, 2))
    assert clamped == 0.0
    matrix, clamped = subtract_clamped(gram(5, 1), 2 * gram(5, 1))
    torch.testing.assert_close(matrix, 0.05 * gram(5, 1))
    assert clamped == 1.0
    diagonal, clamped = add_clamped(torch.tensor([1.0, 1.0]), torch.tensor([-0.5, -3.0]))
    torch.testing.assert_close(diagonal, torch.tensor([0.5, 0.05]))
    assert clamped == 0.5


def test_subtraction_is_batched():
    stack = torch.stack([gram(3, 1), gram(3, 2)])
    matrix, _ = subtract_clamped(stack, torch.stack([0.1 * gram(3, 1), 0.2 * gram(3, 2)]))
    torch.testing.assert_close(matrix[1], 0.8 * gram(3, 2))
