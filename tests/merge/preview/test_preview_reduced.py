"""The reduced model of gradient matching against the solutions that it stands for."""

import pytest
import torch
from matching_oracle import losses, matched
from merge_cases import gram, make_update

from vlora.merge.preview.matching import MatchingCore, matching_core
from vlora.merge.preview.reduced import Nodes, make_nodes, reduced_core

TAU = 0.3


def core_of(count: int, inputs: int = 40) -> MatchingCore:
    updates = [make_update(20 * seed, 12, inputs, 3) for seed in range(1, count + 1)]
    for seed, update in enumerate(updates):
        object.__setattr__(update, "input_gram", gram(inputs, seed))
    return matching_core(updates, list(range(count)), [True] * count, TAU)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_it_is_exact_where_it_was_solved_and_close_elsewhere(count):
    core, nodes = core_of(count), make_nodes(count, 1.5)
    reduced = reduced_core(core, nodes)
    solved = torch.cat([nodes.split, nodes.whole])
    torch.testing.assert_close(reduced.losses(solved, 0.9), losses(core, solved, 0.9), rtol=1e-4, atol=1e-5)
    other = 1.5 * torch.rand(200, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    worth = losses(core, torch.zeros(1, count, dtype=torch.float64), 1.0)
    gap = (reduced.losses(other, 0.9) - losses(core, other, 0.9)).abs() / worth
    assert gap.max() < (5e-3 if count < 4 else 2e-2) and gap.median() < 1e-3
    torch.testing.assert_close(reduced.alone, worth[0])


def test_negative_weights_and_what_the_merge_minimises():
    core = core_of(2)
    reduced = reduced_core(core, make_nodes(2, 1.5))
    weights = torch.tensor([[-0.8, 1.1], [0.4, -0.2], [-0.0, 1.0]], dtype=torch.float64)
    worth = losses(core, torch.zeros(1, 2, dtype=torch.float64), 1.0).max()
    torch.testing.assert_close(
        reduced.losses(weights, 1.0), losses(core, weights, 1.0), rtol=0, atol=2e-3 * worth.item()
    )
    own, prior = reduced.matched(weights)
    expected, expected_prior = matched(core, weights)
    size = expected.max().item()
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-3 * size)
    torch.testing.assert_close(prior, expected_prior, rtol=0, atol=1e-3 * size)


def test_nodes_hold_every_adapter_alone_and_fit_the_adapters_that_a_module_has():
    nodes = make_nodes(3, 2.0, [[0.0, -1.0, 1.0]])
    assert len(nodes.split) == 7 and nodes.split.max() == 2.0 and nodes.whole.min() == 0.0
    rows = nodes.whole.tolist()
    assert all(torch.eye(3).tolist()[t] in rows for t in range(3))
    assert [1.0, 1.0, 1.0] in rows and [0.0, 1.0, 1.0] in rows
    five, six = make_nodes(5, 1.5), make_nodes(6, 1.5)
    assert len(five.split) == len(six.split) == 2
    assert [1.5, 0.0, 1.5, 0.0, 0.0] in five.whole.tolist()
    assert [1.5, 1.5, 0.0, 1.5, 1.5, 1.5] in six.whole.tolist()
    pair = Nodes(nodes.split, nodes.whole).of([0, 2])
    assert sorted(pair.split.tolist()) == [[0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]
    assert pair.whole.any(1).all() and len(pair.whole.unique(dim=0)) == len(pair.whole)


def test_many_weightings_are_the_single_ones():
    reduced = reduced_core(core_of(2), make_nodes(2, 1.5))
    weights = torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(reduced.losses(weights, 1.0)[299], reduced.losses(weights[299:], 1.0)[0])
