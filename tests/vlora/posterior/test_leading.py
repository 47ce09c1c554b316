"""The leading directions of a Fisher matrix against the dense matrix."""

import numpy as np
import pytest
import torch

from vlora.errors import DataError, PosteriorFormatError
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


def test_one_projection_serves_several_scales():
    found, asked = Leading.of([gradients(7)], 4), {k: v[:, None] for k, v in gradients(5, seed=1).items()}
    same = [found, found.resting(5.0), found.resting(90.0)]
    all_at_once = found.covariances(asked, same)
    for one, other in zip(all_at_once, same, strict=True):
        assert torch.equal(one, other.covariance(asked))
    torch.testing.assert_close(all_at_once[1], all_at_once[0] * float(found.values[-1]) / 5.0)


def test_the_scale_can_be_that_of_what_is_left_out():
    found = Leading.of([gradients(7)], 4).resting(5.0)
    vectors, values = found.vectors.double(), Leading.of([gradients(7)], 4).values
    ratios = vectors @ torch.diag(values[-1] / values) @ vectors.T
    sigma = (ratios + torch.eye(10, dtype=torch.float64) - vectors @ vectors.T) / 5.0
    asked = {key: value[:, None] for key, value in gradients(6, seed=1).items()}
    want = flat(asked, 2) @ sigma @ flat(asked, 2).mT
    torch.testing.assert_close(found.covariance(asked), want, rtol=1e-5, atol=1e-6)
    assert found.values[-1] == pytest.approx(5.0)


def test_covariances_are_never_negative_where_nearly_everything_is_known():
    """Eigenvalues over nine decades: the small rest is not the difference of two large numbers."""
    rows = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(3)))[0][:6]
    scaled = rows * torch.logspace(4, -0.5, 6)[:, None]
    found = Leading.of([{"a": scaled}], 6)
    torch.testing.assert_close(found.values.sqrt(), torch.logspace(4, -0.5, 6).double(), rtol=1e-4, atol=0)
    variance = found.covariance({"a": 1e3 * rows[:, None]}).flatten()
    assert (variance > 0).all()
    want = 1e6 / torch.logspace(8, -1, 6).double()
    torch.testing.assert_close(variance, want, rtol=0, atol=1e-3 * float(want.max()))


def test_many_small_chunks_keep_what_lies_in_few_directions():
    """Forty rows of rank three through cuts at eight: nothing is lost."""
    mixing = torch.randn(40, 3, generator=torch.Generator().manual_seed(4))
    whole = {key: torch.tensordot(mixing, value, 1) for key, value in gradients(3).items()}
    chunks = [{key: value[i : i + 3] for key, value in whole.items()} for i in range(0, 40, 3)]
    found, dense = Leading.of(chunks, 4), flat(whole).T @ flat(whole)
    assert found.vectors.shape == (10, 3)
    matrix = found.vectors.double() @ torch.diag(found.values) @ found.vectors.double().T
    torch.testing.assert_close(matrix, dense, rtol=1e-4, atol=1e-5 * float(dense.abs().max()))


SHAPES = {"a": (4,), "b": (3, 2)}


