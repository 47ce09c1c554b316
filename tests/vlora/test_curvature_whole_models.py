"""Curvature of models without an adapter: the same as that of an adapter merged into them, while and after training."""

import pytest
import torch
from curvature_cases import PROJECTIONS, assert_same, split, tiny_llama, token_rows, with_adapter
from torch import nn

from vlora.curvature import collect_curvature, gathering, linear_layers, stream_bytes
from vlora.errors import ConfigError, IncompatibleAdaptersError

PATTERN = rf"\.({'|'.join(PROJECTIONS)})$"


def renamed(curvature):
    return {key.removeprefix("base_model.model."): value for key, value in curvature.items()}


def test_a_merged_adapter_has_the_curvature_that_the_adapter_had():
    batch = token_rows([8, 5, 11])
    adapted = with_adapter(tiny_llama()).eval()
    want = renamed(collect_curvature(adapted, [batch], votes="equal", activations=True, progress=False))
    model = adapted.merge_and_unload()
    got = collect_curvature(model, split(batch, 2), activations=True, progress=False, layers=PATTERN)
    assert len(got) == 3 * 2 * len(PROJECTIONS)
    assert_same(got, want, rtol=1e-4)
    assert all(p.requires_grad is not None and p.grad is None for p in model.parameters())


def test_all_linear_layers_but_the_output_layer_are_the_default():
    model = tiny_llama()
    names = set(linear_layers(model))
    assert len(names) == 2 * 7 and "lm_head" not in names
    assert set(linear_layers(model, "lm_head")) == {"lm_head"}
    got = collect_curvature(model, [token_rows([6])], progress=False)
    assert {key.rpartition(".")[0] for key in got} == names
    live, stored = stream_bytes(model, layers=PATTERN)
    sizes = [(layer.in_features, layer.out_features) for layer in linear_layers(model, PATTERN).values()]
    assert stored == sum(4 * (a * a + b * b) for a, b in sizes) and live > stored


def test_gathering_while_a_whole_model_trains_changes_nothing_and_sees_every_step():
    batch = token_rows([8, 8, 8])
    plain, watched = tiny_llama(), tiny_llama()
    want = collect_curvature(tiny_llama(), [batch], progress=False, layers=PATTERN)

    def step(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**batch).loss.backward()
        optimizer.step()

    step(plain)
    with gathering(watched, draws=None, layers=PATTERN, votes="equal") as stream:
        step(watched)
    assert_same(stream.result(), want, rtol=1e-4)
    for one, two in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, two)


def test_what_cannot_be_measured_is_one_line():
    model, batch = tiny_llama(), [token_rows([6])]
    for pattern, message in (
        ("no_such", "matches none of 15 linear layers"),
        ("(", "not a regular expression"),
    ):
        with pytest.raises(ConfigError, match=message):
            collect_curvature(model, batch, progress=False, layers=pattern)
    model.odd = nn.Bilinear(3, 3, 1)
    model.odd.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(IncompatibleAdaptersError, match="matches odd, a Bilinear, expected a linear layer"):
        linear_layers(model, "odd")
    with pytest.raises(ConfigError, match="Embedding has no linear layer besides its output layer"):
        linear_layers(nn.Embedding(3, 4))
    with pytest.raises(ConfigError, match="layers is for models without an adapter"):
        collect_curvature(with_adapter(tiny_llama()), batch, progress=False, layers="q_proj")
