"""A's and B's adapters merged, and the merged model asked about everybody.

AdamW adapters go in with their Laplace posterior, IVON adapters with their own, both with the Grams of their training
rows. Nothing is chosen here: every method runs at its defaults, weights 1, nothing is cut to a rank.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.closed_world import arms
from benchmarks.closed_world.linearised import linearised
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said, recall, score
from benchmarks.closed_world.worlds import ADAPTERS, data_block, questions, world_files
from vlora import Posterior
from vlora.config import load_config
from vlora.curvature import collect_curvature
from vlora.laplace.config import PosteriorConfig
from vlora.laplace.prepare import prepare
from vlora.merge.in_memory import merge_adapters
from vlora.recipes.closed_world import model_folder

__all__ = ["METHODS", "SOURCES", "units"]

METHODS: dict[str, str | int] = {
    "linear": "lossless",
    "task_arithmetic": "lossless",
    "ties": 128,
    "tsv": "lossless",
    "fisher": 16,
    "regmean": "lossless",
    "gradient_matching": "lossless",
}
"""Method of ``vlora merge`` -> rank that cuts nothing."""
SOURCES = ("adamw", "ivon")
METHOD, POSTERIOR = "gradient_matching", "posterior"
"""The method whose merged posterior is looked at, and the name of that unit."""


def units(
    seed: int, optimizers: dict[str, Any], work: Path, *, posterior: bool = False
) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is to be done for one world: name -> a function that does it.

    Args:
        seed: Of the world.
        optimizers: Name of an arm -> ``optimizer:`` block.
        work: Folder of worlds and adapters.
        posterior: Draws and the linearised model of one method, instead of every method at its mean.
    """
    world = _World(seed, optimizers, work)
    if posterior:
        return {f"{source}_{POSTERIOR}": partial(world.merged, source, POSTERIOR) for source in SOURCES}
    jobs = {
        f"{source}_{method}": partial(world.merged, source, method)
        for source in SOURCES
        for method in METHODS
    }
    return {f"{source}_alone": partial(world.alone, source) for source in SOURCES} | jobs


class _World:
    """Adapters of a world, read once."""

    def __init__(self, seed: int, optimizers: dict[str, Any], work: Path) -> None:
        self.seed, self.files = seed, world_files(seed, work)
        self.optimizers, self.folder = optimizers, work / f"world_{seed}"
        self._inputs: dict[str, list[Posterior]] = {}

    def setting(self, adapters: str) -> arms.Setting:
        """The questions for one adapter or for both."""
        asked = questions(self.seed, self.files, adapters)
        return arms.Setting(self.seed, self.files, adapters, asked, self.folder, self.optimizers)

    def inputs(self, source: str) -> list[Posterior]:
        """Posteriors of A and B with every Gram that a method may need."""
        if source not in self._inputs:
            self._inputs[source] = [self._input(source, adapter) for adapter in ADAPTERS]
        return self._inputs[source]

    def _input(self, source: str, adapter: str) -> Posterior:
        setting = self.setting(adapter)
        folder = arms.laplace_folder(setting) if source == "adamw" else setting.trained(source)
        posterior = Posterior.from_pretrained(folder)
        config = {
            "adapter": str(folder), "base_model": str(model_folder()), "task": "causal_lm", "batch_size": 64,
            "data": data_block(self.files[f"train_{adapter}"]), "output": str(folder) + ".unused",
        }  # fmt: skip
        run = prepare(load_config(PosteriorConfig, config))
        grams = collect_curvature(
            run.model, run.batches(run.train), max_examples=2048, activations=True, progress=False
        )
        return replace(posterior, curvature=grams)

    def merged(self, source: str, method: str) -> dict[str, Any]:
        """Scores of one merge."""
        setting = self.setting("ab")
        make = partial(self._found, source, method, setting)
        found = arms.remembered(f"{source}_{method}", setting, make)
        base = arms.said("base", setting)["mean"]
        return {
            "source": source,
            "method": method,
            "world": self.seed,
            "scores": {name: score(said, setting.asked, base) for name, said in found.items()},
            "recall": {name: recall(said, setting.asked) for name, said in found.items()},
            "facts": found.facts,
        }

    def _found(self, source: str, method: str, setting: arms.Setting) -> arms.Found:
        """What a merged adapter says at its mean, or under its posterior."""
        drawn = method == POSTERIOR
        name = METHOD if drawn else method
        posterior = merge_adapters(self.inputs(source), method=name, rank=METHODS[name])
        found, asked = arms.Found(), setting.asked
        with wearing(posterior) as model:
            mean = setting.items.at_mean(model)
            found.add_point("mean", Said(mean.numpy()), asked)
            if drawn:
                draws = setting.items.under_draws(model, posterior).numpy()
                found["draws"] = Said.of_draws(draws, antithetic=True)
                given = (posterior, setting.items, mean, asked, setting.train)
                more, facts = linearised(model, *given, kinds=("full",))
                found.update(more)
                found.facts |= facts
        return found

    def alone(self, source: str) -> dict[str, Any]:
        """Recall of the adapters before merging: each about its own people and the base."""
        found = {}
        for adapter, posterior in zip(ADAPTERS, self.inputs(source), strict=True):
            setting = self.setting(adapter)
            with wearing(posterior) as model:
                found[adapter] = recall(Said(setting.items.at_mean(model).numpy()), setting.asked)
        return {"source": source, "method": "alone", "world": self.seed, "recall": found}
