"""Un-merge: a merged folder without one of its contributors, the program behind ``vlora merge remove``.

With the ledger (:mod:`vlora.merge.ledger`) the others are merged again from the very inputs: bit for bit what a merge
without the contributor would have been, for every method and gauge; of two, the one that stays comes back as it was.
Where an input of those who stay is gone, the contributor is subtracted (:mod:`vlora.merge.unmerge.subtract`) and the
residual is reported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlora.config import suggest_key
from vlora.errors import ConfigError, IncompatibleAdaptersError, PosteriorFormatError
from vlora.files import check_output_folder
from vlora.merge.adapters.ancestor import Ancestor
from vlora.merge.adapters.keep import read_keep
from vlora.merge.adapters.prior import read_prior
from vlora.merge.config import MergeConfig, check_apart
from vlora.merge.in_memory import merge_with_report
from vlora.merge.ledger import ANCESTOR, Contributor, Ledger, read_ledger
from vlora.merge.run import Page, write_merge
from vlora.merge.unmerge.subtract import subtract
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256

__all__ = ["Removal", "remove_contributors"]


@dataclass(frozen=True)
class Removal:
    """What a removal did."""

    output: Path
    removed: Sequence[str]
    left: Sequence[str]
    way: str
    """``merged again`` or ``subtracted``."""
    reproduced: bool | None
    """Whether the ledger gave the merge itself again, bit for bit; None where an input of it was not at hand."""
    residual: float
    """Upper estimate of the relative difference to a merge of the others; 0 is exact."""


@dataclass(frozen=True)
class _Job:
    """What was asked for."""

    folder: Path
    merged: Posterior
    removed: Sequence[str]
    output: Path
    sources: Mapping[str, str]
    overwrite: bool
    page: Page | None
    inputs: dict[str, Posterior] = field(default_factory=dict)
    """Contributors that are at hand."""
    ancestor: list[Posterior] = field(default_factory=list)
    """Of a merge of one lineage, once it was read."""


def remove_contributors(
    merged: str | Path,
    contributors: Sequence[str],
    output: str | Path,
    *,
    sources: Mapping[str, str] | None = None,
    overwrite: bool = False,
    page: Page | None = None,
) -> Removal:
    """Take contributors out of a merged folder and write what is left as a new posterior folder.

    Args:
        merged: Folder that ``vlora merge`` wrote.
        contributors: Names as ``merge_report.json`` has them; at least one must stay.
        output: Folder to write.
        sources: Name -> folder of inputs that have moved.
        overwrite: Whether a former adapter at ``output`` may be replaced.
        page: Renders ``report.html``, as for :func:`vlora.merge.run.run_merge`.

    Returns:
        What was done, and how far it may be off.

    Raises:
        ConfigError: No such contributor, nobody would be left, the folder was changed after the merge, or the output
            is the merged folder or one of its inputs.
        IncompatibleAdaptersError: An input is gone or was changed, and the method is no sum.
    """
    folder = Path(merged).expanduser()
    target = check_output_folder(output, "adapter_config.json", overwrite=overwrite)
    _check_adapter(folder)
    job = _Job(
        folder, Posterior.from_pretrained(folder), contributors, target, sources or {}, overwrite, page
    )
    _check_names(job)
    ledger = read_ledger(folder)
    check_apart(target, _places(job, ledger))
    if ledger is None:
        return _subtract(job)
    if tensors_sha256(job.merged.mean) != ledger.result:
        raise ConfigError(
            f"{folder} was changed after the merge, which its ledger cannot know; remove from the merge as it was"
        )
    missing = _load(job, ledger)
    if ledger.ancestor is not None:  # without it no sum can be made
        job.ancestor.append(ledger.ancestor.load(job.folder, job.sources.get(ANCESTOR)))
    left = [entry.name for entry in ledger.contributors if entry.name not in contributors]
    gone = [name for name in left if name in missing]
    if not gone:
        return _merge_again(job, ledger, left)
    if not set(contributors) <= job.inputs.keys():
        raise missing[gone[0]]
    return _subtract(job)


def _places(job: _Job, ledger: Ledger | None) -> list[str]:
    """Everything that is read, or is the only copy of what was merged: none of it is written to."""
    recorded = [str(source["path"]) for source in job.merged.meta.sources if source.get("path")]
    entries = [*ledger.contributors, *([ledger.ancestor] if ledger.ancestor else [])] if ledger else []
    kept = [str(job.folder / entry.folder) for entry in entries if entry.folder]
    start = str(job.merged.meta.ancestor.get("folder") or "")
    return [str(job.folder), *recorded, start, *kept, *job.sources.values()]


def _load(job: _Job, ledger: Ledger) -> dict[str, IncompatibleAdaptersError]:
    """Read the inputs that are where the ledger says; the reasons for those that are not."""
    missing = {}
    for entry in ledger.contributors:
        try:
            job.inputs[entry.name] = entry.load(job.folder, job.sources.get(entry.name))
        except IncompatibleAdaptersError as error:
            missing[entry.name] = error
    return missing


def _check_files(config: MergeConfig, report: Mapping[str, Any]) -> None:
    """That prior and keep are what they were."""
    for option, read in (("prior", read_prior), ("keep", read_keep)):
        path, known = getattr(config, option), report.get(option, {}).get("sha256")
        if path is not None and known and read(path).sha256 != known:
            raise IncompatibleAdaptersError(
                f"{option} {path} is not the file that was merged with: its tensors have another hash; put the file "
                "back as it was"
            )


def _merge_again(job: _Job, ledger: Ledger, left: Sequence[str]) -> Removal:
    if ledger.config.prior or ledger.config.keep:
        _check_files(ledger.config, _read_report(job.folder))
    complete = len(job.inputs) == len(ledger.contributors)
    reproduced = _reproduces(ledger, job) if complete else None
    note = f"{', '.join(job.removed)} was taken out of {job.folder.name}: the others were merged again"
    if reproduced is False:
        note += "; the ledger did not give the merge itself again bit for bit (another version or machine?)"
    write_merge(
        _config_of(job, ledger, left), [job.inputs[name] for name in left], job.output, [note], job.page
    )
    return Removal(job.output, job.removed, left, "merged again", reproduced, 0.0)


def _config_of(job: _Job, ledger: Ledger, left: Sequence[str]) -> MergeConfig:
    """The configuration of the others, each under the name it had and at the place where it was found."""
    adapters = []
    for entry, source in zip(ledger.contributors, ledger.config.adapters, strict=True):
        if entry.name in left:
            adapters.append(replace(source, name=entry.name, path=_place(job, entry)))
    ancestor = _place(job, ledger.ancestor) if ledger.ancestor else None
    return replace(
        ledger.config,
        adapters=tuple(adapters),
        ancestor=ancestor,
        output=str(job.output),
        overwrite=job.overwrite,
    )


def _place(job: _Job, entry: Contributor) -> str:
    """Where an input was found."""
    if entry.name in job.sources:
        return job.sources[entry.name]
    copied = job.folder / entry.folder if entry.folder else None
    return str(copied) if copied is not None and copied.is_dir() else entry.path


def _reproduces(ledger: Ledger, job: _Job) -> bool:
    """Whether merging all recorded inputs again gives the recorded merge to the last bit."""
    config = ledger.config
    names = [entry.name for entry in ledger.contributors]
    again, _ = merge_with_report(
        [job.inputs[name] for name in names],
        method=config.method,
        weights=config.weights(),
        module_weights=config.module_weights(),
        rank=config.rank,
        names=names,
        verify=False,
        module_options=config.module_options,
        num_layers=config.num_layers,
        **{**config.options(), **({"ancestor": job.ancestor[0]} if job.ancestor else {})},
    )
    return tensors_sha256(again.mean) == ledger.result


def _subtract(job: _Job) -> Removal:
    """Take the contributors' own sites or updates out of the merge, because the others are not at hand."""
    report = _read_report(job.folder)
    recorded = {source["name"]: source for source in job.merged.meta.sources}
    result, residual, ancestor = job.merged, 0.0, _ancestor(job)
    for name in job.removed:
        place = job.sources.get(name, recorded[name]["path"])
        adapter = job.inputs.get(name) or Posterior.from_pretrained(place)
        if tensors_sha256(adapter.mean) != recorded[name]["mean_sha256"]:
            raise IncompatibleAdaptersError(
                f"{place} is not the {name!r} that was merged: its mean has another hash; give the adapter as it was: "
                f"--source {name}=FOLDER"
            )
        result, error = subtract(result, adapter, recorded[name], report, ancestor)
        residual = max(residual, error)
    left = [name for name in recorded if name not in job.removed]
    note = f"{', '.join(job.removed)} was subtracted from {job.folder.name}; relative residual about {residual:.2g}"
    meta = replace(
        result.meta, sources=[recorded[name] for name in left], notes=[*job.merged.meta.notes, note]
    )
    replace(result, meta=meta).save_pretrained(job.output, overwrite=job.overwrite)
    return Removal(job.output, job.removed, left, "subtracted", None, residual)


