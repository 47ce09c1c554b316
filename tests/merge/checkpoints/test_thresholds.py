"""The exact k-th largest magnitude, found without the whole tensor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlora.merge.checkpoints.thresholds import KEEP_ALL, KthLargest, lowest_kept, shrink
from vlora.merge.methods.sparsify import keep_largest

KINDS = {
    "normal": lambda g, n: torch.randn(n, generator=g),
    "heavy": lambda g, n: torch.randn(n, generator=g) ** 7,
    "few values": lambda g, n: torch.randint(-3, 4, (n,), generator=g).float() / 8,
    "mostly zero": lambda g, n: torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.05),
    "zero": lambda g, n: torch.zeros(n),
    "tiny": lambda g, n: torch.randn(n, generator=g) * 1e-40,
    "grid of bf16": lambda g, n: torch.randn(n, generator=g).bfloat16().float(),
    "sorted": lambda g, n: torch.randn(n, generator=g).sort().values,
}


def search(values, density, sample, pieces=7):
    count = max(1, int(density * values.numel()))
    found, passes = KthLargest(count, values.numel(), sample), 0
    while not found.settled:
        for piece in values.abs().chunk(pieces):
            found.add(piece)
        found.end_pass()
        passes += 1
        assert passes < 20
    return found, passes


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    size=st.integers(2, 5000),
    density=st.floats(0.001, 0.999),
    seed=st.integers(0, 99),
    sampled=st.integers(1, 400),
)
def test_equal_to_the_pure_trim(kind, size, density, seed, sampled):
    values = KINDS[kind](torch.Generator().manual_seed(seed), size)
    found, _ = search(values, density, values[:sampled])  # of sorted values, a sample that misleads
    assert torch.equal(shrink(values.clone(), lowest_kept(found)), keep_largest(values, density))


def test_one_pass_is_enough_with_a_fair_sample():
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    found, passes = search(values, 0.2, values[:20_000])
    assert passes == 1
    assert found.bits == values.abs().kthvalue(200_000 - 40_000 + 1).values.view(torch.int32).item()


def test_a_sample_of_everything_needs_no_pass():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert search(values, 0.3, values)[1] == 0


def test_keeping_all_keeps_zeros_and_signs():
    values = torch.tensor([0.0, -1.0, 2.0])
    assert torch.equal(shrink(values.clone(), KEEP_ALL), values)


@pytest.mark.parametrize("value", [1.0, 1e-45, 3e38])
def test_the_smallest_that_is_kept_stays(value):
    values = torch.tensor([0.0, value, -value])
    found, _ = search(values, 2 / 3, values[:1], pieces=2)
    assert torch.equal(shrink(values.clone(), lowest_kept(found)), values)
