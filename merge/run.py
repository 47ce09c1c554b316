"""The program behind ``vlora merge``: adapter folders in, a posterior folder out."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vlora.config import config_sha256, to_plain
from vlora.files import atomic_folder, check_output_folder
from vlora.merge import ledger
from vlora.merge.adapters.opening import open_adapter
from vlora.merge.config import MergeConfig, check_apart
from vlora.merge.in_memory import merge_adapters, merge_with_report
from vlora.merge.report.report import MergeReport
from vlora.posterior import Posterior

__all__ = ["MergeReport", "merge_adapters", "merge_with_report", "run_merge", "write_merge"]


Page = Callable[[Mapping[str, Any]], str]
"""From the content of ``merge_report.json`` to an HTML page."""


def run_merge(config: MergeConfig, page: Page | None = None) -> Path:
    """Merge adapter folders into a new posterior folder.

    Beside the posterior it holds ``merge.yaml`` (the resolved configuration), ``merge_report.json`` and
    ``merge_ledger.json``.

    Args:
        config: What to merge, how, and where to.
        page: Renders ``report.html`` beside them, see :func:`vlora.recipes.merge_pages.merge_page`.

    Returns:
        The folder that was written.

    Raises:
        VloraError: Anything that does not fit, in one line; nothing is written then.
    """
    output = check_output_folder(config.output, "adapter_config.json", overwrite=config.overwrite)
    check_apart(output, [*(source.path for source in config.adapters), *config.files()])
    loaded = tqdm(config.adapters, desc="read adapters", file=sys.stderr, disable=None)
    opened = [open_adapter(source.path, source.revision) for source in loaded]
    adapters = [replace(s, revision=commit) for s, (_, commit) in zip(config.adapters, opened, strict=True)]
    pinned = replace(config, adapters=adapters)  # a hub id's branch may have moved on when this is read again
    write_merge(pinned, [posterior for posterior, _ in opened], output, page=page)
    return output


def write_merge(
    config: MergeConfig,
    inputs: Sequence[Posterior],
    output: Path,
    notes: Sequence[str] = (),
    page: Page | None = None,
) -> MergeReport:
    """Merge adapters that were already read, and write the folder whole or not at all.

    Args:
        config: What to merge, and how.
        inputs: The adapters of the configuration, in its order.
        output: The checked folder to write.
        notes: Further sentences for the lineage.
        page: As for :func:`run_merge`.

    Returns:
        The report, as written.
    """
    start = time.perf_counter()
    names = config.names()
    merged, report = merge_with_report(
        inputs,
        method=config.method,
        weights=config.weights(),
        module_weights=config.module_weights(),
        rank=config.rank,
        names=names,
        paths=[source.path for source in config.adapters],
        revisions=[source.revision for source in config.adapters],
        base_model=config.base_model,
        progress=True,
        verify=config.verify,
        module_options=config.module_options,
        num_layers=config.num_layers,
        **config.options(),
    )
    report.notes.extend(notes)
    meta = replace(merged.meta, config_sha256=config_sha256(config), notes=[*merged.meta.notes, *notes])
    merged = replace(merged, meta=meta)
    texts = {
        "merge.yaml": yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True),
        "merge_report.json": json.dumps(report.to_json(), indent=2) + "\n",
    }
    if page is not None:
        texts["report.html"] = page(report.to_json())
    ancestor = (
        Posterior.from_pretrained(config.ancestor) if config.ancestor and config.ledger != "none" else None
    )
    if config.ledger != "none":
        texts[ledger.FILE] = ledger.describe_ledger(config, names, inputs, merged, output, ancestor)
    if config.ledger == "full":
        check_output_folder(output, "adapter_config.json", overwrite=config.overwrite)  # after a long merge
        with atomic_folder(output) as folder:  # both whole, or neither
            merged.save_pretrained(folder, extra_files=texts)
            ledger.save_inputs(names, inputs, folder)
            if ancestor is not None:
                ancestor.save_pretrained(folder / ledger.ANCESTOR_FOLDER)
    else:
        merged.save_pretrained(output, overwrite=config.overwrite, extra_files=texts)
    _tell(report, output, time.perf_counter() - start)
    return report


def _tell(report: MergeReport, output: Path, seconds: float) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    told = f", rank {report.rank_summary}" if report.modules else ""
    print(
        f"merged {len(report.adapters)} adapters by {report.method} into {output}{told} ({seconds:.1f} s)",
        file=sys.stderr,
    )
