"""The adapters of a WORK folder: trained when first asked for, kept, and read as updates for the merge methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.merge_quality.network import MODULES, Merged
from benchmarks.merge_quality.tasks import Task, head, load_task
from benchmarks.merge_quality.training import Recipe, fit_head, train_adapter
from benchmarks.posterior_quality.tasks import Rows
from vlora.curvature import Votes
from vlora.merge.update import LoraUpdate

LEARNING_RATE = {"trec": 3e-3}
"""Per task, 1e-3 where none is named; fixed beforehand, as ``posterior_quality`` has them."""
CHOICE_ROWS = 200
"""Validation rows per task on which scalars and temperatures are chosen."""
SCALE = 2.0
"""lora_alpha / r."""


@dataclass(frozen=True)
class Adapter:
    """One trained adapter."""

    task: str
    tensors: dict[str, Tensor]
    num_examples: int

    def head(self, index: int = 0) -> Tensor:
        """The head, shape ``(C, 385)``; of a joint run that of one task."""
        return self.tensors[f"head.{index}"]

    def update(self, module: str) -> LoraUpdate:
        """The update of one module with its posterior and Grams, in double precision as a merge reads it."""
        get = {k: v.double() for k, v in self.tensors.items() if k.startswith(f"{module}.")}
        precision: dict[str, Tensor | None] = {"a": None, "b": None}
        prior = {"a": 0.0, "b": 0.0}
        for side in [side for side in precision if f"{module}.hess_{side}" in get]:
            prior[side] = self.num_examples * get[f"{module}.decay_{side}"].item()
            precision[side] = self.num_examples * get[f"{module}.hess_{side}"] + prior[side]
        return LoraUpdate(
            get[f"{module}.b"], get[f"{module}.a"], SCALE, precision["b"], precision["a"], prior["b"], prior["a"],
            get[f"{module}.input_gram"], get[f"{module}.output_gram"], self.task, module,
            get[f"{module}.activation_gram"],
        )  # fmt: skip

    def deltas(self) -> dict[str, Tensor]:
        """Dense update per module."""
        return {module: self.update(module).delta() for module in MODULES}


class Library:
    """Tasks, heads and adapters, from WORK or made now."""

    def __init__(self, data: Path, work: Path, votes: Votes = "equal", joined: bool = False) -> None:
        self.data, self.work, self.joined = data, work, joined
        self.votes: Votes = votes
        self.tasks: dict[str, Task] = {}
        self.keys: dict[tuple[str, str], Tensor] = {}

    @cached_property
    def merged(self) -> Merged:
        """The evaluator."""
        return Merged()

    def task(self, name: str) -> Task:
        """A task."""
        if name not in self.tasks:
            self.tasks[name] = load_task(name, self.data, self.work / "features")
        return self.tasks[name]

    def rows(self, name: str, split: str) -> Rows:
        """Rows of a split; of validation the first that scalars are chosen on."""
        rows = getattr(self.task(name), split)
        return head(rows, CHOICE_ROWS) if split == "validation" else rows

    def states(self, name: str, split: str, deltas: dict[str, Tensor]) -> Tensor:
        """Pooled states of a split under merged weights."""
        rows = self.rows(name, split)
        if (name, split) not in self.keys:
            self.keys[name, split] = self.merged.keys(rows)
        return self.merged.states(rows, self.keys[name, split], deltas)

    def head(self, family: str, name: str) -> Tensor:
        """Where training starts: a linear probe on the base model; for domains the one of ``sst2``, for all."""
        source = self.task(name if family == "mixed" else "sst2")
        rows = source.train
        return fit_head(self.merged.states(rows, self.merged.keys(rows), {}), rows.label, source.num_classes)

    def adapters(
        self, family: str, names: Sequence[str], gauge: str, optimizer: str, seed: int
    ) -> list[Adapter]:
        """One adapter per task."""
        found = []
        for index, name in enumerate(names):
            start = 1000 * seed + (999 if gauge == "shared" else index)
            recipe = Recipe(
                optimizer,
                LEARNING_RATE.get(name, 1e-3),
                seed=1000 * seed + index,
                start=start,
                own_head=family == "mixed",
                votes=self.votes,
                joined=self.joined,
            )
            file = f"{family}_{name}_{gauge}_{optimizer}_{seed}"
            file += ("" if self.votes == "equal" else "_votes") + ("_joined" if self.joined else "")
            found.append(self._trained(file, family, [name], recipe))
        return found

    def joint(self, family: str, names: Sequence[str], seed: int) -> Adapter:
        """One adapter of the same rank for all tasks at once, with the steps of all single runs together."""
        recipe = Recipe("ivon", 1e-3, seed=1000 * seed, start=1000 * seed, own_head=family == "mixed")
        return self._trained(f"{family}{len(names)}_joint_{seed}", family, names, recipe)

    def descendant(
        self,
        ancestor: Adapter | None,
        file: str,
        names: Sequence[str],
        seed: int,
        precision: dict[str, Tensor] | None = None,
    ) -> Adapter:
        """An adapter on domains under the frozen head, from a start of its own or an ancestor, pulled to it by S_0."""
        pull = None
        if precision is not None:
            count = sum(len(self.task(name).train) for name in names)
            pull = {key: (value / count).float() for key, value in precision.items()}
        recipe = Recipe("ivon", 1e-3, seed=seed, start=seed)
        return self._trained(file, "domains", names, recipe, ancestor, pull)

    def _trained(
        self,
        file: str,
        family: str,
        names: Sequence[str],
        recipe: Recipe,
        ancestor: Adapter | None = None,
        pull: dict[str, Tensor] | None = None,
    ) -> Adapter:
        path = self.work / "adapters" / f"{file}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = [(self.task(n), self.head(family, n)) for n in names]
            tensors, _ = train_adapter(parts, recipe, None if ancestor is None else ancestor.tensors, pull)
            partial = path.with_suffix(".partial")
            save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
            partial.rename(path)
        return Adapter(names[0], load_file(path), sum(len(self.task(n).train) for n in names))
