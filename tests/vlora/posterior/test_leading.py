"""The leading directions of a Fisher matrix against the dense matrix."""

import pytest
import torch

from vlora.errors import DataError
from vlora.posterior.leading import Leading


def gradients(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"b": torch.randn(rows, 3, 2, generator=generator), "a": torch.randn(rows, 4, generator=generator)}


def flat(values: dict[str, torch.Tensor], first: int = 1) -> torch.Tensor:
    return torch.cat([values["a"].flatten(first), values["b"].flatten(first)], -1).double()


def test_the_covariance_is_the_inverse_with_an_isotropic_rest():
    rows = flat(gradients(7))
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    values, vectors = values.flip(0)[:4], vectors.flip(1)[:, :4]
    sigma = vectors @ torch.diag(1 / values) @ vectors.T + (torch.eye(10) - vectors @ vectors.T) / values[-1]
    found = Leading.of([gradients(7)], 4)
    torch.testing.assert_close(found.values, values, rtol=1e-5, atol=0)
    asked = {key: value.unflatten(0, (2, 3)) for key, value in gradients(6, seed=1).items()}
    want = flat(asked, 2) @ sigma @ flat(asked, 2).mT
    torch.testing.assert_close(found.covariance(asked), want, rtol=1e-4, atol=1e-5)


def test_chunks_give_what_one_piece_gives_where_nothing_is_cut():
    whole = gradients(6)
    parts = [
        {key: value[part] for key, value in whole.items()} for part in (slice(0, 2), slice(2, 5), slice(5, 6))
    ]
    one, many = Leading.of([whole], 6), Leading.of(parts, 6)
    torch.testing.assert_close(one.values, many.values, rtol=1e-5, atol=0)
    projector = [found.vectors @ found.vectors.T for found in (one, many)]
    torch.testing.assert_close(*projector, rtol=0, atol=1e-5)


def test_vectors_are_orthonormal_and_no_more_than_there_are_gradients():
    found = Leading.of([gradients(3)], 8)
    assert found.vectors.shape == (10, 3)
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(3), rtol=0, atol=1e-5)


def test_a_direction_of_the_data_is_surer_than_any_other():
    found = Leading.of([{"a": torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}], 2)
    asked = {"a": torch.eye(3)[:, None]}
    torch.testing.assert_close(found.covariance(asked).flatten(), torch.tensor([1 / 9, 1.0, 1.0]).double())


@pytest.mark.parametrize("chunks", [[], [{"a": torch.zeros(2, 3)}]])
def test_nothing_to_measure_is_refused(chunks):
    with pytest.raises(DataError, match="not all zero"):
        Leading.of(chunks, 4)
