"""Draws in a coarse number format: spacing, stochastic rounding, an unbiased estimate of h, and the warning."""

import warnings

import pytest
import torch

from vlora import IVON
from vlora.ivon.rounding import rounding_correction, spacing, stochastic_round

COARSE = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", COARSE)
def test_spacing_is_the_distance_to_the_next_number(dtype):
    values = torch.tensor([1.0, 1.99, 2.0, -3.0, 1e-3, 0.02, 777.0]).to(dtype)
    bits = values.abs().view(torch.int16)
    neighbour = (bits + 1).view(dtype).float()
    assert torch.equal(spacing(values.float(), dtype), neighbour - values.abs().float())
    assert (spacing(torch.zeros(3), dtype) > 0).all()


@pytest.mark.parametrize("dtype", COARSE)
def test_stochastic_rounding_is_unbiased_and_goes_to_a_neighbour(dtype):
    values = torch.tensor([1.001, -0.3337, 12.3456, 2.5e-4, 1.0, 0.0, 60000.0])
    grid = spacing(values, dtype)
    draws = torch.stack([stochastic_round(values, dtype, seed).float() for seed in range(4000)])
    assert ((draws - values).abs() < grid).all()
    assert ((draws.mean(0) - values).abs() < 0.03 * grid).all()  # standard error at most 0.008
    assert (draws[:, 4] == 1).all() and (draws[:, 5] == 0).all()
    assert torch.equal(stochastic_round(values, dtype, 7), stochastic_round(values, dtype, 7))


def test_largest_number_of_the_format_does_not_round_to_infinity():
    values = torch.full((100,), 65500.0)
    assert stochastic_round(values, torch.float16, 0).isfinite().all()


def drawn_estimate(dtype, ratio, stochastic, draws=24, size=30_000):
    """Mean of Price's f over entries and draws on a quadratic of Hessian 3; std is ``ratio`` bfloat16 spacings."""
    torch.manual_seed(0)
    param = torch.nn.Parameter((1 + 0.9 * torch.rand(size)).to(dtype))
    precision = (ratio * 2.0**-7) ** -2
    optimizer = IVON(
        [param], lr=0.0, ess=precision / 3.0, hess_init=3.0, weight_decay=0.0, beta2=1 - 1e-5,
        stochastic_rounding=stochastic,
    )  # fmt: skip
    optimizer.train()
    mean = optimizer.state[param]["mean"]
    mean.add_(torch.rand(size) * 2.0**-8)  # the exact mean is not on the grid of the format
    param.data.copy_(mean)
    optimizer.eval()
    centre = mean - ratio * 2.0**-7
    for _ in range(draws):
        optimizer.zero_grad()
        optimizer.train()
        param.grad = (3.0 * (param.detach().float() - centre)).to(dtype)
        optimizer.step()
    found = optimizer.state[param]["hess"].double().mean().item()
    return 3.0 + (found - 3.0) / (draws * 1e-5)


@pytest.mark.filterwarnings("ignore:bfloat16 swallows")
@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("stochastic", [False, True])
def test_estimate_of_h_from_rounded_draws_is_unbiased(ratio, stochastic):
    """Without the correction the factor is 1.33 or 1.67 at half a spacing, 1.08 or 1.17 at one."""
    assert drawn_estimate(torch.bfloat16, ratio, stochastic) == pytest.approx(3.0, rel=0.02)


def test_correction_in_closed_form():
    mean, hess = torch.tensor([1.5, 0.0]), torch.tensor([2.0, 2.0])
    for stochastic, share in ((True, 6), (False, 12)):
        factor = rounding_correction(
            mean, hess, torch.bfloat16, ess=100.0, weight_decay=0.5, stochastic=stochastic
        )
        variance = 1 / (100.0 * 2.5)
        assert factor[0].item() == pytest.approx(variance / (variance + 2.0**-14 / share))
        assert factor[1].item() == 1.0  # around zero a float format has no grid to speak of


