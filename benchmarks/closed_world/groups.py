"""The adapters of one world that are merged, read once, with the Grams that a merge may need."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.closed_world import arms
from benchmarks.closed_world.quartets import quartet_files
from benchmarks.closed_world.ways import Way, merged
from benchmarks.closed_world.worlds import data_block, questions, world_files
from vlora import Posterior
from vlora.config import load_config
from vlora.curvature import Votes, collect_curvature
from vlora.laplace.config import PosteriorConfig
from vlora.laplace.prepare import prepare
from vlora.recipes.closed_world import model_folder

__all__ = ["SOURCES", "Group"]

SOURCES = ("adamw", "ivon")


class Group:
    """Adapters of a world: A and B, or A to D of a world of four.

    Args:
        seed: Of the world.
        adapters: ``ab`` or ``abcd``.
        optimizers: Name of an arm -> ``optimizer:`` block.
        work: Folder of worlds and adapters.
    """

    def __init__(self, seed: int, adapters: str, optimizers: dict[str, Any], work: Path) -> None:
        four = len(adapters) > 2
        self.seed, self.adapters, self.optimizers = seed, adapters, optimizers
        self.files = quartet_files(seed, work) if four else world_files(seed, work)
        self.folder = work / f"{'quartet' if four else 'world'}_{seed}"
        self._read: dict[tuple[Any, ...], list[Posterior]] = {}

    def setting(self, adapters: str | None = None) -> arms.Setting:
        """The questions for one adapter, or for all."""
        adapters = adapters or self.adapters
        asked = questions(self.seed, self.files, adapters)
        return arms.Setting(self.seed, self.files, adapters, asked, self.folder, self.optimizers)

    def inputs(
        self,
        source: str,
        rows: int | None = 2048,
        run: int = 0,
        votes: Votes = "equal",
        joined: bool = False,
    ) -> list[Posterior]:
        """Posteriors of the adapters with the Grams of some training rows; AdamW's first run with its Laplace h.

        Args:
            source: The arm that trained them.
            rows: As in :class:`~benchmarks.closed_world.ways.Way`.
            run: Which training, for ensembles.
            votes: As in :class:`~benchmarks.closed_world.ways.Way`.
            joined: As in :class:`~benchmarks.closed_world.ways.Way`; of Grams of some rows.
        """
        key = (source, run, rows, votes, joined)
        if key not in self._read:
            self._read[key] = [self._input(source, one, rows, run, votes, joined) for one in self.adapters]
        return self._read[key]

    def joint(self, source: str) -> Posterior:
        """One adapter that was taught A's and B's facts at once, in the number of steps of one, with its Grams."""
        setting = self.setting()
        folder = setting.trained(source)
        kept = self.folder / "grams" / f"{source}_0_{self.adapters}_2048.safetensors"
        grams = _kept(kept, partial(self._grams, folder, self.adapters, 2048, "equal", False))
        return replace(Posterior.from_pretrained(folder), curvature=grams)

    def merged(self, source: str, way: Way, run: int = 0) -> Posterior:
        """One merge."""
        return merged(way, self.inputs(source, way.rows, run, way.votes, way.joined))

    def _input(
        self, source: str, adapter: str, rows: int | None, run: int, votes: Votes, joined: bool
    ) -> Posterior:
        setting = self.setting(adapter)
        trained = setting.trained(source, run)
        folder = arms.laplace_folder(setting) if source == "adamw" and run == 0 else trained
        posterior = Posterior.from_pretrained(folder)
        if rows is None:  # the same training again, which gathering does not change by a bit
            streamed = setting.trained(source, run, streamed=votes)
            return replace(posterior, curvature=Posterior.from_pretrained(streamed).curvature)
        name = f"{source}_{run}_{adapter}_{rows}" + ("" if votes == "equal" else f"_{votes}")
        kept = self.folder / "grams" / f"{name}{'_joined' if joined else ''}.safetensors"
        grams = _kept(kept, partial(self._grams, folder, adapter, rows, votes, joined))
        return replace(posterior, curvature=grams)

    def _grams(self, folder: Path, adapter: str, rows: int, votes: Votes, joined: bool) -> dict[str, Tensor]:
        config = {
            "adapter": str(folder), "base_model": str(model_folder()), "task": "causal_lm", "batch_size": 64,
            "data": data_block(self.files[f"train_{adapter}"]), "output": str(folder) + ".unused",
        }  # fmt: skip
        run = prepare(load_config(PosteriorConfig, config))
        return collect_curvature(
            run.model,
            run.batches(run.train),
            max_examples=rows,
            votes=votes,
            activations=True,
            joined=joined,
            progress=False,
        )


def _kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a file, made where there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = path.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in make().items()}, partial_file)
        partial_file.rename(path)
    return load_file(path)
