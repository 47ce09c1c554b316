"""The plan of a merge of adapters into an adapter, from headers and small files: what it would do, need and refuse.

No tensor is read, so that what only values tell is left to the merge: NaN, equal A, hashes.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.files import check_output_folder
from vlora.merge.adapters.ancestor import Ancestor, check_lineage
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.checkpoints.headers import DTYPES
from vlora.merge.config import MergeConfig, check_apart
from vlora.merge.layers import OptionsByModule, count_layers
from vlora.merge.methods import get_method
from vlora.merge.plan.cost import module_cost
from vlora.merge.plan.duration import duration
from vlora.merge.plan.gram_files import file_problems, read_gram_headers
from vlora.merge.plan.headers import AdapterHeaders, read_adapter_headers
from vlora.merge.plan.kinds import GRAMS, gram_bytes, module_kind, uncertain_entries
from vlora.merge.plan.needs import curvature_kind, describe_lacking, lacking
from vlora.merge.plan.ranks import planned_rank, planned_summary
from vlora.merge.weights import check_weights

__all__ = ["AdapterPlan", "make_adapter_plan"]

_POSITIVE = ("slerp", "fisher", "regmean", "mats")


@dataclass(frozen=True)
class AdapterPlan:
    """A merge of adapters, looked at before it is done."""

    config: MergeConfig
    adapters: Sequence[AdapterHeaders]
    modules: dict[str, dict[str, Any]]
    """Module -> shape, ranks in and out, and the curvature that gradient matching would use."""
    missing: dict[str, list[str]]
    """Adapter -> modules that others have; it counts as a zero update there."""
    mismatched: dict[str, dict[str, list[int]]]
    """Module -> adapter -> shape, where shapes differ."""
    lacks: dict[str, dict[str, list[str]]]
    """Adapter -> what the method needs -> modules where it is not there."""
    bytes_written: int
    free_bytes: int
    memory_bytes: int
    seconds: float
    """0 where there are problems."""
    basis: str
    notes: list[str]
    problems: list[str]
    ancestor: AdapterHeaders | None = None
    """What all adapters went on from, in a merge of one lineage."""
    bytes_read: int = 0
    """Bytes of all tensors of all adapters, of the ancestor, and of a prior and what the base is to keep."""

    @property
    def rank_summary(self) -> str:
        """Which rank would come out, and whether that cuts; how much it retains only values say."""
        return planned_summary(self.config, self.modules)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for ``vlora merge plan --json``; keys as for a merge that writes a model."""
        sources = zip(self.config.adapters, self.config.weights(), self.adapters, strict=True)
        return {
            "method": self.config.method,
            "options": self.config.options(),
            "output": self.config.output,
            "rank": self.config.rank,
            "rank_summary": self.rank_summary,
            "inputs": [_input(source, weight, adapter) for source, weight, adapter in sources],
            "modules": self.modules,
            "full_tensors": sorted({key for adapter in self.adapters for key in adapter.rest}),
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "free_bytes": self.free_bytes,
            "peak_memory_bytes": self.memory_bytes,
            "seconds": self.seconds,
            "seconds_basis": self.basis,
            "missing": self.missing,
            "mismatched": self.mismatched,
            "lacks": self.lacks,
            "notes": self.notes,
            "problems": self.problems,
        }


