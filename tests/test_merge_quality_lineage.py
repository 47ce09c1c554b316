"""``benchmarks/merge_quality/lineage``: its arms on updates made by hand, and its tables."""

from dataclasses import replace

import pytest
import torch

from benchmarks.merge_quality import lineage, lineage_tables
from vlora.merge.update import LoraUpdate


def update(seed: int, size: float = 1.0) -> LoraUpdate:
    noise = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    x = rand(20, 5)
    return LoraUpdate(
        size * rand(4, 2), size * rand(2, 5), 2.0, rand(4, 2).square() + 0.1, rand(2, 5).square() + 0.1,
        adapter=f"run {seed}", module="m", input_gram=x.mT @ x,
    )  # fmt: skip


def runs() -> list[LoraUpdate]:
    start = update(1)
    moved = [update(seed, 0.1) for seed in (2, 3)]
    return [replace(u, a=start.a + u.a, b=start.b + u.b, ancestor=start) for u in moved]


def test_arms_are_what_they_say():
    found = runs()
    start = found[0].ancestor
    assert start is not None
    whole = start.delta()
    by_hand = whole + 0.5 * sum(u.delta() - whole for u in found)
    line = lineage.ARMS["sum of changes, updates"].deltas({"m": found})
    torch.testing.assert_close(line(0.5)["m"], by_hand.float())
    mean = lineage.ARMS["mean of factors"].deltas({"m": found})(1.0)["m"]
    b, a = (sum(getattr(u, side) for u in found) / 2 for side in ("b", "a"))
    torch.testing.assert_close(mean, (2.0 * b @ a).float())
    flat = [
        replace(u, precision_a=torch.zeros_like(u.a), precision_b=torch.zeros_like(u.b)) for u in found
    ]  # no evidence: sites are the sum of the changes
    torch.testing.assert_close(lineage.sites(flat, 1.0), lineage.changes_of_factors(found, 1.0))
    for name, arm in lineage.ARMS.items():
        alone = arm.deltas({"m": found[:1]})(1.0)["m"]
        if name != "Kronecker, runs and ancestor":
            torch.testing.assert_close(alone, found[0].delta().float(), msg=name)


def record(seed: int, gain: float) -> dict:
    def scores(accuracy: float) -> dict:
        return {name: {"accuracy": accuracy, "nll": 1 - accuracy} for name in ("x", "y", "z")}

    return {
        "ancestor": "one", "seed": seed, "tasks": ["x"], "old": ["y"], "unseen": ["z"],
        "from_ancestor": {"encoder.layer.5.m": {"x": 0.1 + seed / 10}},
        "arms": {
            "ancestor": {"default": scores(0.5)},
            "sites": {"default": scores(0.7 + gain), "best": scores(0.8), "scalar": 0.7},
            "mean of factors": {"default": scores(0.7), "best": scores(0.7), "scalar": 1.0},
        },
    }  # fmt: skip


def test_tables_by_hand():
    found = [record(1, 0.04), record(0, 0.02)]
    pulled = [record(1, 0.0), record(0, 0.0)]
    for one in pulled:
        one["arms"] = {"sites, pulled runs": one["arms"]["sites"]}
    sections = lineage_tables.lineage_sections(found, pulled)
    (title, records, make), (_, pairs, differ), (_, _, far), (_, none, _) = sections[:4]
    assert title == "Three runs that went on from an ancestor trained on one domain, 2 seeds"
    assert none == []
    lines = make(records).splitlines()
    assert lines[2] == "| ancestor | 50.0 | 50.0 | 50.0 | 0.500 | 0.500 | 0.500 | — | — | — |"
    assert lines[3] == "| sites | 73.0 | 73.0 | 73.0 | 0.270 | 0.270 | 0.270 | 80.0 | 0.200 | 0.7 |"
    assert "| mean of factors | default | +3.0 [" in differ(pairs)
    _, same, beside = sections[-1]
    assert beside(same).splitlines()[2].startswith("| sites; ancestor of one | 70.0 | -3.0 [")
    assert far(records).splitlines()[2] == "| m | 0.10 | 0.15 | 0.20 |"


@pytest.mark.parametrize("unit", lineage.lineages([0]))
def test_no_domain_is_on_two_sides(unit):
    groups = (*unit.children, *unit.old, *unit.unseen)
    assert len(set(groups)) == len(groups)
