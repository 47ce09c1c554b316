"""What else there is to choose about the full matrix, on a tuning world: directions, what they leave out, the field.

AdamW's adapter A alone, and its merge with B. Every covariance has the width that ``linearised.py`` allows it. *Tail*
is the precision of what the eigenvectors leave out; *prior* is added to every eigenvalue instead (Sharma et al. 2021).
The adapter alone is asked about strangers elsewhere, too: in the relations that B was taught. ``votes_*``: Kronecker
factors of the adapter alone, with equal votes of the rows and with votes by change.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.linearised import Projected, spreads_of, whole_fisher, widest
from benchmarks.closed_world.model import Asked, wearing
from benchmarks.closed_world.scores import Said, nll_of
from benchmarks.closed_world.ways import METHODS
from benchmarks.closed_world.worlds import KNOWN, Questions
from vlora.eval.metrics.ranking import auroc
from vlora.posterior import Posterior
from vlora.posterior.kronecker import output_covariance

__all__ = ["COVARIANCES", "units"]

COVARIANCES: dict[str, dict[str, dict[str, Any]]] = {
    "a": {
        **{f"{count} directions": {"count": count} for count in (32, 64, 128, 256, 512)},
        **{f"256 directions, tail {tail:g}": {"count": 256, "tail": tail} for tail in (1.0, 100.0, 1000.0)},
        **{
            f"256 directions, prior {prior:g}": {"count": 256, "prior": prior}
            for prior in (1.0, 100.0, 1000.0)
        },
    },
    "ab": {f"{count} directions": {"count": count} for count in (64, 256, 512, 1024)},
}
"""Adapters -> name -> settings of :meth:`~benchmarks.closed_world.linearised.Projected.covariance`."""


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """One unit for the adapter alone, one for the merge."""
    group = Group(seed, "ab", optimizers, work)
    found = {f"directions_{adapters}": partial(_unit, group, adapters) for adapters in COVARIANCES}
    return found | {f"votes_{source}": partial(_votes, group, source) for source in SOURCES}


def _unit(group: Group, adapters: str) -> dict[str, Any]:
    asked = _questions(group, adapters)
    posterior = _posterior(group, adapters)
    items = Asked(asked)
    with wearing(posterior) as model:
        mean = items.scores(model).log_softmax(-1).numpy()
        directions = max(settings["count"] for settings in COVARIANCES[adapters].values())
        whole = whole_fisher(model, group.setting(adapters).train, directions)
        projected = Projected.of(whole, items.gradients(model))
    found = {"mean": _areas(Said(mean), asked) | {"nll": nll_of(Said(mean), asked, "fit")}}
    for name, settings in COVARIANCES[adapters].items():
        said, width = widest(mean, projected.covariance(**settings).numpy(), asked)
        found[name] = _areas(said, asked) | {"width": width, "nll": nll_of(said, asked, "fit")}
    values = whole.values[[0, len(whole.values) // 2, -1]].tolist()
    return {"world": group.seed, "adapters": adapters, "found": found, "eigenvalues": values}


def _votes(group: Group, source: str) -> dict[str, Any]:
    """Information of A's linearised posterior with the Grams of either votes, on the same gradients."""
    asked = _questions(group, "a")
    equal, change = (group.inputs(source, votes=votes)[0] for votes in ("equal", "change"))
    spreads = {
        "independent": spreads_of(equal)["independent"],
        "Kronecker, equal votes": spreads_of(equal)["Kronecker"],
        "Kronecker, votes by change": spreads_of(change)["Kronecker"],
    }
    items = Asked(asked)
    with wearing(equal) as model:
        mean = items.scores(model).log_softmax(-1).numpy()
        batches = [[output_covariance(g, [s])[0] for s in spreads.values()] for g in items.gradients(model)]
    found = {"mean": _areas(Said(mean), asked) | {"nll": nll_of(Said(mean), asked, "fit")}}
    for name, parts in zip(spreads, zip(*batches, strict=True), strict=True):
        said, width = widest(mean, torch.cat(parts).numpy(), asked)
        found[name] = _areas(said, asked) | {"width": width, "nll": nll_of(said, asked, "fit")}
    return {"world": group.seed, "adapters": "a", "source": source, "found": found}


def _posterior(group: Group, adapters: str) -> Posterior:
    if adapters == "a":
        return group.inputs("adamw")[0]
    return group.merged("adamw", METHODS["equal_votes"])


def _questions(group: Group, adapters: str) -> Questions:
    """Rows for fits and tests without near misses; for A alone also strangers in B's relations."""
    asked = group.setting(adapters).asked
    rows = list(zip(asked.rows, asked.group, asked.part, strict=True))
    rows = [row for row in rows if row[1] != "near_miss" and row[2] != "threshold"]
    if adapters != group.adapters:
        whole = group.setting().asked
        own = {row["relation"] for row, name in zip(asked.rows, asked.group, strict=True) if name == "clean"}
        rows += [
            (row, "elsewhere", "test")
            for row, name in zip(whole.rows, whole.group, strict=True)
            if name == "unknown" and row["relation"] not in own
        ]
    return Questions(*(list(column) for column in zip(*rows, strict=True)))


def _areas(said: Said, asked: Questions) -> dict[str, dict[str, float]]:
    """AUROC of strangers against ambiguous facts and against everybody known, by score."""
    group, test = np.array(asked.group), np.array(asked.part) == "test"
    found: dict[str, dict[str, float]] = {}
    for high in ("unknown", "elsewhere"):
        for name, low in (("ambiguous", ("ambiguous",)), ("seen", KNOWN)):
            above, below = test & (group == high), test & np.isin(group, low)
            if above.any():
                label = np.arange(above.sum() + below.sum()) < above.sum()
                found[f"{high} vs {name}"] = {
                    key: float(auroc(np.concatenate([value[above], value[below]]), label))
                    for key, value in said.uncertainty().items()
                }
    return found
