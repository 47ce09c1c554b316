"""Draws with the covariance of leading directions, against the dense matrix and the conventions of diagonal draws."""

from dataclasses import replace

import pytest
import torch

from vlora.errors import ConfigError
from vlora.posterior.adapters import export_draws
from vlora.posterior.calibration import under_prior
from vlora.posterior.leading import Leading
from vlora.stacked import Stack


def small() -> Leading:
    """Four directions of ten entries in two tensors."""
    generator = torch.Generator().manual_seed(0)
    rows = {
        "b": torch.randn(7, 3, 2, generator=generator),
        "a": 3 * torch.randn(7, 4, generator=generator),
    }
    return Leading.of([rows], 4)


def dense(leading: Leading) -> torch.Tensor:
    """The matrix as its definition has it, float64."""
    v, l = leading.vectors.double(), leading.values  # noqa: E741
    return v @ torch.diag(1 / l) @ v.T + (torch.eye(len(v), dtype=torch.float64) - v @ v.T) / l[-1]


def joined(values: dict[str, torch.Tensor], keys: tuple[str, ...]) -> torch.Tensor:
    return torch.cat([values[key].flatten() for key in keys]).double()


def root(leading: Leading) -> torch.Tensor:
    """The linear map of ``correlated``, column by column."""
    columns = []
    for unit in torch.eye(10):
        noise = {"a": unit[:4], "b": unit[4:].view(3, 2)}
        columns.append(joined(leading.correlated(noise), leading.keys))
    return torch.stack(columns, 1)


def test_the_map_is_the_symmetric_root_of_the_covariance():
    leading = small()
    found, sigma = root(leading), dense(leading)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(found @ found.T, sigma, rtol=1e-4, atol=1e-6)
    resting = leading.resting(25.0)
    torch.testing.assert_close(root(resting) @ root(resting).T, dense(resting), rtol=1e-4, atol=1e-6)


def test_it_is_the_draw_of_a_dense_cholesky_factor_with_the_same_noise_rotated():
    leading = small()
    lower, symmetric = torch.linalg.cholesky(dense(leading)), root(leading)
    rotation = torch.linalg.solve(lower, symmetric)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-4)
    noise = torch.randn(10, generator=torch.Generator().manual_seed(1))
    ours = joined(leading.correlated({"a": noise[:4], "b": noise[4:].view(3, 2)}), leading.keys)
    torch.testing.assert_close(lower @ (rotation @ noise.double()), ours, rtol=1e-5, atol=1e-6)


