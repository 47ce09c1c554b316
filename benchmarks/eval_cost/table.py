"""Tables of ``README.md`` from ``results/*.json``: nothing stands between the markers that is not computed here.

python -m benchmarks.eval_cost.table [--print]
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.eval_cost.cases import CASES
from benchmarks.readme_table import Records, read_results, row, write_tables

HERE = Path(__file__).parent
UNITS = {
    "all-naive-1": "naive, 1 vector",
    "all-lm_eval-1": "lm-evaluation-harness, 1 vector",
    "all-ours-1": "vlora, 1 vector",
    "all-naive-8": "naive, 8 draws",
    "all-ours-8": "vlora, 8 draws",
    "upper-ours-8": "vlora, 8 draws, upper third adapted",
}
TITLES = {
    "arc_easy": "ARC-Easy, answers in words",
    "openbookqa": "OpenBookQA, answers in words",
    "arc_easy_letters": "ARC-Easy, answers by letter",
}


def block(folder: Path) -> str:
    """All tables and the conditions they hold under."""
    every = read_results(folder)
    records = {name: record for name, record in every.items() if "/" not in name}
    linearised = {name: record for name, record in every.items() if name.startswith("agreement/")}
    parts = [table(records, case) for case in CASES if f"{case}-all-naive-1" in records]
    return "\n".join([*parts, conditions(records), *agreement(linearised)]) + "\n"


def table(records: Records, case: str) -> str:
    """One line a method: tokens through the blocks, passes, CPU time, distance to the naive loop."""
    naive = records[f"{case}-all-naive-1"]
    whole = sum(naive["choice_tokens"].values())
    lines = [
        f"### {TITLES[case]}\n",
        f"{naive['items']} items, {naive['shots']} shots; one forward-equivalent (F) is {whole:,} tokens\n",
        "| method | tokens | F | naive passes | CPU seconds | passes by CPU time | max difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for unit, title in UNITS.items():
        found = records.get(f"{case}-{unit}")
        if found is None:
            continue
        tokens, seconds = found["block_tokens"], found["cpu_seconds"]
        cells = [
            title, f"{tokens:,.0f}", f"{tokens / whole:.2f}", f"{tokens / naive['block_tokens']:.2f}",
            f"{seconds:.1f}", f"{seconds / naive['cpu_seconds']:.2f}", difference(records, case, unit),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference(records: Records, case: str, unit: str) -> str:
    """Largest difference of a probability to the naive loop with as many vectors and the same adapter."""
    adapter, _, vectors = unit.split("-")
    reference = records.get(f"{case}-{adapter}-naive-{vectors}")
    if reference is None or unit.split("-")[1] == "naive":
        return "–"
    pairs = zip(records[f"{case}-{unit}"]["log_probs"], reference["log_probs"], strict=True)
    gap = max(
        abs(math.exp(a) - math.exp(b)) for left, right in pairs for a, b in zip(left, right, strict=True)
    )
    return f"{gap:.0e}"


def agreement(records: Records) -> list[str]:
    """The linearised variance against that of the draws at every width, then what both cost."""
    if not records:
        return []
    some = next(iter(records.values()))
    noise = math.sqrt(4 / some["draws"])
    lines = [
        "\n### Linearised variance against draws\n",
        f"{some['items']} items, {some['draws']} mirrored draws, which know a variance to {100 * noise:.0f} %\n",
        row(
            "model",
            "task",
            "covariance",
            "width",
            "rank correlation",
            "linearised / draws",
            "median relative error",
        ),
        "|---|---|---|---:|---:|---:|---:|",
    ]
    units = sorted(records.values(), key=lambda unit: unit.get("covariance", "independent"))
    for unit in units:
        head = named(unit)
        for found in unit["widths"]:
            numbers = (found[name] for name in ("rank_correlation", "ratio", "median_relative_error"))
            lines.append(row(*head, f"{found['width']:g}", *(f"{number:.3f}" for number in numbers)))
    lines += [
        "\nCost of one scoring of all items, in passes at the mean: by tokens as vlora counts them, by CPU time.\n",
        row("model", "task", "covariance", "K", "linearised", "8 draws", "linearised, CPU", "8 draws, CPU"),
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for unit in units:
        cost, mean = unit["cost"], unit["cost"]["mean"]
        shares = [
            cost[name][kind] / mean[kind]
            for kind in ("tokens", "cpu_seconds")
            for name in ("linearised", "draws")
        ]
        lines.append(row(*named(unit), str(outputs(unit)), *(f"{share:.1f}" for share in shares)))
    return lines


def named(unit: dict[str, Any]) -> tuple[str, str, str]:
    """Model, task and covariance as the tables have them."""
    covariance = unit.get("covariance", "independent")
    return unit["model"].replace("_", " "), unit["task"].replace("_", " "), covariance


def outputs(unit: dict[str, Any]) -> int:
    """Backward passes of an item: its choices, or one for a text."""
    return 1 if unit["task"] == "causal_lm" else unit["outputs"]


def conditions(records: Records) -> str:
    """Versions and hardware."""
    if not records:
        return "No results yet."
    one = next(iter(records.values()))
    versions = {name: value for record in records.values() for name, value in record["versions"].items()}
    shown = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    loads = sorted(record["hardware"]["load"] for record in records.values())
    hardware = one["hardware"]
    return (
        f"{hardware['machine']}, {hardware['threads']} thread of {hardware['cores']} cores, "
        f"load {loads[0]} to {loads[-1]} (CPU time of the process, not wall-clock). {shown}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the tables into the README, or print them."""
    write_tables(HERE, block, "Tables of the cost benchmark from its JSON files.", arguments)


if __name__ == "__main__":
    main()
