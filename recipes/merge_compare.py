"""``vlora merge compare``: the comparison as text for a terminal."""

from collections.abc import Mapping
from typing import Any

from vlora.recipes.tables import aligned

__all__ = ["comparison_text"]

_SHOWN = 10


def comparison_text(facts: Mapping[str, Any], *, every_module: bool = False) -> str:
    """What the adapters are, how far apart each pair is, and the modules where they differ most.

    Args:
        facts: What :func:`vlora.merge.report.compare.compare` gave.
        every_module: All modules instead of the ten that differ most.
    """
    return "\n\n".join([_adapters(facts), _pairs(facts), _modules(facts, every_module)])


def _adapters(facts: Mapping[str, Any]) -> str:
    tasks = list(dict.fromkeys(t for a in facts["adapters"] for t in a.get("predicted_increase", {})))
    head = ["adapter", "method", "weights", "rank", "norm", "retained", "clamped"]
    lines = [[*head, *(f"increase {task}" for task in tasks)]]
    for a in facts["adapters"]:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in a.get("weights", {}).items())
        rank = a["rank"] if isinstance(a["rank"], int) else f"{a['rank'][0]}-{a['rank'][-1]}"
        increase = [_number(a.get("predicted_increase", {}).get(task)) for task in tasks]
        shown = [a.get("method", a["kind"]), weights or "–", str(rank), f"{a['norm']:.4g}"]
        lines.append(
            [
                a["name"],
                *shown,
                _number(a.get("retained_energy")),
                _number(a.get("clamped_fraction")),
                *increase,
            ]
        )
    return aligned(lines)


def _pairs(facts: Mapping[str, Any]) -> str:
    lines = [["pair", "cosine", "distance", "furthest apart in", "distance there"]]
    for p in facts["pairs"]:
        name = " / ".join(p["between"])
        ends = [p["furthest_module"] or "–", _number(p["furthest_distance"])]
        lines.append([name, _number(p["cosine"]), _number(p["distance"]), *ends])
    return aligned(lines)


def _modules(facts: Mapping[str, Any], every_module: bool) -> str:
    modules = facts["modules"]
    order = sorted(
        modules, key=lambda m: -max((p["distance"] or 0.0 for p in modules[m]["pairs"]), default=0.0)
    )
    shown = list(modules) if every_module else order[:_SHOWN]
    merges = [a for a in facts["adapters"] if a.get("module_increase")]
    head = ["module", *(f"norm {a['name']}" for a in facts["adapters"])]
    head += [f"{' / '.join(p['between'])}: cosine, distance" for p in facts["pairs"]]
    head += [f"worst increase {a['name']}" for a in merges]
    lines = [head]
    for module in shown:
        row = modules[module]
        cells = [f"{norm:.4g}" for norm in row["norm"].values()]
        cells += [f"{_number(p['cosine'])}, {_number(p['distance'])}" for p in row["pairs"]]
        worst = [[v for v in a["module_increase"].get(module, {}).values() if v is not None] for a in merges]
        lines.append([module, *cells, *(_number(max(w, default=None)) for w in worst)])
    rest = len(modules) - len(shown)
    return aligned(lines) + (f"\n{rest} further modules differ less; --modules lists all" if rest else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
