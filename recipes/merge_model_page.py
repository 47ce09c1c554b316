"""The HTML page of a merge that wrote a model: self-contained, no script, in the style of the other merge pages."""

from collections.abc import Mapping
from typing import Any

from vlora.merge.checkpoints.agreement import MEASURES
from vlora.merge.sizes import shown_size
from vlora.recipes.merge_figures import ConflictMap, conflict_maps
from vlora.recipes.merge_pages import page

__all__ = ["model_merge_page"]

Rows = Mapping[str, Mapping[str, Any]]
_MAPS = {
    "opposite": (
        0.5,
        "Share of entries of opposite sign: paper is 0, full colour is a half (no agreement) and more.",
    ),
    "distance": (None, "Relative distance: paper is 0, full colour is the largest of this merge."),
    "clamped": (None, "Share that was clamped: paper is 0, full colour is the largest of this merge."),
}
_ELSEWHERE = ("models", "adapters", "tokenizer", "method", "base_model", "into", "verify")
_DIGESTS = {
    "weights_fingerprint": "fingerprint",
    "mean_sha256": "SHA-256 of tensors",
    "sha256": "SHA-256 of Grams",
}


def model_merge_page(content: Mapping[str, Any], findings: Rows) -> str:
    """What a merge into a model did: inputs with hashes, settings, agreement or conflict per module, identities.

    Args:
        content: Content of ``merge.json``.
        findings: What was found per tensor, in the order of the model.
    """
    tensors = {name: row for name, row in findings.items() if any(m in row for m in MEASURES)}
    measures = [m for m in MEASURES if any(m in row for row in tensors.values())]
    adapters = content.get("adapters", {})
    modules, identities = adapters.get("modules", {}), content["identities"] or adapters.get("identities", {})
    total = content["tensors"]["total"]
    return page(
        "model.html.j2",
        title=f"Merge by {content['method']}",
        sub=f"{len(content['inputs'])} inputs, {total} tensors; {content['paper']}",
        notes=content["notes"],
        inputs=[_input(source) for source in content["inputs"]],
        facts=_facts(content),
        differences=content["config_differences"],
        agreement=content["agreement"],
        measures=measures,
        agreement_maps=[m for name, shown in _MAPS.items() for m in _map(tensors, name, *shown)],
        tensors=tensors,
        totals=adapters.get("conflict", {}),
        maps=[{**m, "what": m["name"]} for m in conflict_maps(modules, "increase")],
        apart=[{**m, "what": "all pairs"} for m in conflict_maps(modules, "disagreement", full=2.0)],
        names=[source["name"] for source in adapters.get("adapters", ())],
        modules=modules,
        sensitivity=adapters.get("sensitivity", {}),
        identities={k: v for k, v in identities.items() if isinstance(v, (int, float)) and k != "tolerance"},
        checked=identities.get("tensors", identities.get("modules", [])),
    )


def _map(tensors: Rows, measure: str, full: float | None, how: str) -> list[ConflictMap]:
    """One map of layers and kinds of tensor; none where the measure is nowhere."""
    largest = max((row[measure] for row in tensors.values() if measure in row), default=0.0)
    found = conflict_maps(tensors, measure, full=full or largest or 1.0)
    return [{**m, "what": measure, "how": how} for m in found]


def _input(source: Mapping[str, Any]) -> dict[str, Any]:
    files = {f"SHA-256 of {file}": digest for file, digest in source.get("file_sha256", {}).items()}
    known = {what: source[key] for key, what in _DIGESTS.items() if source.get(key)}
    return {
        **source,
        "digests": files or known,
        "size": shown_size(source["bytes"]) if source.get("bytes") else "–",
    }


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for and how the tensors were made."""
    given = {key: value for key, value in content["settings"].items() if _told(key, value)}
    settings = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in given.items()}
    made = {key: count for key, count in content["tensors"].items() if key != "total"}
    return {
        **settings,
        "tensors made by": ", ".join(f"{count} {name}" for name, count in made.items()),
        "tokenizer": content["tokenizer"],
        "vlora": content["vlora"],
    }


def _told(key: str, value: Any) -> bool:
    """Whether a setting is worth a line: the inputs have a table, and what was not given says nothing."""
    return key not in _ELSEWHERE and value not in (None, {}, [], (), "", False)
