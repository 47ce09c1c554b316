"""A's and B's adapters merged, and the merged model asked about everybody.

AdamW adapters go in with their Laplace posterior, IVON adapters with their own, both with the Grams of their training
rows. Nothing is chosen here: every method runs at its defaults (``ways.py``).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.closed_world import arms
from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said, recall, score
from benchmarks.closed_world.ways import METHODS

__all__ = ["units"]


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it."""
    group = Group(seed, "ab", optimizers, work)
    jobs = {
        f"{source}_{method}": partial(_merged, group, source, method)
        for source in SOURCES
        for method in METHODS
    }
    return {f"{source}_alone": partial(_alone, group, source) for source in SOURCES} | jobs


def record(group: Group, source: str, method: str, found: arms.Found) -> dict[str, Any]:
    """Scores of what was found about one merge."""
    setting = group.setting()
    base = arms.said("base", setting)["mean"]
    return {
        "source": source,
        "method": method,
        "world": group.seed,
        "scores": {name: score(said, setting.asked, base) for name, said in found.items()},
        "recall": {name: recall(said, setting.asked) for name, said in found.items()},
        "facts": found.facts,
    }


def _merged(group: Group, source: str, method: str) -> dict[str, Any]:
    """Scores of one merge."""
    setting = group.setting()

    def make() -> arms.Found:
        found = arms.Found()
        with wearing(group.merged(source, METHODS[method])) as model:
            found.add_point("mean", Said(setting.items.at_mean(model).numpy()), setting.asked)
        return found

    return record(group, source, method, arms.remembered(f"{source}_{method}", setting, make))


def _alone(group: Group, source: str) -> dict[str, Any]:
    """Recall of the adapters before merging: each about its own people and the base."""
    found = {}
    for adapter, posterior in zip(group.adapters, group.inputs(source), strict=True):
        setting = group.setting(adapter)
        with wearing(posterior) as model:
            found[adapter] = recall(Said(setting.items.at_mean(model).numpy()), setting.asked)
    return {"source": source, "method": "alone", "world": group.seed, "recall": found}
