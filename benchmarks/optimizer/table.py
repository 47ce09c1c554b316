"""Tables of ``README.md`` from ``results/*.json``: nothing stands between the markers that is not computed here.

python -m benchmarks.optimizer.table [--print]
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.readme_table import Records, read_results, row, write_tables

HERE = Path(__file__).parent
NAMES = {
    "randn": "`randn` alone",
    "adamw_loop": "AdamW, for-loop",
    "adamw_foreach": "AdamW, foreach",
    "adamw_fused": "AdamW, fused",
    "ivon_opt": "ivon-opt 0.1.3",
    "vlora_reference": "vlora, reference (`foreach=False`)",
    "vlora_foreach": "vlora, default path",
    "vlora_auto": "vlora, default path, `IVON.auto`",
    "vlora_compiled": "vlora, `compiled=True`",
}
WHOLE_STEP = {
    "adamw": "AdamW, torch's default (on a CPU the for-loop)",
    "adamw_foreach": "AdamW, foreach",
    "adamw_fused": "AdamW, fused (Trainer's default)",
    "ivon": "vlora, default path",
    "ivon_auto": "vlora, `IVON.auto`",
}
CASES = {
    "lora": "10 M entries in 112 LoRA-shaped tensors",
    "small": "1 M entries in 400 tensors of 50 x 50",
    "single": "50 M entries in one tensor",
}


def order_interval(values: Sequence[float]) -> tuple[float, float]:
    """Order statistics around the median that hold the true median with at least 95 %, by the binomial; else all."""
    ordered, n = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < n // 2:
        outside += math.comb(n, rank) / 2**n
        if outside > 0.025:
            break
        rank += 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[n - 1 - rank]


def ratios(above: dict[str, list[float]], below: dict[str, list[float]]) -> list[float]:
    """Ratios of CPU seconds, round by round."""
    return [a / b for a, b in zip(above["cpu"], below["cpu"], strict=True)]


def time_table(records: Records, case: str) -> str:
    """Milliseconds of a draw and a step of one case, and the ratios to AdamW foreach and to the aim."""
    lines = [
        row("what", "CPU ms", "range", "wall ms", "x AdamW foreach", "x aim"),
        row("---", *["---:"] * 5),
    ]
    found = records.get(f"time_{case}", {}).get("output", {}).get("seconds", {})
    for name, words in NAMES.items():
        if name not in found:
            lines.append(row(words, *["—"] * 5))
            continue
        cpu = [1e3 * second for second in found[name]["cpu"]]
        relative = statistics.median(ratios(found[name], found["adamw_foreach"]))
        lines.append(
            row(
                words,
                f"{statistics.median(cpu):.1f}",
                f"{min(cpu):.1f} to {max(cpu):.1f}",
                f"{1e3 * statistics.median(found[name]['wall']):.1f}",
                f"{relative:.2f}",
                f"{statistics.median(ratios(found[name], aim(found))):.2f}" if _has_aim(name) else "",
            )
        )
    return "\n".join(lines) + "\n"


def _has_aim(name: str) -> bool:
    return name == "ivon_opt" or name.startswith("vlora")


def aim(found: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """CPU seconds of ``randn`` plus two AdamW foreach steps, round by round."""
    pairs = zip(found["randn"]["cpu"], found["adamw_foreach"]["cpu"], strict=True)
    return {"cpu": [noise + 2 * adamw for noise, adamw in pairs]}


def memory_table(records: Records) -> str:
    """Peak memory in copies of the trainables."""
    lines = [row("what", "112 tensors", "400 small tensors", "one tensor"), row("---", *["---:"] * 3)]
    for name, words in NAMES.items():
        units = [f"memory_{case}_{name}" for case in CASES]
        if any(unit in records for unit in units):
            lines.append(row(words, *(_copies(records, unit) for unit in units)))
    return "\n".join(lines) + "\n"


def _copies(records: Records, unit: str) -> str:
    if unit not in records:
        return "—"
    output = records[unit]["output"]
    return f"{output['peak_bytes'] / output['trainable_bytes']:.1f}"


def minilm_text(records: Records) -> str:
    """Milliseconds of a whole training step, and the ratio to AdamW's in the same round."""
    if "minilm" not in records:
        return "Not measured.\n"
    output = records["minilm"]["output"]
    found = output["seconds"]
    lines = [
        f"{output['entries']:,} trainable entries in {output['tensors']} tensors, batch {output['batch']} of "
        f"{output['tokens']} tokens; {len(found['adamw']['cpu'])} rounds.\n",
        row(
            "what",
            "CPU ms",
            *(f"x {WHOLE_STEP[one]}" for one in WHOLE_STEP if one in found and "adamw" in one),
        ),
        row("---", "---:", *["---:" for one in found if "adamw" in one]),
    ]
    for name, words in ((name, words) for name, words in WHOLE_STEP.items() if name in found):
        middle = statistics.median(found[name]["cpu"])
        beside = [_ratio(found[name], found[one]) for one in WHOLE_STEP if one in found and "adamw" in one]
        lines.append(row(words, f"{1e3 * middle:.1f}", *beside))
    return "\n".join(lines) + "\n"


def _ratio(own: dict[str, list[float]], other: dict[str, list[float]]) -> str:
    """Median of the ratios of rounds, and its 95 % order-statistic interval."""
    paired = ratios(own, other)
    low, high = order_interval(paired)
    return f"{statistics.median(paired):.3f} [{low:.3f}, {high:.3f}]"


def conditions(records: Records) -> str:
    """Versions and hardware of all results, each value once."""
    if not records:
        return "From 0 result files.\n"

    def values(key: str) -> str:
        found: dict[str, set[str]] = {}
        for record in records.values():
            for name, value in record[key].items():
                if name != "load":
                    found.setdefault(name, set()).add(str(value))
        return ", ".join(f"{name} {' / '.join(sorted(some))}" for name, some in found.items())

    threads = " / ".join(sorted({str(record["threads"]) for record in records.values()}))
    loads = [record["hardware"]["load"] for record in records.values()]
    return (
        f"From {len(records)} result files; threads: {threads}; {values('hardware')}; load average at the end "
        f"of a unit: {min(loads)} to {max(loads)}; {values('versions')}.\n"
    )


def block(records: Records) -> str:
    """What stands between the markers."""
    parts = [conditions(records)]
    for case, words in CASES.items():
        parts += [f"### Draw and step: {words}\n", time_table(records, case)]
    parts += ["### Peak memory, in copies of the trainables\n", memory_table(records)]
    parts += ["### A whole training step of MiniLM with LoRA\n", minilm_text(records)]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(
        HERE,
        lambda folder: block(read_results(folder)),
        "Tables of the optimizer benchmark from its JSON files.",
        arguments,
    )


if __name__ == "__main__":
    main()