def test_by_hand_in_three_dimensions():
    """l = 9, 1: the first axis shrinks to a third, the others stay."""
    leading = Leading.of([{"a": torch.tensor([[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}], 2)
    found = leading.correlated({"a": torch.tensor([6.0, -2.0, 5.0])})["a"]
    torch.testing.assert_close(found, torch.tensor([2.0, -2.0, 5.0]))
    torch.testing.assert_close(
        leading.resting(4.0).correlated({"a": torch.tensor([6.0, -2.0, 5.0])})["a"], found / 2
    )


def gradients(posterior, count):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(count, *h.shape, generator=generator) for key, h in posterior.hess.items()}


@pytest.fixture
def directed(posterior):
    directions = Leading.of([gradients(posterior, 6)], 6)
    return replace(posterior, directions=directions).drawing("leading")


def flat(posterior, k, **settings):
    drawn = posterior.sample(k, **settings)
    return torch.cat([(drawn[key] - posterior.mean[key]).flatten() for key in posterior.directions.keys])


def test_draws_have_the_covariance_at_the_temperature_of_the_posterior(directed):
    """Along the directions T / l, across them T / l_k; the whole is what no entry by itself shows."""
    leading, temperature = directed.directions, 200 / 1e4
    draws = torch.stack([flat(directed, k) for k in range(1500)])
    assert (draws.mean(0).abs() < 5 * draws.std(0) / 1500**0.5).all()
    along = draws @ leading.vectors
    want = (temperature / leading.values).float()
    torch.testing.assert_close(along.var(0), want, rtol=0.15, atol=0)
    correlation = torch.corrcoef(along.T)
    assert (correlation - torch.eye(6)).abs().max() < 0.12
    rest = draws - along @ leading.vectors.T
    per_entry = rest.square().mean(0).sum() / (rest.shape[1] - 6)
    torch.testing.assert_close(per_entry, want[-1], rtol=0.01, atol=0)


def test_width_temperature_and_prior_scale_the_same_noise(directed):
    once = flat(directed, 3)
    torch.testing.assert_close(flat(directed.scaled(2.5), 3), 2.5 * once, rtol=1e-4, atol=1e-7)
    warm = flat(directed.at_temperature(1.0), 3)
    torch.testing.assert_close(warm, once / 0.02**0.5, rtol=1e-4, atol=1e-7)
    rest = float(directed.directions.values[-1])
    torch.testing.assert_close(
        flat(under_prior(directed, 7.0), 3), warm * (rest / 7.0) ** 0.5, rtol=1e-4, atol=1e-7
    )


def test_draws_are_numbered_mirrored_and_those_of_the_seed(directed):
    late = directed.sample(7)
    torch.manual_seed(123)
    directed.sample(0)
    assert all(torch.equal(late[key], value) for key, value in directed.sample(7).items())
    assert not any(
        torch.equal(late[key], value) for key, value in directed.drawing("independent").sample(7).items()
    )
    other = replace(directed, meta=replace(directed.meta, seed=1))
    assert not torch.equal(flat(other, 7), flat(directed, 7))
    one, mirrored = flat(directed, 4, antithetic=True), flat(directed, 5, antithetic=True)
    torch.testing.assert_close(one, -mirrored, rtol=0, atol=1e-6)
    torch.testing.assert_close(one, flat(directed, 2), rtol=0, atol=0)


def test_pruned_entries_stay_zero_and_fixed_tensors_the_mean(directed):
    key = directed.directions.keys[0]
    mean = {**directed.mean, key: directed.mean[key].clone()}
    mean[key][0] = 0.0
    pruned = replace(directed, mean=mean, meta=replace(directed.meta, fixed_zeros=[key]))
    assert (pruned.sample(0)[key][0] == 0).all() and (pruned.sample(0)[key][1] != mean[key][1]).all()


def test_every_place_that_draws_takes_them(directed, peft_model, tokens, tmp_path):
    """In a model, several at once, and as folders."""
    want = directed.sample(1, antithetic=True)
    out = export_draws(directed, tmp_path / "out", 2)
    from safetensors.torch import load_file

    stored = load_file(out / "draw-1/adapter_model.safetensors")
    assert all(torch.equal(stored[key], value) for key, value in want.items())
    with directed.sampled(peft_model, 1, antithetic=True), torch.no_grad():
        logits = peft_model(tokens).logits
    with Stack.of_draws(peft_model, directed, [None, 1], antithetic=True).active() as count, torch.no_grad():
        stacked = peft_model(tokens.repeat(count, 1)).logits
    torch.testing.assert_close(stacked[len(tokens) :], logits, rtol=0, atol=1e-5)


def test_what_has_no_such_draws_says_so(directed, posterior):
    with pytest.raises(
        ConfigError, match="has no leading directions .* measure them with vlora posterior or vlora"
    ):
        posterior.drawing("leading").sample(0)
    uneven = replace(directed, meta=replace(directed.meta, ess=dict.fromkeys(directed.hess, 10.0)))
    with pytest.raises(ConfigError, match="ess differs between tensors; set temperature: 1"):
        uneven.sample(0)
    assert len(uneven.at_temperature(1.0).sample(0)) == len(directed.mean)
    unknown = replace(directed, meta=replace(directed.meta, num_examples=0))
    with pytest.raises(ConfigError, match="records no num_examples"):
        unknown.sample(0)
    fewer = replace(directed, hess={key: h for key, h in directed.hess.items() if "lora_B" in key})
    with pytest.raises(ConfigError, match="are those of other tensors"):
        fewer.sample(0)
