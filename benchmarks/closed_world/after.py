"""What a merged model knows it does not know: posteriors and their rivals after gradient matching of A and B.

``{source}_posterior``: draws and the linearised model of the merged posterior, whose h and Grams the merge itself
carried out; the directions of the full matrix are measured again at the merge, on the facts of both adapters.
``adamw_ensemble``: four trainings of A and four of B, merged one by one, averaged after. ``adamw_dropout``: the merge
of adapters trained with dropout, which stays on for 8 passes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_world import arms
from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.linearised import linearised
from benchmarks.closed_world.merging import record
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said
from benchmarks.closed_world.ways import METHODS, merged

__all__ = ["units"]

WAY = METHODS["gradient_matching"]


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it."""
    group = Group(seed, "ab", optimizers, work)
    jobs = {f"{source}_posterior": partial(_posterior, group, source) for source in SOURCES}
    made = {"adamw_ensemble": _ensemble, "adamw_dropout": _dropout}
    return jobs | {name: partial(_unit, group, name, make) for name, make in made.items()}


def _unit(group: Group, name: str, make: Callable[[Group, arms.Setting], arms.Found]) -> dict[str, Any]:
    setting = group.setting()
    source, _, method = name.partition("_")
    return record(
        group, source, method, arms.remembered(f"{name}_merged", setting, partial(make, group, setting))
    )


def _posterior(group: Group, source: str) -> dict[str, Any]:
    def make(group: Group, setting: arms.Setting) -> arms.Found:
        posterior = group.merged(source, WAY)
        found, asked = arms.Found(), setting.asked
        with wearing(posterior) as model:
            mean = setting.items.at_mean(model)
            found.add_point("mean", Said(mean.numpy()), asked)
            draws = setting.items.under_draws(model, posterior).numpy()
            found["draws"] = Said.of_draws(draws, antithetic=True)
            more, facts = linearised(model, posterior, setting.items, mean, asked, setting.train)
        found.update(more)
        found.facts |= facts
        return found

    return _unit(group, f"{source}_posterior", make)


def _ensemble(group: Group, setting: arms.Setting) -> arms.Found:
    """Mixture of the merges of the first runs, the second runs, ..."""
    found, said = arms.Found(), []
    for run in range(arms.MEMBERS):
        with wearing(merged(WAY, group.inputs("adamw", run=run))) as model:
            said.append(setting.items.at_mean(model))
    found.add_point("mixture", Said.of_draws(torch.stack(said).numpy(), antithetic=False), setting.asked)
    return found


def _dropout(group: Group, setting: arms.Setting) -> arms.Found:
    found = arms.Found()
    with wearing(merged(WAY, group.inputs("adamw_dropout"))) as model:
        found.add_point("mean", Said(setting.items.at_mean(model).numpy()), setting.asked)
        found["draws"] = Said.of_draws(setting.items.with_dropout(model).numpy(), antithetic=False)
    return found
