"""The probe measures what it says, leaves the model as it was, and IVON's settings follow from it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlora import IVON
from vlora.errors import ConfigError, TrainingError
from vlora.ivon.defaults import probed_defaults
from vlora.training.probe import probe_second_moment


class Regression(nn.Module):
    """Squared error of a linear map, returned as Hugging Face models return a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5))
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, inputs, labels):
        return SimpleNamespace(loss=0.5 * (inputs @ self.weight - labels).square().mean())


def batches(count: int, rows: int):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield {
            "inputs": torch.randn(rows, 5, generator=generator),
            "labels": 2 * torch.randn(rows, generator=generator),
        }


def test_second_moment_of_pure_noise_targets_does_not_depend_on_the_batch_size():
    """E[b g^2] = E[x^2] Var(y) = 4 for the five used of eight entries, whatever b is."""
    for rows in (1, 16):
        model = Regression()
        moment = probe_second_moment(model, batches(3000, rows), init_std=1e-6, seed=0, num_batches=3000)
        assert moment == pytest.approx(4 * 5 / 8, rel=0.06)


def test_the_model_is_left_as_it_was():
    model = Regression().eval()
    with torch.no_grad():
        model.weight.fill_(0.3)
    address = model.weight.data_ptr()
    probe_second_moment(model, batches(2, 4), init_std=0.1, seed=0)
    assert model.weight.tolist() == [pytest.approx(0.3)] * 5
    assert model.weight.data_ptr() == address
    assert model.weight.grad is None and not model.training
    same = [probe_second_moment(model, batches(2, 4), init_std=0.1, seed=s) for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_a_gradient_that_is_not_a_number_is_named():
    model = Regression()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="gradients at the start hold NaN"):
        probe_second_moment(model, batches(1, 4), init_std=0.1, seed=0)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_settings_in_parameter_units_do_not_depend_on_the_scale_of_the_loss(scale):
    """Loss times c means gradients times c and h times c^2; width and largest step of a run stay as they are."""
    settings = probed_defaults(200, second_moment=3e-3 * scale**2, grad_batch_size=16)
    assert settings.init_std == pytest.approx(0.02)
    assert settings.max_std == pytest.approx(0.02 * 3**0.5)
    assert settings.max_step == pytest.approx(2e-3)
    typical = 0.25 * (3e-3 * scale**2 / 16) ** 0.5
    move = settings.lr * (settings.hess_init + settings.weight_decay)
    assert move * typical / (settings.hess_init + settings.weight_decay) == pytest.approx(2e-3)


def test_the_optimizer_gets_the_estimate_that_the_settings_are_for():
    arguments = probed_defaults(200, second_moment=1e-3, grad_batch_size=16).optimizer_kwargs()
    optimizer = IVON([nn.Parameter(torch.zeros(3))], **arguments)
    assert optimizer.defaults["hess_approx"] == "gradsq"
    assert optimizer.defaults["grad_batch_size"] == 16


def test_given_values_win_and_bad_ones_are_refused():
    settings = probed_defaults(200, second_moment=1e-3, grad_batch_size=8, lr=3.0, ess=1e5, beta2=0.9)
    assert (settings.lr, settings.ess, settings.beta2) == (3.0, 1e5, 0.9)
    with pytest.raises(ConfigError, match="is any parameter connected to the loss"):
        probed_defaults(200, second_moment=0.0, grad_batch_size=8)
    with pytest.raises(ConfigError, match="max_std_ratio must be > 1"):
        probed_defaults(200, second_moment=1.0, grad_batch_size=8, max_std_ratio=1.0)
