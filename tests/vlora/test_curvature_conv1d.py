"""Curvature of ``Conv1D`` layers (GPT-2), which store W as (inputs, outputs): that of the same model with nn.Linear."""

import pytest
import torch
from conv1d_cases import with_linear_layers
from curvature_cases import (
    assert_same,
    literal_grams,
    split,
    tiny_gpt2,
    token_rows,
    with_adapter,
)

from vlora.curvature import collect_curvature, gathering, linear_layers, stream_bytes

TARGETS = ["attn.c_attn", "attn.c_proj", "c_fc"]
SIZES = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64)}


def adapted(base=None, **options):
    torch.manual_seed(3)
    conv1d = base is None
    base = tiny_gpt2() if conv1d else base
    return with_adapter(base, TARGETS, lora_dropout=0.0, fan_in_fan_out=conv1d, **options)


def test_equals_the_literal_computation_example_by_example():
    model, batch = adapted(), token_rows([7, 7, 7])
    got = collect_curvature(model, split(batch, 2), votes="equal", progress=False)
    assert_same(got, literal_grams(model, split(batch, 1), True), rtol=2e-5)
    assert len(got) == 2 * 2 * len(TARGETS)
    for name, (inputs, outputs) in SIZES.items():
        stem = f"base_model.model.transformer.h.1.{name}"
        assert got[f"{stem}.input_gram"].shape == (inputs, inputs)
        assert got[f"{stem}.output_gram"].shape == (outputs, outputs)
        assert f"{stem}.lora_A.default.weight" in dict(model.named_parameters())


def test_one_token_a_row_reproduces_exact_gradients_of_the_stored_weight():
    """dW = x gᵀ as stored, so G = Σ dW dWᵀ and S = Σ dWᵀ dW; the square layer shows the sides."""
    model, name = adapted(), "base_model.model.transformer.h.1.attn.c_proj"
    layer = model.get_submodule(name).base_layer.requires_grad_(True)
    batch = {"input_ids": torch.tensor([[4, 9], [17, 2], [30, 8]])}
    batch["labels"] = batch["input_ids"]  # the second token is predicted, from the first alone
    model.eval()
    input_gram, output_gram = torch.zeros(16, 16), torch.zeros(16, 16)
    for row in split(batch, 1):
        d_weight = torch.autograd.grad(model(**row).loss, layer.weight)[0]
        input_gram += d_weight @ d_weight.T
        output_gram += d_weight.T @ d_weight
    got = collect_curvature(model, [batch], normalise=False, progress=False)
    torch.testing.assert_close(got[f"{name}.input_gram"], input_gram, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(got[f"{name}.output_gram"], output_gram, rtol=1e-4, atol=1e-8)
    assert (input_gram / input_gram.trace() - output_gram / output_gram.trace()).abs().max() > 0.05


@pytest.mark.parametrize("votes", ["equal", "change"])
def test_is_that_of_the_same_model_with_linear_layers(votes):
    batch = token_rows([8, 5, 11])
    first, second = adapted(), adapted(with_linear_layers(tiny_gpt2()))
    second.load_state_dict(
        {k: v if _same(k, v, second) else v.mT for k, v in first.state_dict().items()}, strict=True
    )
    one, two = (
        collect_curvature(m, [batch], votes=votes, activations=True, progress=False) for m in (first, second)
    )
    assert_same(one, two, rtol=1e-4)
    streams = []
    for model in (first, second):
        with gathering(model, draws=None, votes=votes) as stream:
            model.eval()(**batch).loss.backward()
        streams.append(stream.result())
    assert_same(*streams, rtol=1e-4)
    assert stream_bytes(first) == stream_bytes(second)


def _same(key, value, model):
    """Whether a tensor of the GPT-2 stands as it is in its twin; A and B do, square ones included."""
    return not (key.endswith("weight") and value.ndim == 2 and ".c_" in key and "lora" not in key)


def test_whole_models():
    batch, pattern = token_rows([8, 6]), r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc)$"
    model = adapted().eval()
    want = collect_curvature(model, [batch], votes="equal", activations=True, progress=False)
    merged = model.merge_and_unload()
    got = collect_curvature(merged, [batch], activations=True, progress=False, layers=pattern)
    assert_same(got, {k.removeprefix("base_model.model."): v for k, v in want.items()}, rtol=1e-4)
    assert len(linear_layers(merged)) == 2 * 4  # not the output layer
    assert stream_bytes(merged, layers=pattern)[1] == sum(2 * 4 * (i * i + o * o) for i, o in SIZES.values())
