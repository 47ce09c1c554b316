"""Ranks, number spacing and the words that a posterior's health is told in."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vlora import Posterior, PosteriorMeta
from vlora.laplace.evidence import effective_parameters
from vlora.posterior.health import compare_with_reference, measure_health, prior_health
from vlora.posterior.ranks import spearman
from vlora.posterior.spacing import share_below_spacing, spacing
from vlora.recipes.inspect import describe, render


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


def prior_of(weight_decay, **hess):
    meta = PosteriorMeta(num_examples=9, ess=50.0, weight_decay=weight_decay)
    return prior_health({key: torch.tensor(value) for key, value in hess.items()}, meta)


def test_the_priors_share_of_the_width_by_hand():
    """Shares .5 .25 .1 of the first tensor, 1 (no evidence) 1 .95 .2 .05 of the second; sorted, the fourth of eight."""
    decays = {"a": 0.1, "b": 1.0}
    found = prior_of(decays, a=[0.1, 0.3, 0.9], b=[[-0.4, 0.0, 1 / 19, 4.0, 19.0]])
    assert found == {"prior_share": pytest.approx(0.25), "prior_dominated": 3 / 8}
    assert prior_of(0.0, a=[0.0, 1.0, -1e-9]) == {"prior_share": 0.0, "prior_dominated": 0.0}  # a flat prior
    assert prior_of(1.0) == prior_of(1.0, a=[]) == {}


def test_the_priors_share_is_one_minus_mackays_count_and_no_temperature_moves_it(posterior):
    hess = next(iter(posterior.hess.values()))
    found = prior_health({"a": hess}, PosteriorMeta(num_examples=9, ess=50.0, weight_decay=0.7))
    single = [1 - effective_parameters(h, ess=50.0, prior_precision=50.0 * 0.7) for h in hess.flatten()]
    assert found["prior_share"] == pytest.approx(sorted(single)[(len(single) - 1) // 2], rel=1e-5)
    cold = posterior.at_temperature(1e-6).summary()["prior_share"]
    assert posterior.summary()["prior_share"] == posterior.scaled(3.0).summary()["prior_share"] == cold
    wide = posterior.with_prior(1e4 * 10.0).summary()  # weight_decay 10 beside h from .5 to 1.5
    assert wide["prior_share"] == pytest.approx(10 / 11, abs=0.01) and wide["prior_dominated"] > 0.5


@pytest.mark.parametrize(
    ("weight_decay", "words"),
    [
        (0.4, r"^h is the data's: nothing of its start is left$"),
        (1.2, r"is left; the prior has the larger part in the width of most entries \(55% of the"),
        (9.2, r"is left; the width of most entries is set by the prior, not by h \(90% of the median"),
        (
            20.0,
            r"^this posterior is essentially its prior, which sets the width of 100% of its entries; h is the",
        ),
    ],
)
def test_the_verdict_says_whose_the_width_is(posterior, weight_decay, words):
    """h is between .5 and 1.5, its median about 1."""
    meta = replace(posterior.meta, weight_decay=weight_decay, health={"effective_memory": 1.0})
    assert re.search(words, replace(posterior, meta=meta).summary()["verdict"])


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
        "effective_memory": 0.865,
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
    assert "| weight of the data in h (effective memory) | 86.5 % |" in card
    assert "| share of h outside ±10 % of its start | 93.0 % |" in card
    assert "squared gradients of 64 held-out examples | 0.88 (within a tensor –) |" in card
    assert "| median of h / squared gradient | 1.25 |" in card
    assert Posterior.from_pretrained(tmp_path / "out").meta.health == health
    posterior.save_pretrained(tmp_path / "bare")  # nothing measured
    bare = (tmp_path / "bare/README.md").read_text()
    assert "rank correlation" not in bare and "effective memory" not in bare


def test_the_card_shows_the_width_beside_weight_and_prior(posterior, tmp_path):
    """Numbers that need no training run: a merged or a Laplace posterior has them too."""
    meta = replace(posterior.meta, weight_decay=3.0, health={})
    replace(posterior, meta=meta).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    mean, hess = (
        torch.cat([v.flatten() for v in part.values()]) for part in (posterior.mean, posterior.hess)
    )
    ratio = (1 / (1e4 * (hess + 3.0)).sqrt() / mean.abs()).median().item()
    assert f"| standard deviation / \\|mean\\|, median | {ratio:.3g} |" in card
    share = 3.0 / (hess + 3.0)
    assert f"precision, median (entries above 90 %) | {100 * share.median().item():.1f} % (0.0 %) |" in card
    assert "the prior has the larger part in the width of most entries" in card
    shown = render(describe(str(tmp_path / "out")))
    assert re.search(rf"^prior share +{share.median():.4g}$", shown, re.MULTILINE)
    assert re.search(r"^prior dominated +0$", shown, re.MULTILINE)