def make_adapter_plan(config: MergeConfig) -> AdapterPlan:
    """Read the headers of all adapters and plan the merge.

    Args:
        config: What to merge, how, and where to.

    Raises:
        PosteriorFormatError: An input is no adapter. What can be read but does not fit is in ``problems`` instead.
        CheckpointError: A file is truncated or damaged.
        ConfigError: The output is, holds or lies in an input.
        OutputError: The output is no place to write to.
        OutputExistsError: It holds something else, or a former adapter without ``overwrite``.
    """
    output = check_output_folder(config.output, "adapter_config.json", overwrite=config.overwrite)
    check_apart(output, [*(source.path for source in config.adapters), *config.files()])
    rows = zip(config.adapters, config.names(), strict=True)
    adapters = [read_adapter_headers(source.path, source.revision, name) for source, name in rows]
    ancestor = read_adapter_headers(config.ancestor, None, "ancestor") if config.ancestor else None
    names = sorted({module for adapter in adapters for module in adapter.modules})
    mismatched = _mismatched(names, adapters)
    modules = {name: _module(config, name, adapters) for name in names}
    kinds = {name: module_kind(name, row, adapters, ancestor is not None) for name, row in modules.items()}
    beside = read_gram_headers(config)
    work = [
        module_cost(config, kind).memory
        + gram_bytes(name, adapters)
        + sum(file.bytes_of(name, kind.shape) for file in beside)
        for name, kind in kinds.items()
    ]
    lacks, written = lacking(config, adapters), _written(config, modules, adapters)
    read, held = (
        sum(getattr(a, size) for a in _read(adapters, ancestor)) for size in ("nbytes", "held_bytes")
    )
    read += sum(file.nbytes for file in beside)
    free = _free(output)
    problems = (
        _problems(config, adapters, modules, ancestor)
        + file_problems(config, modules, beside)
        + describe_lacking(lacks, config.method)
        + _space(written, free, output)
    )
    seconds, basis = 0.0, "not estimated"
    if not problems:
        entries = uncertain_entries(modules, adapters)
        try:
            seconds, basis = duration(config, list(kinds.values()), read, written, entries)
        except (ConfigError, IncompatibleAdaptersError) as error:
            problems.append(str(error))  # what the method refuses of random numbers, it refuses of these
    return AdapterPlan(
        config,
        adapters,
        modules,
        {a.name: gone for a in adapters if (gone := [m for m in names if m not in a.modules])},
        mismatched,
        lacks,
        written,
        free,
        held + written + max(work, default=0),
        seconds,
        basis,
        _notes(config, modules, adapters),
        problems,
        ancestor,
        read,
    )


def _read(adapters: Sequence[AdapterHeaders], ancestor: AdapterHeaders | None) -> list[AdapterHeaders]:
    return [*adapters, *([] if ancestor is None else [ancestor])]


def _module(config: MergeConfig, name: str, adapters: Sequence[AdapterHeaders]) -> dict[str, Any]:
    shape = next(adapter.shape(name) for adapter in adapters if name in adapter.modules)
    ranks = {adapter.name: adapter.rank(name) for adapter in adapters}
    kind = curvature_kind(config, name, adapters)
    return {
        "shape": shape,
        "ranks": ranks,
        "rank": planned_rank(config, shape, ranks, kind),
        "curvature": kind,
    }


def _mismatched(names: Sequence[str], adapters: Sequence[AdapterHeaders]) -> dict[str, dict[str, list[int]]]:
    found = {}
    for name in names:
        shapes = {a.name: list(a.shape(name)) for a in adapters if name in a.modules}
        if len({tuple(shape) for shape in shapes.values()}) > 1:
            found[name] = shapes
    return found


def _written(
    config: MergeConfig, modules: dict[str, dict[str, Any]], adapters: Sequence[AdapterHeaders]
) -> int:
    """Bytes of the merged tensors: factors, h in float32 where all have it, and Grams where all have them."""
    first, stochastic = adapters[0], all(adapter.hess for adapter in adapters)
    item = max(DTYPES[e.dtype].itemsize for a in adapters for e in a.mean.values())
    entries = 0
    for row in modules.values():
        rank = row["rank"] or sum(row["ranks"].values())
        entries += rank * sum(row["shape"])
    whole = {key: a.mean[key].numel for a in adapters for key in a.rest}
    grams = sum(e.nbytes for e in first.curvature.values()) if all(a.curvature for a in adapters) else 0
    positive = all(source.weight > 0 for source in config.adapters)
    return (entries + sum(whole.values())) * (item + 4 * stochastic) + grams * positive


def _notes(
    config: MergeConfig, modules: dict[str, dict[str, Any]], adapters: Sequence[AdapterHeaders]
) -> list[str]:
    notes = []
    if config.method == "gradient_matching":
        kinds = [row["curvature"] for row in modules.values()]
        shown = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        notes.append(f"curvature of {len(modules)} modules: {shown}")
    if config.keeps:
        weight = 1.0 if config.keep_weight is None else config.keep_weight
        notes.append(f"keep: {config.keep} holds the merge at the base model, weight {weight:g}")
    plain = [adapter.name for adapter in adapters if not adapter.hess]
    if plain:
        notes.append(f"no posterior in {', '.join(plain)}: the merged adapter is a plain one")
    return notes


