"""Tables of rates and shipped defaults by hand, and how the pruning of ``benchmarks/posterior_quality`` cuts."""

import torch

from benchmarks.posterior_quality.rate_tables import pruning_table, rates_table, shipped_gaps, shipped_table
from benchmarks.posterior_quality.surgery import components_kept, lowest_dropped
from vlora import Posterior
from vlora.posterior.meta import PosteriorMeta

A, B = "base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight"


def record(arm: str, seed: int, accuracy: float, nll: float, task: str = "sst2") -> dict:
    raw = {"accuracy": accuracy, "nll": nll, "ece": 0.1, "aurc": 0.2}
    draws = {**raw, "nll": nll - 0.01}
    scores = {"mean": {"raw": raw}, "draws": {"raw": draws}}
    return {"arm": arm, "task": task, "steps": 200, "seed": seed, "scores": scores}


def test_the_rate_of_lowest_nll_is_marked():
    rows = [
        {"task": "trec", "steps": 100, "rows": 640, "lr": 1e-3, "nll": 1.5, "accuracy": 0.33},
        {"task": "trec", "steps": 100, "rows": 640, "lr": 2e-3, "nll": 1.25, "accuracy": 0.7},
        {"task": "gsm8k", "steps": 100, "rows": 800, "lr": 2e-3, "nll": 2.5, "width": 64},
    ]
    assert rates_table(rows).splitlines()[2:] == [
        "| gsm8k | 64 | 800 | 100 |  | **2.500** |",
        "| trec | 384 | 640 | 100 | 1.500 (33) | **1.250** (70) |",
    ]


def test_differences_of_the_shipped_defaults_are_paired_by_seed():
    shipped = [
        record("adamw", 0, 0.75, 0.50),
        record("adamw", 1, 0.50, 0.70),
        record("ivon_auto", 0, 0.80, 0.48),
        record("ivon_auto", 1, 0.55, 0.66),
        record("adamw", 0, 0.5, 0.6, task="trec"),
        record("ivon_auto", 0, 0.5, 0.6, task="trec"),
    ]
    tuned = [record("adamw", 1, 0.60, 0.60)]
    first = shipped_gaps(shipped, tuned).splitlines()[2]
    assert first.startswith("| IVON mean − AdamW, same rate | +2.5 [") and "| -0.015 [" in first
    assert "| sst2 | 200 | 2 | 62.5 | 67.5 | 60.0 | 0.600 | 0.570 | 0.560 | 0.600 |" in shipped_table(
        shipped, tuned
    )


def test_pruned_entries_and_components_are_those_of_lowest_score():
    a = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    b = torch.tensor([[0.5, 0.0], [0.0, 0.25]])
    posterior = Posterior(
        mean={A: a, B: b, "head": torch.ones(3)},
        hess={A: torch.ones(2, 2), B: torch.ones(2, 2)},
        meta=PosteriorMeta(num_examples=10, ess=10.0),
        adapter_config={"peft_type": "LORA", "r": 2, "lora_alpha": 2},
    )
    cut = lowest_dropped(posterior, {key: value.abs() for key, value in posterior.mean.items()}, 0.5)
    assert cut[A].tolist() == [[0.0, -4.0], [3.0, 0.0]]
    assert cut["head"].tolist() == [1.0, 1.0, 1.0]
    by_size = components_kept(posterior, "size", 1, {})
    assert by_size[B].tolist() == [[0.5, 0.0], [0.0, 0.0]]  # .5 sqrt(17) over .25 sqrt(13)
    assert torch.equal(by_size[A], a)


def test_the_pruning_table_has_one_row_for_each_amount():
    score = {"accuracy": 0.8, "nll": 0.5}
    names = ["all", *(f"entries, {how}, 0.5" for how in ("ratio", "size", "random"))]
    lines = pruning_table([{"pruned": dict.fromkeys(names, score)}]).splitlines()
    assert lines[2] == "| nothing |  | 80.0 |  |  | 0.500 |  |  |"
    assert lines[3] == "| entries | 0.5 | 80.0 | 80.0 | 80.0 | 0.500 | 0.500 | 0.500 |"
    assert len(lines) == 4
