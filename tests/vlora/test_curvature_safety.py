"""A curvature pass leaves the model as it was and refuses what it cannot measure, in one line."""

from contextlib import nullcontext

import pytest
import torch
from curvature_cases import split, tiny_llama, token_rows, with_adapter
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from vlora.curvature import collect_curvature
from vlora.errors import ConfigError, DataError, IncompatibleAdaptersError, TrainingError


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_model_is_left_exactly_as_it_was(trainable, fails):
    model, batch = with_adapter(tiny_llama()), token_rows([6, 8])
    model.train()
    model.base_model.model.model.layers[0].eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and "lora_" in name)
        if parameter.requires_grad and "layers.1" in name:
            parameter.grad = torch.full_like(parameter, 0.5)
    before = snapshot(model)
    batches = [batch, {"input_ids": batch["input_ids"]}] if fails else [batch]
    with pytest.raises(DataError, match="expected a 'labels' entry") if fails else nullcontext():
        collect_curvature(model, batches, progress=False)
    assert snapshot(model) == before


def snapshot(model):
    modules = [
        (n, m.training, len(m._forward_hooks), len(m._backward_hooks)) for n, m in model.named_modules()
    ]
    parameters = [
        (n, p.requires_grad, None if p.grad is None else p.grad.tolist(), p.data_ptr(), p.sum().item())
        for n, p in model.named_parameters()
    ]
    return modules, parameters


def test_progress_goes_to_stderr_only(capsys):
    collect_curvature(with_adapter(tiny_llama()), split(token_rows([6, 6, 6]), 2), max_examples=3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "curvature: 100%" in captured.err
    assert "3/3" in captured.err


def test_adapter_that_is_unknown_inactive_disabled_or_no_lora_is_refused():
    model, batch = with_adapter(tiny_llama()), token_rows([6])
    with pytest.raises(
        ConfigError, match=r"adapter 'other' is not active \(active: default; loaded: default\)"
    ):
        collect_curvature(model, [batch], adapter_name="other", progress=False)
    with model.disable_adapter(), pytest.raises(ConfigError, match="adapter 'default' is disabled"):
        collect_curvature(model, [batch], progress=False)
    ia3 = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(ConfigError, match="adapter 'default' has no LoRA layer"):
        collect_curvature(get_peft_model(tiny_llama(), ia3), [batch], progress=False)
    with pytest.raises(ConfigError, match="max_examples must be at least 1 or None for all rows, got 0"):
        collect_curvature(model, [batch], max_examples=0, progress=False)


def test_second_adapter_is_measured_with_its_own_modules():
    model, batch = with_adapter(tiny_llama()), token_rows([6])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["o_proj"]))
    model.set_adapter("other")
    got = collect_curvature(model, [batch], adapter_name="other", progress=False)
    assert {key.split(".")[-2] for key in got} == {"o_proj"}


def test_layers_that_are_not_linear_are_refused_by_name():
    model = with_adapter(tiny_llama(), ["embed_tokens", "q_proj"])
    with pytest.raises(
        IncompatibleAdaptersError, match=r"embed_tokens adapts a Embedding, expected a linear"
    ):
        collect_curvature(model, [token_rows([6])], progress=False)


def test_rows_that_cannot_be_told_apart_are_refused():
    class Flattening(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    base = tiny_llama()
    mlp = base.model.layers[1].mlp
    mlp.up_proj = Flattening(mlp.up_proj)
    model, batch = with_adapter(base, ["inner"]), token_rows([6, 6])
    with pytest.raises(
        DataError, match=r"up_proj\.inner sees 12 rows in a batch of 2: .* use batches of one row"
    ):
        collect_curvature(model, [batch], progress=False)
    got = collect_curvature(model, split(batch, 1), progress=False)
    plain = collect_curvature(with_adapter(tiny_llama(), ["up_proj"]), [batch], progress=False)
    assert len(got) == 2
    assert len(plain) == 4


def test_nothing_to_measure_and_broken_numbers():
    model, batch = with_adapter(tiny_llama()), token_rows([6, 6])
    with pytest.raises(DataError, match="expected rows with labels to measure curvature on, got none"):
        collect_curvature(model, [], progress=False)
    masked = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(DataError, match="expected rows with labels .* all may be -100"):
        collect_curvature(model, [masked], progress=False)
    with pytest.raises(
        DataError, match=r"expected a batch of tensors with at least one row, got keys \['text'\]"
    ):
        collect_curvature(model, [{"text": "hello"}], progress=False)
    base = tiny_llama()
    base.spare = nn.Linear(5, 3)
    with pytest.raises(DataError, match="the loss does not depend on any measured layer"):
        collect_curvature(with_adapter(base, ["spare"]), [batch], progress=False)
    model.base_model.model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan"):
        collect_curvature(model, [batch], progress=False)
