"""A plan for people to read."""

from vlora.merge.checkpoints.plan import MergePlan
from vlora.merge.sizes import shown_size as _size

__all__ = ["render"]


def render(plan: MergePlan) -> str:
    """The plan as text, the verdict last."""
    draft, estimate = plan.draft, plan.estimate
    lines = [f"{draft.method} into {plan.output}"]
    lines += [f"  {_input(source)}" for source in draft.sources]
    rules: dict[str, int] = {}
    for job in draft.jobs:
        rules[type(job.rule).__name__] = rules.get(type(job.rule).__name__, 0) + 1
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(rules.items()))
    dtypes = ", ".join(sorted({job.dtype for job in draft.jobs}))
    lines += [
        f"tensors    {len(draft.jobs)} ({kinds}) in {dtypes}",
        f"read       {_size(plan.bytes_read)} (all passes)",
        f"write      {_size(plan.bytes_written)} in {len(plan.shards)} file(s), {_size(plan.free_bytes)} free",
        f"memory     {_size(estimate.memory_bytes)} beside the libraries, {plan.threads} threads",
        *_held(plan),
        f"time       about {estimate.seconds:.0f} s: {estimate.basis}",
        f"tokenizer  {draft.tokenizer}",
    ]
    for key, values in draft.differences.items():
        lines.append(
            f"config     {key}: " + ", ".join(f"{value!r} in {name}" for name, value in values.items())
        )
    lines += [f"note       {note}" for note in draft.notes]
    for name, keys in draft.missing.items():
        lines += [f"missing    {name}: {key}" for key in keys]
    for name, keys in draft.extra.items():
        lines += [f"extra      {name}: {key}" for key in keys]
    problems = plan.problems
    lines += [f"problem    {problem}" for problem in problems]
    lines.append("cannot be carried out" if problems else "can be carried out")
    return "\n".join(lines)


def _held(plan: MergePlan) -> list[str]:
    """What is not a few blocks: the tensor that takes most memory at once."""
    held = plan.estimate.held_bytes
    if not held:
        return []
    return [
        f"largest    {_size(held)} of that a thread for {plan.estimate.held_for}; fewer threads take less"
    ]


def _input(source: dict) -> str:
    weight = f" weight {source['weight']:g}" if "weight" in source else ""
    size = f" {_size(source['bytes'])}" if "bytes" in source else ""
    return f"{source['role']:8} {source['name']}{weight}{size} ({source['path']})"