def _ancestor(job: _Job) -> Posterior | None:
    """What a merge of one lineage was relative to, checked against its record."""
    record = job.merged.meta.ancestor
    if job.ancestor or not record.get("included"):
        return job.ancestor[0] if job.ancestor else None
    place = job.sources.get(ANCESTOR, record["folder"])
    try:
        found = Ancestor(Posterior.from_pretrained(place), place)
    except PosteriorFormatError as error:
        raise IncompatibleAdaptersError(
            f"the ancestor of the merge cannot be read ({error}); say where it is: --source {ANCESTOR}=FOLDER"
        ) from None
    if (found.sha256, found.hess_sha256) != (record["sha256"], record["hess_sha256"]):
        raise IncompatibleAdaptersError(
            f"{place} is not the ancestor of the merge: its mean or h has another hash; give it as it was: --source "
            f"{ANCESTOR}=FOLDER"
        )
    return found.posterior


def _check_adapter(folder: Path) -> None:
    if (folder / "merge.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} is a merged model, which keeps no ledger; contributors can be taken out of merged adapters "
            "only. Merge the others again: merge.json has their paths, weights and options"
        )


def _check_names(job: _Job) -> None:
    names = [str(source["name"]) for source in job.merged.meta.sources if "name" in source]
    if not names:
        raise ConfigError(f"{job.folder} is not a merge: its posterior.json lists no inputs")
    known = [*names, ANCESTOR] if job.merged.meta.ancestor.get("included") else names
    for name in [*job.removed, *job.sources]:
        if name not in (names if name in job.removed else known):
            close = suggest_key(name, names).partition("; ")[2].replace("keys here", "contributors")
            raise ConfigError(f"{job.folder} has no contributor {name!r}; {close}")
    if not job.removed:
        raise ConfigError(f"name at least one contributor to take out; contributors: {', '.join(names)}")
    if set(names) <= set(job.removed):
        raise ConfigError("nobody would be left; leave at least one contributor in")


def _read_report(folder: Path) -> Mapping[str, Any]:
    path = folder / "merge_report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PosteriorFormatError(
            f"cannot read {path} ({error}); without it and without a ledger nothing says how the adapters were merged"
        ) from None
