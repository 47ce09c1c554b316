"""The program behind ``vlora merge``: adapter folders in, a posterior folder out."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import yaml
from tqdm import tqdm

from vlora.config import config_sha256, to_plain
from vlora.files import check_output_folder
from vlora.merge.adapters import merge_adapters, merge_with_report
from vlora.merge.config import AdapterSource, MergeConfig
from vlora.merge.report import MergeReport
from vlora.posterior import Posterior

__all__ = ["MergeReport", "merge_adapters", "merge_with_report", "run_merge"]


def run_merge(config: MergeConfig) -> Path:
    """Merge adapter folders into a new posterior folder.

    Beside the posterior it holds ``merge.yaml`` (the resolved configuration) and ``merge_report.json``.

    Args:
        config: What to merge, how, and where to.

    Returns:
        The folder that was written.

    Raises:
        VloraError: Anything that does not fit, in one line; nothing is written then.
    """
    start = time.perf_counter()
    output = check_output_folder(config.output, "adapter_config.json", overwrite=config.overwrite)
    sources = config.adapters
    loaded = tqdm(sources, desc="read adapters", file=sys.stderr, disable=None)
    posteriors = [Posterior.from_pretrained(source.path, revision=source.revision) for source in loaded]
    merged, report = merge_with_report(
        posteriors,
        method=config.method,
        weights=[source.weight for source in sources],
        module_weights=[source.module_weights for source in sources],
        rank=config.rank,
        names=[_name(source) for source in sources],
        paths=[source.path for source in sources],
        base_model=config.base_model,
        progress=True,
        verify=config.verify,
        **config.options(),
    )
    merged = replace(merged, meta=replace(merged.meta, config_sha256=config_sha256(config)))
    texts = {
        "merge.yaml": yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True),
        "merge_report.json": json.dumps(report.to_json(), indent=2) + "\n",
    }
    merged.save_pretrained(output, overwrite=config.overwrite, extra_files=texts)
    _tell(report, output, time.perf_counter() - start)
    return output


def _name(source: AdapterSource) -> str:
    return source.name or Path(source.path).name or source.path


def _tell(report: MergeReport, output: Path, seconds: float) -> None:
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"merged {len(report.adapters)} adapters by {report.method} into {output} ({seconds:.1f} s)",
        file=sys.stderr,
    )
