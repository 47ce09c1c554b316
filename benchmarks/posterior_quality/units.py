"""Which runs the grid has, and the settings that validation rows chose."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "ENSEMBLE", "MEMBERS", "NOISE_COST", "RESULTS", "best_given", "deciding_units", "ensemble_units", "main_units",
    "name_of", "same_rate_units", "tuning_units",
]  # fmt: skip

RESULTS = Path(__file__).parent / "results"
TUNING_SEEDS = (100, 101, 102)
CLOSE = 0.025
"""Nats: settings that are so close to the best on the first tuning seed are compared on all three."""
GRID: dict[str, list[dict[str, float]]] = {
    "adamw": [{"lr": 5e-4}, {"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "ivon_published": [{"lr": 0.03}, {"lr": 0.3}, {"lr": 3.0}],
    "ivon_auto": [
        {"noise_cost": 0.003, "lr": 1e-3},
        {"noise_cost": 0.01, "lr": 1e-3},
        {"noise_cost": 0.03, "lr": 1e-3},
        {"noise_cost": 0.01, "lr": 5e-4},
        {"noise_cost": 0.01, "lr": 3e-3},
    ],
}
ENSEMBLE = 4
"""Members. Ensemble s has the AdamW runs of seeds 4 s to 4 s + 3, so that no two share a run."""
ONE_ENSEMBLE = 1
"""Of IVON's posteriors, and of AdamW at their rate."""
MEMBERS = {
    "adamw_ensemble": "adamw",
    "adamw_same_ensemble": "adamw_same",
    "ivon_ensemble": "ivon_member",
}
"""Ensemble -> the arm whose log-probabilities are kept for it."""
NOISE_COST = 0.01
"""Default of ``IVON.auto``."""
WIDE = 0.03
"""A noise that costs three times as much."""


def tuning_units(tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm with every setting of its grid."""
    return [
        {"task": task, "arm": arm, "seed": TUNING_SEEDS[0], "given": given}
        for task in tasks
        for arm, grid in GRID.items()
        for given in grid
    ]


def deciding_units(tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Settings of AdamW and IVON auto that the first seed does not tell apart, on the other tuning seeds."""
    return [
        {"task": task, "arm": arm, "seed": seed, "given": record["given"]}
        for task in tasks
        for arm in ("adamw", "ivon_auto")
        for close in [close_to_best(arm, task)]
        for record in close
        for seed in TUNING_SEEDS[1:]
        if len(close) > 1
    ]


def main_units(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every arm with its setting, task and seed, AdamW at IVON's rate where its own is another, then members."""
    units = [
        _unit(task, arm, seed, best_given(arm, task))
        for seed in seeds
        for task in tasks
        for arm in ("ivon_auto", "adamw_laplace", "adamw", "ivon_published")
    ]
    wide = [
        _unit(task, "ivon_wide", seed, {**best_given("ivon_auto", task), "noise_cost": WIDE})
        for seed in seeds
        for task in tasks
    ]
    members = [
        _unit(task, "adamw", seed, {**best_given("adamw", task), "posthoc": False})
        for seed in range(ENSEMBLE * len(seeds))
        for task in tasks
        if seed not in seeds
    ]
    mixed = [
        _unit(task, "ivon_member", seed, best_given("ivon_auto", task))
        for seed in range(ENSEMBLE * ONE_ENSEMBLE)
        for task in tasks
    ]
    return units + same_rate_units(tasks, seeds) + members + wide + mixed


def same_rate_units(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """AdamW, dropout, Laplace and an ensemble's members at IVON's rate, where AdamW's own is another."""
    units = []
    for task in rates_differ(tasks):
        rate = {"lr": best_given("ivon_auto", task)["lr"]}
        units += [
            _unit(task, arm, seed, rate) for seed in seeds for arm in ("adamw_same", "adamw_same_laplace")
        ]
        further = [seed for seed in range(ENSEMBLE * ONE_ENSEMBLE) if seed not in seeds]
        units += [_unit(task, "adamw_same", seed, {**rate, "posthoc": False}) for seed in further]
    return units


def rates_differ(tasks: Sequence[str]) -> list[str]:
    """Tasks on which validation rows gave AdamW and IVON different learning rates."""
    return [task for task in tasks if best_given("ivon_auto", task)["lr"] != best_given("adamw", task)["lr"]]


def ensemble_units(tasks: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Ensembles of ``ENSEMBLE`` runs: of AdamW one a seed, ``ONE_ENSEMBLE`` at IVON's rate and of IVON's posteriors."""
    made = {
        "adamw_ensemble": (len(seeds), tasks),
        "adamw_same_ensemble": (ONE_ENSEMBLE, rates_differ(tasks)),
        "ivon_ensemble": (ONE_ENSEMBLE, tasks),
    }
    return [
        _unit(task, arm, seed, {})
        for arm, (count, own) in made.items()
        for seed in range(count)
        for task in own
    ]


def _unit(task: str, arm: str, seed: int, given: dict[str, Any]) -> dict[str, Any]:
    return {"task": task, "arm": arm, "seed": seed, "given": given}


def best_given(arm: str, task: str) -> dict[str, float]:
    """Setting with the lowest NLL on the validation rows of this task: of the mean, for ``ivon_auto`` of the draws.

    For ``ivon_auto`` only the learning rate is chosen per task, as for AdamW; the cost of the noise is its default.
    """
    arm = arm.removesuffix("_laplace")
    close = close_to_best(arm, task)
    if arm == "ivon_published" or len(close) == 1:
        return close[0]["given"]
    means = []
    for record in close:
        others = [tuned(task, arm, record["given"], seed) for seed in TUNING_SEEDS[1:]]
        means.append(sum(validation_nll(one) for one in (record, *others)) / len(TUNING_SEEDS))
    return close[means.index(min(means))]["given"]


def close_to_best(arm: str, task: str) -> list[dict[str, Any]]:
    """Records of the first tuning seed within ``CLOSE`` of the lowest NLL, that one first."""
    records = [tuned(task, arm, given, TUNING_SEEDS[0]) for given in GRID[arm]]
    if arm == "ivon_auto":
        records = [record for record in records if record["given"]["noise_cost"] == NOISE_COST]
    records.sort(key=validation_nll)
    return [r for r in records if validation_nll(r) - validation_nll(records[0]) <= CLOSE]


def tuned(task: str, arm: str, given: dict[str, float], seed: int) -> dict[str, Any]:
    """The record of one tuning run."""
    unit = {"task": task, "arm": arm, "seed": seed, "given": given}
    path = RESULTS / "tune" / f"{name_of(unit, 'tune')}.json"
    if not path.exists():
        raise SystemExit(f"run the part 'tune' first: {path.name} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def validation_nll(record: dict[str, Any]) -> float:
    """What a setting is chosen by: of the draws where there are any that matter, else of the mean."""
    return record["validation_nll_draws" if record["arm"] == "ivon_auto" else "validation_nll"]


def name_of(unit: dict[str, Any], part: str) -> str:
    """File name of a unit."""
    head = f"{unit['task']}__{unit['arm']}__"
    if part != "tune":
        return f"{head}{unit['seed']}"
    name = head + "_".join(f"{key}{value:g}" for key, value in unit["given"].items())
    return name if unit["seed"] == TUNING_SEEDS[0] else f"{name}__{unit['seed']}"
