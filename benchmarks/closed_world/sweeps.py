"""Every merge at its default strength and at the best one: a factor on the merged update.

The factor is chosen on the labelled rows that are not for testing (a half of the people), once by recall (the mean over
the adapters and the base people; among equals by NLL) and once by NLL. Both stand beside the default.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.model import Asked, wearing
from benchmarks.closed_world.scores import Said, nll_of, recall
from benchmarks.closed_world.ways import APART, METHODS, Way
from benchmarks.closed_world.worlds import KNOWN, Questions

__all__ = ["SCALES", "Labelled", "units"]

SCALES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0)
CHOOSING = ("fit", "threshold")


def units(
    seed: int, optimizers: dict[str, Any], work: Path, *, adapters: str
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it."""
    sweep = _Sweep(Group(seed, adapters, optimizers, work))
    ways = {name: way for name, way in (METHODS | APART).items() if way.most >= len(adapters)}
    jobs = {f"{source}_alone": partial(sweep.alone, source) for source in SOURCES}
    return jobs | {
        f"{source}_{name}": partial(sweep.swept, source, name, way)
        for source in SOURCES
        for name, way in ways.items()
    }


class Labelled:
    """The labelled rows of some parts, tokenised once.

    Args:
        asked: All questions.
        parts: Of the rows to keep.
    """

    def __init__(self, asked: Questions, parts: Sequence[str]) -> None:
        rows = [
            i
            for i, (part, group) in enumerate(zip(asked.part, asked.group, strict=True))
            if part in parts and group in KNOWN
        ]
        self.asked = Questions(
            [asked.rows[i] for i in rows], [asked.group[i] for i in rows], ["test"] * len(rows)
        )
        self.items = Asked(self.asked)

    def numbers(self, model: nn.Module) -> dict[str, Any]:
        """Recall by adapter and NLL; all answers are one token, so one pass over the prompts says them."""
        said = Said(self.items.scores(model).log_softmax(-1).double().numpy())
        found: dict[str, Any] = {"recall": recall(said, self.asked), "nll": nll_of(said, self.asked, "test")}
        return found | {f"nll {group}": nll_of(said, self.asked, "test", (group,)) for group in KNOWN}


class _Sweep:
    """Merges of one group, all asked the same."""

    def __init__(self, group: Group) -> None:
        self.group = group

    @cached_property
    def choosing(self) -> Labelled:
        """Rows that the factor is chosen on."""
        return Labelled(self.group.setting().asked, CHOOSING)

    @cached_property
    def test(self) -> Labelled:
        """Rows that are reported."""
        return Labelled(self.group.setting().asked, ("test",))

    def alone(self, source: str) -> dict[str, Any]:
        """Each adapter before the merge about its own people and the base."""
        found = {}
        for adapter, posterior in zip(self.group.adapters, self.group.inputs(source), strict=True):
            with wearing(posterior) as model:
                asked = Labelled(self.group.setting(adapter).asked, ("test",))
                found[adapter] = asked.numbers(model)
        return {"source": source, "method": "alone", "world": self.group.seed, "alone": found}

    def swept(self, source: str, name: str, way: Way) -> dict[str, Any]:
        """One merge at every factor on the rows for choosing, and at up to three on the test rows."""
        with wearing(self.group.merged(source, way)) as model:
            scaled = _Scaled(model)
            tried = {scale: scaled.asked(self.choosing, scale) for scale in SCALES}
            chosen = {
                "default": 1.0,
                "best recall": max(tried, key=lambda s: (_recall(tried[s]), -tried[s]["nll"])),
                "best NLL": min(tried, key=lambda s: tried[s]["nll"]),
            }
            test = {scale: scaled.asked(self.test, scale) for scale in set(chosen.values())}
        return {
            "source": source,
            "method": name,
            "world": self.group.seed,
            "adapters": self.group.adapters,
            "tried": {str(scale): numbers for scale, numbers in tried.items()},
            "found": {which: {"scale": scale, **test[scale]} for which, scale in chosen.items()},
        }


class _Scaled:
    """A worn adapter whose update is multiplied with a factor."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.factors = [p for name, p in model.named_parameters() if ".lora_B." in name]
        self.whole = [factor.detach().clone() for factor in self.factors]

    @torch.no_grad()
    def asked(self, rows: Labelled, scale: float) -> dict[str, Any]:
        """Numbers at a factor."""
        for factor, whole in zip(self.factors, self.whole, strict=True):
            factor.copy_(scale * whole)
        return rows.numbers(self.model)


def _recall(numbers: dict[str, Any]) -> float:
    return sum(numbers["recall"].values()) / len(numbers["recall"])
