"""What a merged model knows it does not know: posteriors and their rivals after gradient matching of A and B.

``{source}_posterior``: draws of the merged posterior, whose h the merge itself carried out, and the full matrix, whose
directions are measured again at the merge, on the facts of both adapters. ``{source}_linearised``: independent entries
and Kronecker factors, carried out by the merge too, and the full matrix with ``MORE`` directions.
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

WAY = METHODS["equal_votes"]
MORE = 1024
"""Directions, where a single adapter has 256: on more facts than one adapter was taught, all of them unsure."""


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it."""
    group = Group(seed, "ab", optimizers, work)
    made: dict[str, Callable[[Group, arms.Setting], arms.Found]] = {
        "adamw_ensemble": _ensemble,
        "adamw_dropout": _dropout,
    }
    for source in SOURCES:
        made[f"{source}_posterior"] = partial(_posterior, source)
        made[f"{source}_linearised"] = partial(_linearised, source)
    return {name: partial(_unit, group, name, make) for name, make in made.items()}


def _unit(group: Group, name: str, make: Callable[[Group, arms.Setting], arms.Found]) -> dict[str, Any]:
    setting = group.setting()
    source, _, method = name.partition("_")
    return record(group, source, method, arms.remembered(name, setting, partial(make, group, setting)))


def _posterior(source: str, group: Group, setting: arms.Setting) -> arms.Found:
    """The mean, draws, and the full matrix as it is measured for a single adapter."""
    posterior, found = group.merged(source, WAY), arms.Found()
    with wearing(posterior) as model:
        mean = setting.items.at_mean(model)
        found.add_point("mean", Said(mean.numpy()), setting.asked)
        found["draws"] = Said.of_draws(setting.items.under_draws(model, posterior).numpy(), antithetic=True)
        given = (posterior, setting.items, mean, setting.asked, setting.train)
        more, facts = linearised(model, *given, kinds=())
    found.update(more)
    found.facts |= facts
    return found


def _linearised(source: str, group: Group, setting: arms.Setting) -> arms.Found:
    """The covariances that the merge carried out, and the full matrix with more directions."""
    posterior, found = group.merged(source, WAY), arms.Found()
    with wearing(posterior) as model:
        mean = setting.items.at_mean(model)
        given = (posterior, setting.items, mean, setting.asked, setting.train)
        more, facts = linearised(model, *given, directions=MORE)
    found.update(more)
    found.facts |= facts
    return found


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
