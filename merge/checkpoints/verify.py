"""Golden identities of a merge into a model, on a few tensors of the actual output, before it has its final name.

    single        the method on one model of weight 1, nothing dropped and scale 1, gives that model back
    linear        the sum that the output is, sum_t c_t W_t or W + s B A, in double precision on what safetensors reads;
                  for methods that are no sum, the mean of all inputs as they are read tile by tile
    permutation   the method on the models in the opposite order gives the same tensor
    written       the output as safetensors reads it is, to the last bit, what the method gives again in other blocks

Differences are |X - Y| / sum_t |c_t W_t| in the Frobenius norm, so that weights may cancel (of a permutation: relative
to the tensor); 0 is best. The tensors are chosen by a fixed rule (:func:`chosen_jobs`). Reading by safetensors shares
nothing with the readers of a merge.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from vlora.merge.adapters.identities import worst_difference
from vlora.merge.checkpoints.case import Case
from vlora.merge.checkpoints.config import MODEL_METHODS
from vlora.merge.checkpoints.headers import DTYPES, TensorEntry
from vlora.merge.checkpoints.lora_rules import AddLowRank, OnUpdates
from vlora.merge.checkpoints.matrix_rules import IsoC
from vlora.merge.checkpoints.method_rules import rule_for
from vlora.merge.checkpoints.rules import Copy, WeightedMean, WeightedSum
from vlora.merge.checkpoints.stream import Buffers, Files, TensorJob, TensorStream

if TYPE_CHECKING:
    from vlora.merge.checkpoints.plan import MergePlan

__all__ = ["TENSORS", "Sources", "check_output", "chosen_jobs", "compare_inputs"]

TENSORS = 3
"""How many tensors are looked at."""
_LARGEST = 2**25  # entries; a larger tensor is only taken if there is no other
_STEPS = 8.0  # of the precision of float32, or of the output where that has less
_ALONE = {"scale": 1.0, "density": 1.0, "epsilon": 0.0}  # options that leave a single model as it is
_BLOCK = 2**20  # bytes; not the default of a merge
_MOST_MAPPED = 2**22  # bytes of one file

Tiles = Iterable[tuple[range, Tensor]]


class Sources:
    """Open files: as the merge reads them, and by safetensors for what it is compared with."""

    def __init__(self) -> None:
        self.files = Files()
        self._opened: dict[Path, Any] = {}
        self._mapped: dict[Path, int] = {}

    def read(self, entry: TensorEntry, where: range) -> Tensor:
        """A range of the entries of a tensor in double precision, by safetensors."""
        file = self._open(entry, len(where))
        if not entry.shape:
            return file.get_tensor(entry.name).flatten().double()
        inner = entry.numel // entry.shape[0]
        first, last = where.start // inner, -(-where.stop // inner)
        rows = file.get_slice(entry.name)[first:last].flatten()
        return rows[where.start - first * inner : where.stop - first * inner].double()

    def _open(self, entry: TensorEntry, numel: int) -> Any:
        """The file by safetensors: opening parses the header, which a tile should not pay for.

        What was read of a mapped file stays resident, so it is opened anew after some megabytes.
        """
        path = entry.path
        if path not in self._opened or self._mapped[path] > _MOST_MAPPED:
            self._opened[path], self._mapped[path] = safe_open(path, "pt"), 0
        self._mapped[path] += numel * DTYPES[entry.dtype].itemsize
        return self._opened[path]

    def close(self) -> None:
        """Close all files."""
        self.files.close()
        self._opened.clear()


def chosen_jobs(jobs: Sequence[TensorJob]) -> list[TensorJob]:
    """First, middle and last, in name order, of the tensors that are merged by place and not very large."""
    merged = [j for j in jobs if not isinstance(j.rule, Copy) and j.inputs and j.row_maps is None]
    merged = sorted((j for j in merged if j.tiling.numel), key=lambda j: j.name)
    known = [j for j in merged if j.tiling.numel <= _LARGEST]
    known = known or sorted(merged, key=lambda j: j.tiling.numel)[:1]
    picks = {round(k * (len(known) - 1) / (TENSORS - 1)) for k in range(TENSORS)} if known else ()
    return [known[i] for i in sorted(picks)]


def check_output(plan: "MergePlan", folder: Path) -> dict[str, Any]:
    """Run the identities on the shards in a folder.

    Args:
        plan: The merge.
        folder: Where its shards lie, whole.

    Returns:
        Plain data: tensors, and per identity the largest difference, or why it was left out; empty if there is nothing
        to look at.

    Raises:
        IdentityError: An identity does not hold; which one, where, and by how much.
    """
    places = {name: folder / shard.file for shard in plan.shards for name in shard.tensors}
    jobs, sources, before = chosen_jobs(plan.draft.jobs), Sources(), torch.get_num_threads()
    if not jobs:
        return {}
    torch.set_num_threads(1)  # as in the merge, for the same order of summation
    try:
        single = _alone(plan, jobs, sources)
        linear = {job.name: _linear(job, places[job.name], sources) for job in jobs}
        turned = _permuted(plan, jobs, sources)
        written = {job.name: _written(job, places[job.name], sources) for job in jobs}
    finally:
        sources.close()
        torch.set_num_threads(before)
    least = torch.finfo(torch.float32).eps
    stored = max(least, *(torch.finfo(DTYPES[job.dtype]).eps for job in jobs))
    return {
        "tensors": [job.name for job in jobs],
        "single": single if isinstance(single, str) else worst_difference("single", single, _STEPS * least),
        "linear": worst_difference("linear", linear, _STEPS * stored),
        "permutation": turned
        if isinstance(turned, str)
        else worst_difference("permutation", turned, _STEPS * least),
        "written": worst_difference("written", written, 0.0),
    }


def compare_inputs(job: TensorJob, sources: Sources) -> float:
    """The tensor against the sum of its inputs: a number that means nothing, for the time that an identity takes."""
    return _difference(
        _tiles(job, sources), lambda where: [sources.read(entry, where) for entry in job.inputs]
    )


def _alone(plan: "MergePlan", jobs: Sequence[TensorJob], sources: Sources) -> dict[str, float] | str:
    """Difference per tensor, or why there is none."""
    if not plan.settings.models:
        return "holds for adapters"
    left = [job for job in jobs if job.case is not None and not isinstance(job.rule, IsoC)]
    if not left:
        return "iso_c changes a single model too"
    return {
        job.name: _single(plan.settings.chosen_method, job, job.case, sources) for job in left if job.case
    }


def _single(method: str, job: TensorJob, case: Case, sources: Sources) -> float:
    """Every model alone, by the method."""
    base, rest = job.inputs[: case.from_base], job.inputs[case.from_base :]
    models = rest[: len(rest) // 2] if method == "fisher" else rest
    options = {name: value for name, value in _ALONE.items() if name in MODEL_METHODS[method]}
    worst = 0.0
    for index, model in enumerate(models):
        rule = rule_for(method, case.only(index), options)
        inputs = (*base, model, *rest[len(models) :][index : index + 1])
        tiles = _tiles(replace(job, inputs=inputs, rule=rule), sources)
        worst = max(worst, _difference(tiles, lambda place, model=model: [sources.read(model, place)]))
    return worst


def _permuted(plan: "MergePlan", jobs: Sequence[TensorJob], sources: Sources) -> dict[str, float] | str:
    """Difference per tensor that several models take part in, or why there is none.

    The comparison is in float32, before the rounding to the output's dtype, which would hide what an update changes.
    """
    found = {}
    for job in jobs:
        turned = _turned(plan.settings.chosen_method, job)
        if turned is not None:
            given = (tile for _, tile in _tiles(job, sources))
            found[job.name] = _difference(
                _tiles(turned, sources), lambda where, given=given: [next(given).double()]
            )
    return found or ("one model only" if plan.settings.models else "holds for adapters")


def _turned(method: str, job: TensorJob) -> TensorJob | None:
    """The tensor made of its models in the opposite order; None where there is one, or no method between several."""
    rule, case = job.rule, job.case
    if isinstance(rule, OnUpdates) and rule.case is not None and len(rule.updates) > 1:
        case = rule.case.turned()
        return replace(job, rule=OnUpdates(rule_for(method, case, case.options), rule.updates[::-1], case))
    if case is None or len(case.weights) < 2:
        return None
    base, models = job.inputs[: case.from_base], job.inputs[case.from_base :]
    count = len(case.weights)  # Fisher files follow the models
    inputs = [
        entry for start in range(0, len(models), count) for entry in models[start : start + count][::-1]
    ]
    case = case.turned()
    return replace(job, inputs=(*base, *inputs), rule=rule_for(method, case, case.options), case=case)


def _linear(job: TensorJob, place: Path, sources: Sources) -> float:
    """The output, or the mean of the inputs, against the sum written out."""
    rule, output = job.rule, _stored(job, place, sources)
    if isinstance(rule, WeightedMean):
        shares = list(rule.coefficients)
    elif isinstance(rule, WeightedSum):
        shares = [1 - sum(rule.coefficients), *rule.coefficients]
    elif isinstance(rule, AddLowRank):
        shares = [1.0]
    else:
        shares = [1 / len(job.inputs)] * len(job.inputs)
        output = _tiles(replace(job, rule=WeightedMean(shares)), sources)

    def terms(where: range) -> list[Tensor]:
        found = [c * sources.read(entry, where) for c, entry in zip(shares, job.inputs, strict=True)]
        return found + _low_rank(rule, where) if isinstance(rule, AddLowRank) else found

    return _difference(output, terms)


def _low_rank(rule: AddLowRank, where: range) -> list[Tensor]:
    """Updates in the rows of a tile, in double precision."""
    columns = rule.updates[0].right.shape[1]
    rows = slice(where.start // columns, where.stop // columns)
    return [(update.left[rows].double() @ update.right.double()).flatten() for update in rule.updates]


def _written(job: TensorJob, place: Path, sources: Sources) -> float:
    """The tensor made again, against the file."""
    again = ((where, tile.to(DTYPES[job.dtype])) for where, tile in _tiles(job, sources))
    entry = TensorEntry(job.name, job.dtype, job.shape, place, 0)
    return _difference(again, lambda where: [sources.read(entry, where)])


def _tiles(job: TensorJob, sources: Sources) -> Iterator[tuple[range, Tensor]]:
    """The merged tensor, tile by tile in float32."""
    stream = TensorStream(job, sources.files, Buffers(), _BLOCK)
    known = job.rule.prepare(stream)
    for where, values in stream.passes(job.rule.tile_inputs):
        yield where, job.rule.tile(where, values, known)


def _stored(job: TensorJob, place: Path, sources: Sources) -> Iterator[tuple[range, Tensor]]:
    """The tensor in the output, tile by tile."""
    entry = TensorEntry(job.name, job.dtype, job.shape, place, 0)
    for where in job.tiling.tiles(range(job.tiling.numel)):
        yield where, sources.read(entry, where)


def _difference(ours: Tiles, terms: Callable[[range], list[Tensor]]) -> float:
    """|X - sum of terms| / sum of |terms|."""
    error, sizes = 0.0, torch.zeros(1, dtype=torch.float64)
    for where, tile in ours:
        found = terms(where)
        error += (tile.double() - torch.stack(found).sum(0)).square().sum().item()
        sizes = sizes + torch.stack([term.square().sum() for term in found])
    size = sizes.sqrt().sum().item()
    return error**0.5 / size if size > 0 else error**0.5
