"""Shared noise under DDP: replicas are bit-identical, and equal to one process with the whole batch."""

import pytest
import torch
from distributed_problems import (
    accelerate_loop,
    ddp_loop,
    ours,
    plain_loop,
    quadratic_hess,
    theirs,
    trainer_run,
)
from ivon_problems import make


def assert_same_bits(first, second):
    for left, right in zip(first, second, strict=True):
        assert all(torch.equal(left[key], right[key]) for key in left)


def assert_close(first, second, atol=1e-6):
    for left, right in zip(first, second, strict=True):
        for key in left:
            torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("micro", [1, 2])
def test_replicas_are_equal_and_equal_one_process(two_ranks, micro):
    first, second = two_ranks(ddp_loop, 8, micro=micro)
    assert_same_bits(first, second)
    one = plain_loop(*make(), 8)
    assert_close(first, one)


def test_h_is_right_where_ivon_opt_underestimates_it_and_diverges(two_ranks):
    for hess, difference in two_ranks(quadratic_hess, ours):
        assert hess == pytest.approx(3.0, rel=0.02)
        assert difference == 0
    for hess, difference in two_ranks(quadratic_hess, theirs):
        assert hess < 2.4
        assert difference > 0.01


@pytest.mark.parametrize("micro", [1, 4])
def test_an_accelerate_loop_with_accumulation(two_ranks, micro):
    first, second = two_ranks(accelerate_loop, 6, micro)
    assert_same_bits(first, second)
    assert_close(first, plain_loop(*make(), 6))


@pytest.mark.slow
def test_an_unmodified_trainer(two_ranks, tmp_path):
    first, second = two_ranks(trainer_run, tmp_path, batch_size=4, micro=2)
    assert first[2] == 2
    assert_same_bits(first[1], second[1])
    one = trainer_run(tmp_path, batch_size=16)
    assert_close(first[1], one[1], atol=1e-5)
