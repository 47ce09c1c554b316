"""The probe of a model measures what it says and leaves the model as it was."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlora.errors import TrainingError
from vlora.training.probe import probe_second_moments


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
    """E[b g^2] = E[x^2] Var(y) = 4 for the used tensor, whatever b is."""
    for rows in (1, 16):
        model = Regression()
        moments = probe_second_moments(model, batches(3000, rows), init_std=1e-6, seed=0, num_batches=3000)
        assert moments[model.weight] == pytest.approx(4.0, rel=0.06)
        assert moments[model.unused] == 0.0


def test_the_model_is_left_as_it_was():
    model = Regression().eval()
    with torch.no_grad():
        model.weight.fill_(0.3)
    address = model.weight.data_ptr()
    probe_second_moments(model, batches(2, 4), init_std=0.1, seed=0)
    assert model.weight.tolist() == [pytest.approx(0.3)] * 5
    assert model.weight.data_ptr() == address
    assert model.weight.grad is None and not model.training
    same = [probe_second_moments(model, batches(2, 4), init_std=0.1, seed=s)[model.weight] for s in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_a_gradient_that_is_not_a_number_is_named():
    model = Regression()
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="gradients at the start hold NaN"):
        probe_second_moments(model, batches(1, 4), init_std=0.1, seed=0)


def test_no_data_is_named():
    with pytest.raises(TrainingError, match="no batch of training data"):
        probe_second_moments(Regression(), [])
