"""``benchmarks/merge_quality``: tables over numbers of adapters, over scalars and over steps, their numbers by hand."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.merge_quality.curve_tables import curve_table, separation_table
from benchmarks.merge_quality.early_tables import early_scores, early_tuned
from benchmarks.merge_quality.length import with_lengths
from benchmarks.merge_quality.records import OURS, scalars
from benchmarks.merge_quality.scores import Scorer
from benchmarks.merge_quality.wide_tables import by_scalar, wide_differences, wide_scores


def scores(accuracy: float, nll: float) -> dict:
    return {"a": {"accuracy": accuracy, "nll": nll, "ece": 0.1, "nll_tempered": nll}}


def tuned(accuracy: float, nll: float, best: float, **by: float) -> dict:
    """An arm with its validation NLL at .5, 1 and 2."""
    grid = dict(zip(("0.5", "1.0", "2.0"), by.values(), strict=True))
    chosen = {"default": scores(accuracy, nll), "best": scores(accuracy, best), "validation_nll": grid}
    return {**chosen, "scalar": float(min(grid, key=lambda s: grid[s]))}


def record(seed: int, count: int = 4, **more: dict) -> dict:
    arms = {
        "individual adapters": {"default": scores(0.7, 0.5)},
        OURS: tuned(0.72, 0.45 + 0.01 * seed, 0.44, low=0.6, middle=0.4, high=0.5),
        "sum": tuned(0.7, 0.6, 0.5, low=0.5, middle=0.7, high=0.9),
        "joint training": {"default": scores(0.75, 0.4)},
    }
    where = {"family": "domains", "count": count, "gauge": "independent", "optimizer": "ivon", "seed": seed}
    return {**where, "tasks": ["a"], "unseen": [], "arms": arms | more}


def test_a_best_scalar_at_an_end_of_the_grid_is_marked():
    records = [record(0), record(1, sum=tuned(0.7, 0.6, 0.5, low=0.9, middle=0.8, high=0.7))]
    assert scalars(records, "sum") == "≤ 0.5, ≥ 2"
    assert scalars(records, OURS) == "1"
    assert scalars(records, "individual adapters") == "—"


def test_over_the_number_of_adapters():
    lines = curve_table([record(0), record(1), record(0, 8)]).splitlines()
    assert lines[0] == "| accuracy / worst / NLL | 4 domains | 8 domains |"
    assert f"| {OURS} | 72.0 / 72.0 / 0.455 | 72.0 / 72.0 / 0.450 |" in lines
    best = curve_table([record(0)], kind="best").splitlines()
    assert best[2:] == [
        f"| {OURS} | 72.0 / 72.0 / 0.440 / at 1 |",
        "| sum | 70.0 / 70.0 / 0.500 / at ≤ 0.5 |",
    ]


def test_what_separates_adds_up():
    cells = separation_table([record(0), record(1)]).splitlines()[2].split(" | ")
    assert cells[:4] == ["| 4 domains (2)", "70.0 / 0.500", "72.0 / 0.455", "75.0 / 0.400"]
    assert [cell.split(" ")[0] for cell in cells[4:]] == [
        "+2.0",
        "+5.0",
        "-3.0",
        "-0.045",
        "-0.100",
        "+0.055",
    ]


def test_validation_nll_of_every_scalar_and_the_lowest():
    lines = by_scalar([record(0), record(1)]).splitlines()
    assert lines[0] == "| arm | 0.5 | 1 | 2 |"
    assert lines[2:] == [f"| {OURS} | 0.600 | **0.400** | 0.500 |", "| sum | **0.500** | 0.700 | 0.900 |"]


def test_the_wide_grid_compares_best_with_best_too():
    records = [record(0), record(1), record(0, 8), record(1, 8)]
    assert wide_scores(records).splitlines()[3] == (
        "| sum | 70.0 / 70.0 / 0.500 at ≤ 0.5 | 70.0 / 70.0 / 0.500 at ≤ 0.5 |"
    )
    default, best = (wide_differences(records, ours).splitlines() for ours in ("default", "best"))
    assert default[3].startswith("| sum | +2.0 [+2.0, +2.0]; -0.045 [")
    assert best[2].startswith("| sum | +2.0 [+2.0, +2.0]; -0.060 [-0.060, -0.060] |")


def test_steps_of_conjugate_gradients_against_tau():
    arms: dict[str, Any] = {
        f"{steps} steps, tau {tau}": {"default": scores(0.7, 0.1 * steps + 0.01 * float(tau))}
        for steps, tau in ((1, "1"), (0, "0.3"), (0, "1"))
    }
    lines = early_tuned([{**record(0), "arms": arms}]).splitlines()
    assert lines[0] == "| sets | tau | 0 steps | 1 steps |"
    assert lines[2:] == [
        "| 4 domains (1 sets) | 0.3 | 70.0 / 0.003 | — |",
        "| 4 domains (1 sets) | 1 | 70.0 / 0.010 | 70.0 / 0.110 |",
    ]
    assert (
        early_scores([record(0), record(1)])
        .splitlines()[3]
        .endswith("| ≤ 0.5 | +2.0 [+2.0, +2.0] | +2.0 [+2.0, +2.0] | -0.145 [-0.209, -0.081] |")
    )


def test_lengths_are_the_others():
    one, other = {"m": torch.tensor([[3.0, 4.0]])}, {"m": torch.tensor([[0.0, 2.0]])}
    assert torch.allclose(with_lengths(one, other)["m"], torch.tensor([[1.2, 1.6]]))


def test_the_scalar_of_the_lowest_validation_nll_is_taken(monkeypatch: pytest.MonkeyPatch):
    def length(deltas: Mapping[str, torch.Tensor]) -> float:
        return deltas["m"].item()

    scorer = Scorer(SimpleNamespace(), {}, SimpleNamespace(), True)  # type: ignore[arg-type]
    monkeypatch.setattr(scorer, "_validation", lambda deltas: (length(deltas) - 1.4) ** 2)
    monkeypatch.setattr(scorer, "all", lambda deltas: length(deltas))
    found = scorer.tuned({"m": torch.tensor(1.0)}, (0.5, 1.0, 1.4, 2.0))
    assert found["default"] == 1.0 and found["scalar"] == 1.4 and found["best"] == pytest.approx(1.4)
    assert list(found["validation_nll"]) == ["0.5", "1.0", "1.4", "2.0"]
