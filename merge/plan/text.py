"""A plan of a merge of adapters for people to read."""

from collections import Counter
from typing import Any

from vlora.merge.plan.plan import AdapterPlan
from vlora.merge.sizes import shown_size

__all__ = ["render_adapters"]

_SHOWN = 5


def render_adapters(plan: AdapterPlan) -> str:
    """The plan as text, the verdict last."""
    facts = plan.to_json()
    lines = [f"{plan.config.method} into {plan.config.output}"]
    lines += [f"  {_input(source)}" for source in facts["inputs"]]
    lines += [
        f"modules    {_modules(plan)}",
        f"rank       {plan.rank_summary}",
        f"read       {shown_size(plan.bytes_read)}",
        f"write      {shown_size(plan.bytes_written)}, {shown_size(plan.free_bytes)} free",
        f"memory     about {shown_size(plan.memory_bytes)}: inputs, result, and the largest module at work",
        *([] if plan.problems else [f"time       about {plan.seconds:.2g} s: {plan.basis}"]),
    ]
    lines += [f"note       {note}" for note in plan.notes]
    for name, modules in plan.missing.items():
        lines += [f"missing    {name}: {module}" for module in modules[:_SHOWN]]
        lines += [f"missing    {name}: and {len(modules) - _SHOWN} more"] if len(modules) > _SHOWN else []
    for module, shapes in list(plan.mismatched.items())[:_SHOWN]:
        told = ", ".join(f"{m} x {n} in {name}" for name, (m, n) in shapes.items())
        lines.append(f"mismatch   {module}: {told}")
    lines += [f"problem    {problem}" for problem in plan.problems]
    lines.append("cannot be carried out" if plan.problems else "can be carried out")
    return "\n".join(lines)


def _modules(plan: AdapterPlan) -> str:
    """Shapes with ranks in and out, commonest first."""
    kinds: Counter[tuple[Any, ...]] = Counter()
    for row in plan.modules.values():
        kinds[tuple(row["shape"]), tuple(sorted({r for r in row["ranks"].values() if r})), row["rank"]] += 1
    told = [
        f"{count} of {m} x {n}, rank {' and '.join(map(str, ranks))} to {rank or 'by energy'}"
        for ((m, n), ranks, rank), count in kinds.most_common(_SHOWN)
    ]
    more = len(kinds) - _SHOWN
    return f"{len(plan.modules)}: " + "; ".join(told) + (f"; {more} kinds more" if more > 0 else "")


def _input(source: dict[str, Any]) -> str:
    has = ", ".join(f"{what} {count}" for what, count in source["has"].items() if count)
    return (
        f"{source['name']} weight {source['weight']:g} {shown_size(source['bytes'])}, {source['modules']} modules"
        f" ({has or 'no posterior, no curvature'}), base {source['base_model']} ({source['path']})"
    )
