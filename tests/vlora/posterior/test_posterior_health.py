"""Ranks, number spacing and the words that a posterior's health is told in."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlora import Posterior
from vlora.posterior.health import compare_with_reference, measure_health
from vlora.posterior.ranks import spearman
from vlora.posterior.spacing import share_below_spacing, spacing


def test_spearman_by_hand_with_ties():
    """Ranks 1, 2.5, 2.5, 4 against 2, 1, 3, 4: sums of products 3, 4.5 and 5."""
    found = spearman(torch.tensor([10.0, 20.0, 20.0, 30.0]), torch.tensor([0.2, 0.1, 0.3, 0.4]))
    assert found == pytest.approx(3 / (4.5 * 5) ** 0.5)


def test_spearman_is_the_correlation_of_mean_ranks():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(6, (300,), generator=generator).float() for _ in range(2))

    def ranks(values):
        return [float(np.mean(np.flatnonzero(np.sort(values) == v))) for v in values]

    want = np.corrcoef(ranks(left.numpy()), ranks(right.numpy()))[0, 1]
    assert spearman(left.reshape(20, 15), right) == pytest.approx(want)
    assert spearman(left, left.exp()) == pytest.approx(1)
    assert spearman(left, -left) == pytest.approx(-1)


def test_spearman_of_a_constant_is_not_defined():
    assert spearman(torch.ones(4), torch.arange(4.0)) is None
    assert spearman(torch.ones(1), torch.ones(1)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_spacing_is_the_step_to_the_next_number(dtype):
    values = torch.tensor([1.0, 1.5, 1.9921875, 2.0, -3.0, 0.0078125, 1000.0]).to(dtype)
    steps = torch.nextafter(values.abs(), torch.full_like(values, torch.inf)).double() - values.abs().double()
    assert torch.equal(spacing(values, dtype), steps)
    limits = torch.finfo(dtype)
    assert spacing(torch.zeros(1), dtype).item() == pytest.approx(limits.tiny * limits.eps)


def test_share_below_spacing_by_hand():
    """bfloat16 steps by 2^-7 at 1: a std of 0.003 is below half of it, 0.005 is not; at 0.1 both are fine."""
    mean = {"a": torch.tensor([1.0, 1.0, 0.1, 0.1]), "b": torch.ones(1)}
    std = {"a": torch.tensor([0.003, 0.005, 0.003, 0.005])}
    assert share_below_spacing(mean, std, torch.bfloat16) == 0.25
    assert share_below_spacing(mean, std) == 0
    halves = {key: value.bfloat16() for key, value in mean.items()}
    assert share_below_spacing(halves, std) == 0.25


def test_comparison_with_the_reference_by_hand():
    hess = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[8.0, 6.0]]), "c": torch.ones(2)}
    reference = {
        "a": torch.tensor([2.0, 4.0, 6.0]),
        "b": torch.tensor([[2.0, 3.0]]),
        "c": torch.tensor([0.0, 1.0]),
    }
    found = compare_with_reference(hess, reference)
    # a: in order, b: in reverse order, c: constant, so not counted
    assert found["rank_correlation_within"] == 0
    assert found["hess_to_reference"] == 0.5  # of .5 .5 .5 1 2 4
    everything = (
        torch.cat([v.flatten() for v in hess.values()]),
        torch.cat([v.flatten() for v in reference.values()]),
    )
    assert found["rank_correlation"] == pytest.approx(spearman(*everything))


@pytest.mark.parametrize(
    ("start", "weight", "counts"), [(1e-20, 0.1, False), (1e-3, 0.1, True), (1e-3, 0.0, False)]
)
def test_leaving_a_start_without_weight_says_nothing(start, weight, counts):
    found = measure_health({"a": torch.tensor([1e-3, 2e-3])}, start_weight=weight, hess_init={"a": start})
    assert found.get("share_moved") == (0.5 if counts else None)
    assert found["effective_memory"] == 1 - weight


@pytest.mark.parametrize(
    ("health", "method", "words"),
    [
        ({"share_moved": 0.02}, None, "still its prior"),
        (
            {"share_moved": 0.9, "rank_correlation": 0.1},
            None,
            "does not rank like .*squared gradients .*0.10",
        ),
        (
            {"share_moved": 0.9, "rank_correlation": 0.7},
            None,
            "h has moved with the data; it ranks loosely like",
        ),
        ({"share_moved": 0.9, "rank_correlation": 0.9}, None, "h has moved with the data; it ranks like"),
        ({"effective_memory": 0.99, "rank_correlation": 0.9}, None, "^h is the data's: .* it ranks like"),
        ({"effective_memory": 0.1}, None, "weak: h started next to zero and has filled to 10%"),
        ({"rank_correlation": None}, "laplace", r"measured after training \(Laplace\)$"),
    ],
)
def test_the_verdict_says_what_is_wrong(posterior, health, method, words):
    told = replace(posterior, meta=replace(posterior.meta, health=health, method=method)).summary()
    assert pytest.approx(0) == told["share_below_spacing"]
    assert re.search(words, told["verdict"])


def test_a_width_lost_in_the_format_is_told_at_any_temperature(posterior, tmp_path):
    cold = posterior.at_temperature(1e-9)
    assert "narrower than the adapter's number format" not in cold.summary()["verdict"]
    halves = replace(cold, mean={key: value.bfloat16() for key, value in cold.mean.items()})
    assert "% of the entries are narrower than the adapter's number format" in halves.summary()["verdict"]
    assert "narrower" not in replace(halves, meta=posterior.meta).summary()["verdict"]
    halves.save_pretrained(tmp_path / "out")
    assert "narrower than their number format" in (tmp_path / "out/README.md").read_text()


def test_the_card_shows_the_measured_numbers(posterior, tmp_path):
    health = {
        "share_moved": 0.93,
        "rank_correlation": 0.876,
        "rank_correlation_within": None,
        "hess_to_reference": 1.25,
        "reference_examples": 64,
        "reference_held_out": True,
    }
    known = replace(posterior, meta=replace(posterior.meta, health=health))
    known.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "| share of h outside ±10 % of its start | 93.0 % |" in card
    assert "squared gradients of 64 held-out examples | 0.88 (within a tensor –) |" in card
    assert "| median of h / squared gradient | 1.25 |" in card
    assert Posterior.from_pretrained(tmp_path / "out").meta.health == health
    posterior.save_pretrained(tmp_path / "bare")  # nothing measured
    assert "rank correlation" not in (tmp_path / "bare/README.md").read_text()
