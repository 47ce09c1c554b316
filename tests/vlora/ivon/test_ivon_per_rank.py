"""Noise of its own on every rank: W draws per step, equal to one process with W sampled_params contexts."""

import pytest
import torch
from distributed_problems import (
    as_it_is,
    contexts_loop,
    hook_on,
    hooked,
    per_rank_loop,
    replicas_with,
    step_after,
    without_hook,
)
from test_ivon_ddp import assert_same_bits

from vlora.ivon.distributed import use_per_rank_noise

GRADSQ = {"hess_approx": "gradsq", "grad_batch_size": 8.0}


def assert_equal_to(one, ranks):
    first, second = ranks
    assert_same_bits(first, second)
    for left, right in zip(first, one, strict=True):
        for key in left:
            torch.testing.assert_close(left[key], right[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, GRADSQ, {"clip": 0.05}, {"clip": 0.05, **GRADSQ}], ids=str)
def test_equal_to_one_process_with_two_draws(two_ranks, settings):
    assert_equal_to(contexts_loop(6, 2, **settings), two_ranks(per_rank_loop, 6, **settings))


def test_float32_parameters(two_ranks):
    first, second = two_ranks(per_rank_loop, 6, dtype=torch.float32)
    assert_same_bits(first, second)
    for left, right in zip(first, contexts_loop(6, 2, dtype=torch.float32), strict=True):
        torch.testing.assert_close(left["mean"], right["mean"], rtol=1e-5, atol=1e-6)


def test_accumulation_under_no_sync(two_ranks):
    assert_equal_to(contexts_loop(4, 2), two_ranks(per_rank_loop, 4, micro=4))


@pytest.mark.parametrize("unused", [False, True])
def test_find_unused_parameters(two_ranks, unused):
    one = contexts_loop(4, 2, half=unused)
    assert_equal_to(one, two_ranks(per_rank_loop, 4, find_unused=True, unused=unused))


def test_it_differs_from_shared_noise(two_ranks):
    own = two_ranks(per_rank_loop, 3)[0]
    assert (own[0]["mean"] - contexts_loop(3, 1)[0]["mean"]).abs().max() > 1e-3


def test_nothing_is_drawn_without_the_hook(two_ranks):
    assert all("call vlora.ivon.distributed.use_per_rank_noise" in error for error in two_ranks(without_hook))


@pytest.mark.parametrize(
    ("model_of", "settings", "words"),
    [
        (as_it_is, {}, "got Sequential: wrap it first"),
        (hooked, {}, "communication hook for itself"),
        (as_it_is, {"noise": "shared"}, "got noise='shared'"),
    ],
)
def test_what_the_hook_cannot_be_put_on(two_ranks, model_of, settings, words):
    assert all(words in error for error in two_ranks(hook_on, model_of, **settings))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("never", "found no reduced products"),
        ("twice", "accumulate under model.no_sync"),
        ("context", "use the shared noise"),
    ],
)
def test_a_step_that_would_be_wrong_is_refused(two_ranks, kind, words):
    assert all(words in error for error in two_ranks(step_after, kind))


def test_a_dropped_batch_leaves_nothing_behind(two_ranks):
    assert two_ranks(step_after, "dropped") == [None, None]


def test_replicas_with_different_seeds_are_found(two_ranks):
    assert two_ranks(replicas_with, (3, 3)) == [None, None]
    assert all("ranks [1] differ from rank 0" in error for error in two_ranks(replicas_with, (3, 4)))


def test_one_process_needs_no_hook():
    import ivon_problems

    model, optimizer = ivon_problems.make(noise="per_rank")
    use_per_rank_noise(model, optimizer)
    ivon_problems.one_step(model, optimizer, 0)
