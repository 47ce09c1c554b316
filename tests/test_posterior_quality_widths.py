"""Other widths of draws in ``benchmarks/posterior_quality``: equal costs, cross-fitting, tables by hand."""

import math

import pytest
import torch

from benchmarks.posterior_quality.width_tables import SHAPES, shapes_table, ways_table
from benchmarks.posterior_quality.widths import crossfitted, mixture, shapes


def test_every_shape_costs_what_the_default_costs():
    hess = [torch.tensor([1.0, 4.0]), torch.tensor([[0.0], [3.0]])]  # means 2.5 and 1.5, of all 2
    std = [(h + 1).rsqrt() for h in hess]
    cost = sum(float((h * sd**2).sum()) for h, sd in zip(hess, std, strict=True))
    found = shapes(hess, std)
    for name, width in found.items():
        assert sum(float((h * sd**2).sum()) for h, sd in zip(hess, width, strict=True)) == pytest.approx(cost)
        assert name in SHAPES
    assert found["equal"][0][0] == pytest.approx(math.sqrt(cost / 8))
    own, one = found["per tensor, own ess"], found["per tensor, one ess"]
    # precisions h / mean + 1/2 and h + mean / 2: ratios within a tensor are the same, between tensors they are not
    assert (own[0][0] / own[0][1]).item() == pytest.approx((one[0][0] / one[0][1]).item())
    assert (own[0][0] / own[1][1]).item() == pytest.approx(math.sqrt(2.5 / 0.9))
    assert (one[0][0] / one[1][1]).item() == pytest.approx(math.sqrt(3.75 / 2.25))


def test_what_a_half_predicts_was_chosen_on_the_other_half():
    label = torch.zeros(4, dtype=torch.long)
    good, bad = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.2, 0.8]).log()
    options = {  # the first half likes 1, the second 2
        1.0: torch.stack([good, good, bad, bad])[None],
        2.0: torch.stack([bad, bad, good, good])[None],
    }
    log_probs, chosen = crossfitted(options, label)
    assert chosen == [1.0, 2.0]
    assert torch.equal(log_probs, torch.stack([bad] * 4))


def test_a_mixture_averages_probabilities():
    draws = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]]]).log()
    assert mixture(draws).exp()[0].tolist() == pytest.approx([0.7, 0.3])


def record(task: str, way: str, nll: float) -> dict:
    names = {"mean", "draws", "linearised", *SHAPES}
    return {
        "task": task, "way": way, "seed": 100,
        "facts": {"prior_share": 0.95, "std_quantiles": [0.01, 0.02, 0.03]},
        "scores": {name: {"accuracy": 0.5, "nll": nll + (name == "equal"), "ece": 0.1, "aurc": 0.2} for name in names},
        "chosen": dict.fromkeys(SHAPES, [1.0, 4.0]),
    }  # fmt: skip


def test_tables_are_paired_by_task():
    records = [
        record(task, way, nll)
        for task, gain in (("sst2", 0.02), ("trec", 0.04))
        for way, nll in (("default", 0.5), ("ratio_10", 0.5 - gain))
    ]
    default, other = ways_table(records).splitlines()[2:]
    assert default == "| default | 0.95 | 0.020 | 50.0 | 0.500 | 0.500 | 0.500 | 0.500 |"
    assert other.startswith("| ratio_10 | 0.95 | 0.020 | 50.0 | 0.470 -0.030 [-0.157, +0.097] |")
    last = shapes_table(records).splitlines()[-1]
    zero = "+0.000 [+0.000, +0.000]"
    assert (
        last
        == f"| the same for all entries | 2.00 | 1.500 | 0.100 | 0.200 | +1.000 [+1.000, +1.000] | {zero} |"
    )