def first_draws(dtype, ess, stochastic=False, steps=1):
    param = torch.nn.Parameter(torch.linspace(1, 2, 4000).to(dtype))
    optimizer = IVON([param], lr=0.0, ess=ess, stochastic_rounding=stochastic)
    held = []
    for _ in range(steps):
        optimizer.train()
        held.append(param.detach().float() - optimizer.state[param]["mean"])
        param.grad = torch.zeros_like(param)
        optimizer.step()
    return torch.stack(held)


class TestSwallowedNoise:
    def test_a_format_that_swallows_the_noise_warns_once(self):
        with pytest.warns(UserWarning, match=r"bfloat16 swallows .* (9\d|100)% of the entries") as caught:
            noise = first_draws(torch.bfloat16, ess=1e6, steps=9)
        assert len(caught) == 1
        assert (noise == 0).float().mean() > 0.9

    def test_stochastic_rounding_is_the_cure_at_half_a_spacing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            noise = first_draws(torch.bfloat16, ess=(0.5 * 2.0**-7) ** -2, stochastic=True, steps=60)
        assert noise.mean().abs() < 1e-4
        std = 2.0**-7 * (0.25 + 1 / 6) ** 0.5
        assert noise.std().item() == pytest.approx(std, rel=0.05)

    def test_rounding_noise_above_the_posterior_warns_too(self):
        with pytest.warns(UserWarning, match=r"wider than the posterior: .* for 100% of the entries"):
            first_draws(torch.bfloat16, ess=1e6, stochastic=True)

    @pytest.mark.parametrize(
        ("dtype", "ess"), [(torch.bfloat16, 1e3), (torch.float32, 1e10), (torch.float16, 1e6)]
    )
    def test_silent_where_the_format_is_fine_enough(self, dtype, ess):
        first_draws(dtype, ess)

    def test_a_posterior_that_becomes_too_narrow_is_noticed_later(self):
        param = torch.nn.Parameter(torch.linspace(1, 2, 1000).bfloat16())
        optimizer = IVON([param], lr=0.0, ess=1e3)
        optimizer.train()
        optimizer.eval()
        optimizer.param_groups[0]["ess"] = 1e7
        with pytest.warns(UserWarning, match="swallows"):
            for _ in range(3):
                optimizer.train()
                param.grad = torch.zeros_like(param)
                optimizer.step()


class TestControlledWidth:
    """Under ``noise_cost`` draws start next to the mean: nothing is said before they had time to widen."""

    def run(self, steps, **settings):
        param = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = IVON.auto([param], num_steps=16, grad_batch_size=8, lr=1e-3, **settings)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            optimizer.train()
            param.grad = 1e-3 * torch.randn(2000, generator=generator).bfloat16()
            optimizer.step()
        return optimizer.param_groups[0]["std"]

    def test_the_first_draws_may_be_swallowed(self):
        assert self.run(8) < 0.4 * 2.0**-7

    @pytest.mark.parametrize(
        ("stochastic", "message"),
        [
            (
                False,
                r"9\d% of the entries of this draw .* float32, raise init_std and max_std, or pass stochastic",
            ),
            (
                True,
                r"wider than the posterior: .* keep the adapter in float32, or raise init_std and max_std",
            ),
        ],
    )
    def test_a_width_that_stays_too_small_is_named_with_its_limits(self, stochastic, message):
        with pytest.warns(UserWarning, match=message) as caught:
            self.run(16, max_std=5e-4, stochastic_rounding=stochastic)
        assert len(caught) == 1

    def test_the_cure_that_is_named_cures(self):
        assert self.run(16, init_std=0.02, noise_cost=10.0) > 2.0**-7

    def test_without_warm_up_the_first_32_draws_are_let_pass(self):
        self.run(32, noise_warmup=0, max_std=5e-4)
        with pytest.warns(UserWarning, match="swallows"):
            self.run(33, noise_warmup=0, max_std=5e-4)


def test_stochastic_rounding_leaves_float32_parameters_alone():
    assert torch.equal(first_draws(torch.float32, 1e3, True), first_draws(torch.float32, 1e3, False))