def test_what_is_stored_is_what_is_read():
    found = Leading.of([gradients(5)], 3)
    stored = found.tensors(SHAPES)
    assert {key: tuple(value.shape) for key, value in stored.items() if key in SHAPES} == {
        "a": (3, 4),
        "b": (3, 3, 2),
    }
    again = Leading.from_tensors(stored, SHAPES, "here")
    assert again.keys == found.keys
    assert torch.equal(again.vectors, found.vectors) and torch.equal(again.values, found.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eigenvalues": None}, "here needs eigenvalues, positive numbers in falling order"),
        ({"eigenvalues": torch.tensor([1.0, 2.0, 3.0])}, "in falling order"),
        ({"eigenvalues": torch.tensor([2.0, 1.0, 0.0])}, "in falling order"),
        ({"eigenvalues": torch.tensor([float("nan"), 1.0, 1.0])}, "in falling order"),
        ({"eigenvalues": torch.tensor([])}, "in falling order"),
        ({"a": None}, "belongs to another adapter: it lacks a; delete it"),
        ({"c": torch.zeros(3, 2)}, "belongs to another adapter: the posterior has no h for c"),
        ({"a": torch.zeros(3, 5)}, r"a has shape \(3, 5\), expected \(3, 4\)"),
        ({"a": torch.full((3, 4), float("inf"))}, "directions that are not of length 1"),
        ({"a": torch.full((3, 4), float("nan"))}, "directions that are not of length 1"),
        ({"a": torch.zeros(3, 4)}, "directions that are not of length 1"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(changes, message):
    stored = {**Leading.of([gradients(5)], 3).tensors(SHAPES), **changes}
    with pytest.raises(PosteriorFormatError, match=message) as caught:
        Leading.from_tensors({k: v for k, v in stored.items() if v is not None}, SHAPES, "here")
    assert "\n" not in str(caught.value)


def test_other_shapes_cannot_be_stored():
    with pytest.raises(PosteriorFormatError, match="directions are those of 2 tensors with 10 entries"):
        Leading.of([gradients(5)], 3).tensors({"a": (5,), "b": (3, 2)})


@pytest.mark.parametrize("precision", [0.01, 1.0, 100.0])
def test_the_share_left_is_the_posterior_over_the_prior_variance(precision):
    seen, asked = gradients(6), gradients(12, seed=1)
    leading = Leading.of([seen], 6)
    outputs = {key: value.unflatten(0, (4, 3)) for key, value in asked.items()}  # 4 examples of 3 outputs
    fisher = flat(seen).T @ flat(seen)
    jacobian = flat(outputs, 2)
    jacobian = jacobian - jacobian.mean(1, keepdim=True)
    size = len(fisher)
    after = jacobian @ torch.linalg.inv(fisher + precision * torch.eye(size)) @ jacobian.mT
    before = jacobian @ jacobian.mT / precision
    expected = after.diagonal(dim1=1, dim2=2).sum(1) / before.diagonal(dim1=1, dim2=2).sum(1)
    found = leading.share_left(outputs, precision)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-5)
    assert ((found > 0) & (found < 1)).all()


def test_the_share_left_knows_no_length_and_no_shared_shift():
    leading = Leading.of([gradients(6)], 6)
    outputs = {key: value.unflatten(0, (4, 3)) for key, value in gradients(12, seed=1).items()}
    found = leading.share_left(outputs, 1.0)
    longer = leading.share_left({key: 7 * value for key, value in outputs.items()}, 1.0)
    shifted = leading.share_left({key: value + value[:, :1] for key, value in outputs.items()}, 1.0)
    torch.testing.assert_close(longer, found, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shifted, found, rtol=1e-5, atol=1e-6)


def test_the_share_left_is_one_where_the_data_say_nothing():
    leading = Leading(("w",), torch.eye(4, 2), torch.tensor([3.0, 1.0], dtype=torch.float64))
    inside, outside = (
        torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]),
        torch.tensor([[0, 0, 1.0, 2], [0, 0, 0, 0]]),
    )
    found = leading.share_left({"w": torch.stack([inside, outside, 0 * inside])}, 1.0)
    assert found.tolist() == pytest.approx([0.25, 1.0, 1.0])  # 1 / (3 + 1)


def test_the_share_left_leaves_out_outputs_that_an_example_lacks():
    leading = Leading.of([gradients(6)], 6)
    outputs = {key: value.unflatten(0, (4, 3)) for key, value in gradients(12, seed=1).items()}
    present = torch.tensor([[True, True, True], [True, True, False], [True, False, True], [True, True, True]])
    found = leading.share_left(outputs, 1.0, present)
    for row, there in enumerate(present):
        own = {key: value[row : row + 1, there] for key, value in outputs.items()}
        torch.testing.assert_close(found[row : row + 1], leading.share_left(own, 1.0), rtol=1e-5, atol=1e-6)


def test_the_precision_of_shares_goes_along_with_the_spectrum():
    seen = gradients(6)
    leading = Leading.of([seen], 6)
    fisher = flat(seen).T @ flat(seen)
    along = [float(g @ fisher @ g / (g @ g)) for g in flat(seen)]  # weighted by the squares of the gradients
    typical = np.average(along, weights=[float(g @ g) for g in flat(seen)])
    assert leading.share_precision == pytest.approx(typical / 20, rel=1e-5)
    outputs = {key: value.unflatten(0, (4, 3)) for key, value in gradients(12, seed=1).items()}
    found = leading.share_left(outputs)
    torch.testing.assert_close(found, leading.share_left(outputs, leading.share_precision))
    torch.testing.assert_close(leading.resting(123.0).share_left(outputs), found, rtol=1e-6, atol=1e-8)
