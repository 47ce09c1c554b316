"""What a merged model says about itself: ``merge.json`` for programs, ``README.md`` for people."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from vlora import __version__
from vlora.config import to_plain
from vlora.merge.checkpoints.agreement import MEASURES, by_kind
from vlora.merge.checkpoints.draft import Draft
from vlora.merge.checkpoints.plan import MergePlan
from vlora.merge.methods import get_method
from vlora.posterior.hub import is_hub_id

__all__ = ["card", "merge_content", "merge_json"]


def merge_json(plan: MergePlan) -> str:
    """:func:`merge_content` as text."""
    return json.dumps(merge_content(plan), indent=2, ensure_ascii=False) + "\n"


def merge_content(plan: MergePlan) -> dict[str, Any]:
    """Settings, lineage and outcome; without dates, so that equal merges give equal files.

    Models are told apart by ``weights_fingerprint`` (:func:`vlora.posterior.hashing.fingerprint_weights`: sizes and 64
    blocks of every file) and, with ``hash_inputs``, by the SHA-256 of every file. ``layout_sha256`` hashes names and
    shapes only.
    """
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
        "inputs": _hashed(draft) if plan.settings.hash_inputs else draft.sources,
        "tensors": {"total": len(draft.jobs), **dict(sorted(rules.items()))},
        "tokenizer": draft.tokenizer,
        "config_differences": draft.differences,
        "identities": draft.identities,
        "agreement": draft.agreement,
        "notes": draft.notes,
    }
    if draft.adapter_report:
        content["adapters"] = draft.adapter_report
    return content


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
        bases=[s["path"] for s in sources if s["role"] in ("base", "model") and is_hub_id(s["path"])],
        options=plan.settings.options(),
        tokenizer=plan.draft.tokenizer,
        dtypes=", ".join(sorted({job.dtype for job in plan.draft.jobs})),
        identities=plan.draft.identities,
        agreement=_rows(plan.draft),
        measures=MEASURES,
        notes=plan.draft.notes,
    )


def _rows(draft: Draft) -> dict[str, dict[str, float]]:
    """Agreement of models, or that of adapters by kind of module: mean lowest cosine and clamped share."""
    modules = draft.adapter_report.get("modules", {})
    renamed = {"lowest_cosine": "cosine", "clamped_fraction": "clamped"}
    found = {
        m: {new: v[old] for old, new in renamed.items() if v.get(old) is not None} for m, v in modules.items()
    }
    return draft.agreement or by_kind(found)


def _hashed(draft: Draft) -> list[dict[str, Any]]:
    """The lineage with the SHA-256 of every weight file of every input; one that serves twice is read once."""
    known: dict[Path, str] = {}
    found = []
    for source, files in zip(draft.sources, draft.source_files, strict=True):
        for path in files:
            if path not in known:
                with path.open("rb") as file:
                    known[path] = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(
            {**source, "file_sha256": {path.name: known[path] for path in files}} if files else source
        )
    return found


def _digest(source: dict[str, Any]) -> str:
    names = ("weights_fingerprint", "mean_sha256", "sha256")
    return str(next((source[name] for name in names if source.get(name)), ""))[:16]
