"""Correlated covariances: against dense Kronecker products written out, and against the diagonal they generalise."""

from dataclasses import replace

import pytest
import torch

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.grams import compress_grams
from vlora.posterior import PosteriorMeta
from vlora.posterior.kronecker import (
    Independent,
    Kronecker,
    covariances,
    has_factors,
    output_covariance,
    under_priors,
)

STEM = "base_model.model.layer"
A, B, HEAD = f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight", "base_model.model.head.bias"
ROWS, COLUMNS, RANK = 4, 5, 2


def gram(size, seed):
    half = torch.randn(size, size + 1, generator=torch.Generator().manual_seed(seed))
    return half @ half.T


@pytest.fixture
def posterior():
    generator = torch.Generator().manual_seed(0)
    mean = {
        A: torch.randn(RANK, COLUMNS, generator=generator),
        B: torch.randn(ROWS, RANK, generator=generator),
        HEAD: torch.randn(3, generator=generator),
    }
    hess = {key: torch.rand(value.shape, generator=generator) for key, value in mean.items()}
    config = {"r": RANK, "lora_alpha": 3 * RANK, "peft_type": "LORA"}
    curvature = {f"{STEM}.input_gram": gram(COLUMNS, 1), f"{STEM}.output_gram": gram(ROWS, 2)}
    meta = PosteriorMeta(num_examples=50, ess=20.0, weight_decay=0.3)
    return Posterior(mean, hess, meta, config, curvature)


def dense(posterior, key):
    """The covariance of one factor as a matrix over its entries, row by row."""
    g, s = (posterior.curvature[f"{STEM}.{side}_gram"].double() for side in ("input", "output"))
    a, b = posterior.mean[A].double(), posterior.mean[B].double()
    left, right = (9 * b.T @ s @ b, g) if key == A else (s, a @ g @ a.T)
    product = torch.kron(left, right)
    product *= posterior.hess[key].double().mean() / product.diagonal().mean()
    return torch.linalg.inv(20.0 * (product + 0.3 * torch.eye(len(product), dtype=torch.float64)))


@pytest.mark.parametrize("key", [A, B])
def test_the_covariance_is_the_inverse_of_the_damped_kronecker_product(posterior, key):
    spread = covariances(posterior)[key]
    size = posterior.mean[key].numel()
    basis = torch.eye(size).reshape(size, *posterior.mean[key].shape)
    rooted = (spread.rotate(basis) * spread.std).flatten(1).double()
    assert torch.allclose(rooted @ rooted.T, dense(posterior, key), rtol=1e-4, atol=1e-7)
    coloured = torch.stack([spread.colour(noise) for noise in basis]).flatten(1).double()
    assert torch.allclose(coloured.T @ coloured, dense(posterior, key), rtol=1e-4, atol=1e-7)


def test_isotropic_grams_give_one_width_per_factor(posterior):
    curvature = {f"{STEM}.input_gram": 7 * torch.eye(COLUMNS), f"{STEM}.output_gram": torch.eye(ROWS)}
    mean = {**posterior.mean, A: torch.eye(RANK, COLUMNS), B: torch.eye(ROWS, RANK)}
    spread = covariances(replace(posterior, mean=mean, curvature=curvature))
    for key in (A, B):
        width = (20.0 * (posterior.hess[key].mean() + 0.3)) ** -0.5
        assert torch.allclose(spread[key].std, width.expand_as(spread[key].std), rtol=1e-5)


def test_a_tensor_without_grams_and_kronecker_false_keep_the_diagonal(posterior):
    std = posterior.std()
    spread = covariances(posterior)
    assert isinstance(spread[HEAD], Independent) and torch.equal(spread[HEAD].std, std[HEAD])
    assert isinstance(spread[A], Kronecker)
    plain = covariances(posterior, kronecker=False)
    assert all(isinstance(p, Independent) and torch.equal(p.std, std[key]) for key, p in plain.items())


def test_a_pruned_tensor_keeps_its_zeros(posterior):
    mean = {**posterior.mean, B: posterior.mean[B].clone()}
    mean[B][1] = 0.0
    pruned = replace(posterior, mean=mean, meta=replace(posterior.meta, fixed_zeros=[A, B]))
    spread = covariances(pruned)
    assert isinstance(spread[A], Kronecker)  # nothing of it was pruned
    assert not spread[B].colour(torch.ones(ROWS, RANK))[1].any()


def test_grams_in_the_short_form_are_read(posterior):
    short = compress_grams(posterior.curvature, ROWS - 1)
    spread = covariances(replace(posterior, curvature=short))
    assert isinstance(spread[A], Kronecker) and spread[A].std.shape == (RANK, COLUMNS)


def test_output_covariance_is_j_sigma_j(posterior):
    generator = torch.Generator().manual_seed(3)
    gradients = {
        key: torch.randn(6, 2, *value.shape, generator=generator) for key, value in posterior.mean.items()
    }
    wide = replace(posterior, meta=replace(posterior.meta, ess=5.0))
    found, wider = output_covariance(gradients, [covariances(posterior), covariances(wide)])
    want = torch.zeros(6, 2, 2, dtype=torch.float64)
    for key in (A, B):
        jacobian = gradients[key].flatten(2).double()
        want += jacobian @ dense(posterior, key) @ jacobian.mT
    head = gradients[HEAD].double()
    want += head * posterior.std()[HEAD].double() ** 2 @ head.mT
    assert torch.allclose(found, want, rtol=1e-4)
    assert torch.allclose(wider, 4 * found, rtol=1e-6)


@pytest.mark.parametrize("kronecker", [False, True])
def test_covariances_under_several_priors_are_those_one_by_one(posterior, kronecker):
    mean = {**posterior.mean, B: posterior.mean[B].clone()}
    mean[B][1] = 0.0
    pruned = replace(posterior, mean=mean, meta=replace(posterior.meta, fixed_zeros=[B]))
    many = under_priors(pruned, (0.3, 4.0, 1e5), kronecker=kronecker)
    for precision, spread in zip((0.3, 4.0, 1e5), many, strict=True):
        one = covariances(pruned.with_prior(precision), kronecker=kronecker)
        assert list(spread) == list(one) and len(spread) == len(one)
        for key, own in one.items():
            assert type(spread[key]) is type(own)
            torch.testing.assert_close(spread[key].std, own.std, rtol=1e-6, atol=0)
    assert not many[2][B].std[1].any() and many[2][B].std[0].all()
    assert has_factors(posterior) and not has_factors(replace(posterior, curvature=None))
    partial = {f"{STEM}.input_gram": gram(COLUMNS, 1)}
    assert not has_factors(replace(posterior, curvature=partial))


def test_a_prior_is_a_precision_beside_what_the_data_know(posterior):
    noisy = {**posterior.hess, A: posterior.hess[A].clone()}
    noisy[A][0, 0] = -0.2  # an estimate of h may be; it counts as no evidence
    prior = replace(posterior, hess=noisy).at_temperature(1.0).with_prior(7.0)
    for key, precision in prior.precision().items():
        torch.testing.assert_close(precision, 50 * noisy[key].clamp_min(0) + 7.0)
    own = posterior.with_prior({A: 1.0, B: 2.0, HEAD: 3.0})
    assert own.meta.weight_decay == {A: 1 / 20, B: 2 / 20, HEAD: 3 / 20}
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="a prior precision must be > 0 and finite"):
            posterior.with_prior(wrong)


def test_correlated_entries_need_grams(posterior):
    with pytest.raises(ConfigError, match=r"need curvature.safetensors with the input_gram and output_gram"):
        covariances(replace(posterior, curvature=None))
