"""Tables of ``README.md`` from ``results/*.json``: nothing stands between the markers that is not computed here.

python -m benchmarks.merge_io.table [--print]
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.readme_table import Records, read_results, row, write_tables

HERE = Path(__file__).parent
METHODS = {
    "linear": "linear, 2 models",
    "task_arithmetic": "task arithmetic, base + 2",
    "ties": "TIES, base + 2",
}
MODULES = {
    "module_linear": {
        "linear_family linear keep": "vlora, mean at rank 16", "peft_module linear": "PEFT `linear` (of factors)",
    },
    "module_sum": {
        "linear_family task_arithmetic lossless": "vlora, sum at rank 64", "peft_module cat": "PEFT `cat`",
    },
    "module_peft_svd": {"peft_module svd": "PEFT `svd` at rank 16"},
    "module_gradient_matching": {
        "linear_family gradient_matching keep": "vlora, gradient matching with full Grams, rank 16",
        "linear_family gradient_matching lossless": "vlora, the same at rank 64",
    },
    "module_short_grams": {
        "linear_family gradient_matching, 64 keep": "vlora, gradient matching with 64 directions a Gram, rank 16",
        "linear_family gradient_matching, 64 lossless": "vlora, the same at rank 64",
    },
}  # fmt: skip


def median(record: dict[str, Any], who: str, key: str) -> float:
    """Median of a quantity over the rounds of a unit."""
    return statistics.median(turn[who][key] for turn in record["rounds"])


def ratio(record: dict[str, Any], above: str, below: str, key: str) -> float:
    """Median of the ratios within a round."""
    return statistics.median(turn[above][key] / turn[below][key] for turn in record["rounds"])


def spread(record: dict[str, Any], who: str, key: str) -> str:
    """Median and range over the rounds, if there are several."""
    values = [turn[who][key] for turn in record["rounds"]]
    ranged = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{ranged}"


def checkpoint_table(records: Records) -> str:
    """Whole checkpoints: seconds, memory, and the ratios to a plain copy."""
    lines = [
        row("what", "wall s", "CPU s", "memory MB", "x copy, wall", "x copy, CPU"),
        row("---", *["---:"] * 5),
    ]
    for method, words in METHODS.items():
        record = records.get(method)
        if record is None:
            lines.append(row(words, *["—"] * 5))
            continue
        ours, theirs = f"vlora {method}", next(who for who in record["rounds"][0] if who.startswith("copy"))
        for who, name in ((theirs, f"plain copy for {words}"), (ours, f"vlora, {words}")):
            ratios = [f"{ratio(record, who, theirs, key):.2f}" for key in ("wall", "cpu")]
            memory = f"{median(record, who, 'memory') / 1e6:.0f}"
            lines.append(row(name, spread(record, who, "wall"), spread(record, who, "cpu"), memory, *ratios))
        other = records.get(f"mergekit_{method}")
        if other is not None:
            turn = other["rounds"][0][f"mergekit {method}"]
            start = turn["start_up"]
            lines.append(
                row(f"mergekit 0.1.5, {words}", f"{turn['wall']:.1f}", f"{turn['cpu']:.1f}",
                    f"{(turn['memory'] - start['memory']) / 1e6:.0f}", "", "")
            )  # fmt: skip
    return "\n".join(lines) + "\n"


def base_table(records: Records) -> str:
    """A rank-16 adapter into its base."""
    record = records.get("into_base")
    if record is None:
        return "Not measured.\n"
    lines = [row("what", "wall s", "CPU s", "memory MB"), row("---", *["---:"] * 3)]
    for who, name in {
        "vlora_into": "vlora, `into: model`",
        "peft_into": "PEFT `merge_and_unload` and save",
    }.items():
        memory = f"{median(record, who, 'memory') / 1e6:.0f}"
        lines.append(row(name, spread(record, who, "wall"), spread(record, who, "cpu"), memory))
    return "\n".join(lines) + "\n"


def module_table(records: Records) -> str:
    """Four adapters of one module."""
    lines = [row("what", "wall s", "CPU s"), row("---", *["---:"] * 2)]
    for unit, competitors in MODULES.items():
        for who, name in competitors.items():
            record = records.get(unit)
            cells = [f"{median(record, who, key):.3f}" for key in ("wall", "cpu")] if record else ["—", "—"]
            lines.append(row(name, *cells))
    return "\n".join(lines) + "\n"


def conditions(records: Records) -> str:
    """Versions and hardware of all results, each value once; load over all measurements."""
    if not records:
        return "From 0 result files.\n"

    def values(key: str) -> str:
        found: dict[str, set[str]] = {}
        for record in records.values():
            for name, value in record[key].items():
                if name != "load":
                    found.setdefault(name, set()).add(str(value))
        return ", ".join(f"{name} {' / '.join(sorted(some))}" for name, some in found.items())

    loads = [turn[who]["load"] for record in records.values() for turn in record["rounds"] for who in turn]
    threads = " / ".join(sorted({str(record["threads"]) for record in records.values()}))
    return (
        f"From {len(records)} result files; threads: {threads}; {values('hardware')}; load average (other work on "
        f"the same cores) at the end of a measurement: {min(loads):.1f} to {max(loads):.1f}; {values('versions')}.\n"
    )


def block(records: Records) -> str:
    """What stands between the markers."""
    return "\n".join(
        [
            conditions(records),
            "### Whole checkpoints, 1.1 B parameters in bf16\n",
            checkpoint_table(records),
            "### A rank-16 adapter on all linear layers into its base\n",
            base_table(records),
            "### Four rank-16 adapters of one 4096 x 4096 module\n",
            module_table(records),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(
        HERE,
        lambda folder: block(read_results(folder)),
        "Tables of the merge_io benchmark from its JSON files.",
        arguments,
    )


if __name__ == "__main__":
    main()
