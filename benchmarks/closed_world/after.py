"""What a merged model knows it does not know: posteriors and their rivals after gradient matching of A and B.

``{source}_default``: the package's default merge (votes by change, tokens joined); draws of the merged posterior as
they come and at a fitted width, what the merge itself carried out, the full matrix measured again at the merge, and
draws with its covariance. With equal votes, on which the number of directions was found: ``{source}_posterior``, draws
and the full matrix with the directions of a single adapter; ``{source}_linearised``, the merge's own covariances and
the full matrix with ``MORE``. ``adamw_ensemble``, ``adamw_default_ensemble``: four trainings of A and four of B, merged
one by one, averaged after. ``adamw_dropout``, ``adamw_default_dropout``: the merge of adapters trained with dropout,
which stays on for 8 passes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_world import arms
from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.linearised import WIDTHS, linearised, whole_fisher
from benchmarks.closed_world.merging import record
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said, nll_of
from benchmarks.closed_world.ways import METHODS, Way

__all__ = ["units"]

EQUAL, DEFAULT = METHODS["equal_votes"], METHODS["joined"]
MORE = 1024
"""Directions, where a single adapter has 256: on more facts than one adapter was taught, all of them unsure."""


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it."""
    group = Group(seed, "ab", optimizers, work)
    made: dict[str, Callable[[Group, arms.Setting], arms.Found]] = {
        "adamw_ensemble": partial(_ensemble, EQUAL),
        "adamw_default_ensemble": partial(_ensemble, DEFAULT),
        "adamw_dropout": partial(_dropout, EQUAL),
        "adamw_default_dropout": partial(_dropout, DEFAULT),
    }
    for source in SOURCES:
        made[f"{source}_default"] = partial(_default, source)
        made[f"{source}_posterior"] = partial(_posterior, source)
        made[f"{source}_linearised"] = partial(_linearised, source)
    return {name: partial(_unit, group, name, make) for name, make in made.items()}


def _unit(group: Group, name: str, make: Callable[[Group, arms.Setting], arms.Found]) -> dict[str, Any]:
    setting = group.setting()
    source, _, method = name.partition("_")
    return record(group, source, method, arms.remembered(name, setting, partial(make, group, setting)))


def _default(source: str, group: Group, setting: arms.Setting) -> arms.Found:
    """Every predictor of the merge that ``vlora merge`` makes by default."""
    posterior, found = group.merged(source, DEFAULT), arms.Found()
    with wearing(posterior) as model:
        mean = setting.items.at_mean(model)
        found.add_point("mean", Said(mean.numpy()), setting.asked)
        nll = nll_of(found["mean"], setting.asked, "fit")
        width = setting.widest_draws(model, posterior, nll, WIDTHS)
        for name, scale in (("draws", 1.0), ("draws, fitted width", width)):
            draws = setting.items.under_draws(model, posterior.scaled(scale))
            found[name] = Said.of_draws(draws.numpy(), antithetic=True)
        whole = whole_fisher(model, setting.train, MORE)
        arms.add_directed(found, setting, model, posterior, whole, nll)
        more, facts = linearised(model, posterior, setting.items, mean, setting.asked, whole)
    found.update(more)
    found.facts |= facts | {"draws: width": width}
    return found


def _posterior(source: str, group: Group, setting: arms.Setting) -> arms.Found:
    """The mean, draws, and the full matrix as it is measured for a single adapter."""
    posterior, found = group.merged(source, EQUAL), arms.Found()
    with wearing(posterior) as model:
        mean = setting.items.at_mean(model)
        found.add_point("mean", Said(mean.numpy()), setting.asked)
        found["draws"] = Said.of_draws(setting.items.under_draws(model, posterior).numpy(), antithetic=True)
        whole = whole_fisher(model, setting.train)
        more, facts = linearised(model, posterior, setting.items, mean, setting.asked, whole, kinds=())
    found.update(more)
    found.facts |= facts
    return found


def _linearised(source: str, group: Group, setting: arms.Setting) -> arms.Found:
    """The covariances that the merge carried out, and the full matrix with more directions."""
    posterior, found = group.merged(source, EQUAL), arms.Found()
    with wearing(posterior) as model:
        mean = setting.items.at_mean(model)
        whole = whole_fisher(model, setting.train, MORE)
        more, facts = linearised(model, posterior, setting.items, mean, setting.asked, whole)
    found.update(more)
    found.facts |= facts
    return found


def _ensemble(way: Way, group: Group, setting: arms.Setting) -> arms.Found:
    """Mixture of the merges of the first runs, the second runs, ..."""
    found, said = arms.Found(), []
    for run in range(arms.MEMBERS):
        with wearing(group.merged("adamw", way, run)) as model:
            said.append(setting.items.at_mean(model))
    found.add_point("mixture", Said.of_draws(torch.stack(said).numpy(), antithetic=False), setting.asked)
    return found


def _dropout(way: Way, group: Group, setting: arms.Setting) -> arms.Found:
    found = arms.Found()
    with wearing(group.merged("adamw_dropout", way)) as model:
        found.add_point("mean", Said(setting.items.at_mean(model).numpy()), setting.asked)
        found["draws"] = Said.of_draws(setting.items.with_dropout(model).numpy(), antithetic=False)
    return found