def _problems(
    config: MergeConfig,
    adapters: Sequence[AdapterHeaders],
    modules: dict[str, dict[str, Any]],
    ancestor: AdapterHeaders | None,
) -> list[str]:
    found: list[str] = []
    posteriors = [adapter.stand_in() for adapter in adapters]
    for posterior, adapter in zip(posteriors, adapters, strict=True):
        _try(
            found,
            lambda p=posterior, a=adapter: check_adapter(p, a.name, ancestor=config.ancestor is not None),
        )
    for i, j in combinations(range(len(adapters)), 2):
        names = [adapters[i].name, adapters[j].name]
        _try(found, lambda i=i, j=j, n=names: check_together([posteriors[i], posteriors[j]], n))
    if not found:
        everyone = [adapter.name for adapter in adapters]
        _try(found, lambda: check_together(posteriors, everyone, config.base_model))
        if ancestor is not None:
            start = ancestor.stand_in()
            _try(found, lambda: check_together([start, posteriors[0]], ["ancestor", everyone[0]]))
            _try(found, lambda: check_lineage(Ancestor(start, str(config.ancestor)), posteriors, everyone))
    _try(found, lambda: _check_settings(config, [a.name for a in adapters], list(modules), adapters))
    uneven = [name for name, row in modules.items() if len({r for r in row["ranks"].values() if r}) > 1]
    if config.rank == "keep" and uneven:
        ranks = ", ".join(f"{r} in {name!r}" for name, r in modules[uneven[0]]["ranks"].items() if r)
        found.append(
            f"rank: keep needs equal ranks, but they are {ranks} on {uneven[0]} (and differ in {len(uneven)} modules); "
            "set rank to a number or to lossless"
        )
    if config.method == "slerp" and len(adapters) != 2:
        found.append(f"slerp is between two adapters, got {len(adapters)}; use linear")
    negative = [name for name, w in zip(config.names(), config.weights(), strict=True) if w < 0]
    if negative and config.method in _POSITIVE:
        found.append(f"{config.method} is a mean of positive weights, but {negative[0]!r} has a negative one")
    return found


def _check_settings(
    config: MergeConfig, names: Sequence[str], modules: Sequence[str], adapters: Sequence[AdapterHeaders]
) -> None:
    """Weights, and patterns that match nothing."""
    get_method(config.method)
    places = [*modules, *sorted({key for adapter in adapters for key in adapter.rest})]
    layers = config.num_layers or count_layers(places)
    checked = check_weights(config.weights(), len(names), config.module_weights())
    checked.check_patterns(places, names)
    checked = checked.over(places, layers)
    for module in modules:
        checked.counted(module, [i for i, adapter in enumerate(adapters) if module in adapter.modules])
    OptionsByModule({}, config.module_options, layers).check_patterns(modules)


def _try(found: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except (ConfigError, IncompatibleAdaptersError) as error:
        if str(error) not in found:
            found.append(str(error))


def _space(written: int, free: int, output: Path) -> list[str]:
    if written <= free:
        return []
    return [f"{output} needs {written:,} bytes, {free:,} are free; free some space or choose another disk"]


def _free(output: Path) -> int:
    folder = output.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _input(source: Any, weight: float, adapter: AdapterHeaders) -> dict[str, Any]:
    has = {kind: sum(adapter.gram(m, kind) is not None for m in adapter.modules) for kind in GRAMS}
    return {
        "name": adapter.name,
        "path": source.path,
        "revision": source.revision,
        "weight": weight,
        **({"group": source.group} if source.group else {}),
        "bytes": adapter.nbytes,
        "base_model": adapter.meta.base_model.get("id") or adapter.config.get("base_model_name_or_path"),
        "num_examples": adapter.meta.num_examples,
        "modules": len(adapter.modules),
        "has": {"h": sum(adapter.has_h(m) for m in adapter.modules), **has},
    }
