"""What a merged model says about itself: ``merge.json`` for programs, ``README.md`` for people."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from vlora import __version__
from vlora.config import to_plain
from vlora.merge.checkpoints.plan import MergePlan
from vlora.merge.methods import get_method

__all__ = ["card", "hash_files", "merge_json"]


def merge_json(plan: MergePlan, hashes: dict[str, str]) -> str:
    """Settings, lineage and outcome; without dates, so that equal merges give equal files."""
    draft = plan.draft
    rules: dict[str, int] = {}
    for job in draft.jobs:
        rules[type(job.rule).__name__] = rules.get(type(job.rule).__name__, 0) + 1
    settings = to_plain(plan.settings)
    for key in ("threads", "block_megabytes", "overwrite", "output"):
        settings.pop(key)
    content: dict[str, Any] = {
        "format": 1,
        "vlora": __version__,
        "method": draft.method,
        "paper": get_method(draft.method).paper,
        "settings": settings,
        "inputs": draft.sources,
        "tensors": {"total": len(draft.jobs), **dict(sorted(rules.items()))},
        "tokenizer": draft.tokenizer,
        "config_differences": draft.differences,
        "notes": draft.notes,
    }
    if hashes:
        content["file_sha256"] = hashes
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def card(plan: MergePlan) -> str:
    """README.md of the output."""
    environment = Environment(
        loader=PackageLoader("vlora.merge.checkpoints", "."), trim_blocks=True, lstrip_blocks=True
    )
    sources = [{**source, "digest": _digest(source)} for source in plan.draft.sources]
    return environment.get_template("card.md.j2").render(
        title=plan.output.name,
        method=plan.draft.method,
        paper=get_method(plan.draft.method).paper,
        version=__version__,
        sources=sources,
        bases=[s["path"] for s in sources if s["role"] in ("base", "model") and _is_hub_id(s["path"])],
        options=plan.settings.options(),
        tokenizer=plan.draft.tokenizer,
        dtypes=", ".join(sorted({job.dtype for job in plan.draft.jobs})),
        notes=plan.draft.notes,
    )


def hash_files(plan: MergePlan) -> dict[str, str]:
    """SHA-256 of every input file of weights, by its name after the input's folder."""
    found = {}
    for path in sorted({entry.path for job in plan.draft.jobs for entry in job.inputs}):
        with path.open("rb") as file:
            found[f"{path.parent.name}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _digest(source: dict[str, Any]) -> str:
    hashes = source.get("header_sha256") or {"": source.get("mean_sha256") or ""}
    return next(iter(hashes.values()))[:16]


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not Path(path).expanduser().exists()
