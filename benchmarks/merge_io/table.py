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
COPIES = {"linear": "copy 2", "task_arithmetic": "copy 3", "ties": "copy 3"}
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
    "module_others": {
        "linear_family regmean keep": "vlora, RegMean, rank 16",
        "linear_family fisher keep": "vlora, Fisher, rank 16",
        "linear_family gradient_matching, separable keep": "vlora, gradient matching with h alone (separable), rank 16",
    },
    "module_mats": {
        f"linear_family mats keep 4 {size}": f"vlora, MaTS, rank 16, a module of {size} x {size}"
        for size in (512, 1024, 2048)
    },
}  # fmt: skip


def median(record: dict[str, Any], who: str, key: str) -> float:
    """Median of a quantity over the rounds of a unit."""
    return statistics.median(turn[who][key] for turn in record["rounds"])


def ratios(record: dict[str, Any], above: str, below: str, key: str) -> str:
    """Median and range of the ratios within a round."""
    values = [_own(turn[above], key) / _own(turn[below], key) for turn in record["rounds"]]
    return ranged(values, 2)


def spread(record: dict[str, Any], who: str, key: str) -> str:
    """Median and range over the rounds, if there are several."""
    return ranged([turn[who][key] for turn in record["rounds"]], 1)


def ranged(values: Sequence[float], digits: int) -> str:
    """Median and, of several values, smallest and largest."""
    text = f"{statistics.median(values):.{digits}f}"
    return text + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")


def with_rounds(records: Records, who: str) -> dict[str, Any] | None:
    """One record of all turns that a competitor took part in, whichever files they are in."""
    turns = [turn for record in records.values() for turn in record["rounds"] if who in turn]
    return {"rounds": turns} if turns else None


def checkpoint_table(records: Records) -> str:
    """Whole checkpoints: seconds, memory, and the ratios to a plain copy of the same round."""
    lines = [
        row("what", "rounds", "wall s", "CPU s", "memory MB", "x copy, wall", "x copy, CPU"),
        row("---", *["---:"] * 6),
    ]
    for who, words in {"copy 2": "plain copy, 2 models", "copy 3": "plain copy, 3 models"}.items():
        lines.append(_checkpoint_row(with_rounds(records, who), who, words))
    for method, words in METHODS.items():
        below, ours, theirs = COPIES[method], f"vlora {method}", f"mergekit {method}"
        lines.append(_checkpoint_row(with_rounds(records, ours), ours, f"vlora, {words}", below))
        lines.append(
            _checkpoint_row(
                with_rounds(records, theirs), theirs, f"mergekit 0.1.5, {words}, less its start-up", below
            )
        )
    return "\n".join(lines) + "\n"


def _checkpoint_row(record: dict[str, Any] | None, who: str, words: str, below: str | None = None) -> str:
    if record is None:
        return row(words, *["—"] * 6)
    known = all(below in turn for turn in record["rounds"])
    wall, cpu, memory = (
        [_own(turn[who], key) for turn in record["rounds"]] for key in ("wall", "cpu", "memory")
    )
    return row(
        words, str(len(record["rounds"])), ranged(wall, 1), ranged(cpu, 1), f"{statistics.median(memory) / 1e6:.0f}",
        *(ratios(record, who, below, key) if below and known else "" for key in ("wall", "cpu")),
    )  # fmt: skip


def _own(found: dict[str, Any], key: str) -> float:
    """A quantity of the work alone: less that of the start-up, where that was measured apart."""
    return found[key] - found.get("start_up", {}).get(key, 0.0)


def round_table(records: Records) -> str:
    """Every round: the load before its measurements, and wall seconds of ours."""
    names = ["copy 2", "vlora linear", "copy 3", "vlora task_arithmetic", "vlora ties"]
    lines = [
        row("round", "load", "copy, 2", "linear", "copy, 3", "task arithmetic", "TIES"),
        row("---", *["---:"] * 6),
    ]
    for name, record in records.items():
        if name.startswith("round_"):
            turn = record["rounds"][0]
            loads = [turn[who]["load_before"] for who in turn]
            cells = [f"{turn[who]['wall']:.1f}" for who in names]
            lines.append(row(name.removeprefix("round_"), f"{min(loads):.1f} to {max(loads):.1f}", *cells))
    return "\n".join(lines) + "\n"


def phase_table(records: Records) -> str:
    """CPU seconds of all threads by phase of a merge."""
    found = {m: records[f"phases_{m}"] for m in METHODS if f"phases_{m}" in records}
    if not found:
        return "Not measured.\n"
    turns = {m: record["rounds"][0][f"phases {m}"] for m, record in found.items()}
    sums: dict[str, float] = {}
    for turn in turns.values():
        for phase, spent in turn["phases"].items():
            sums[phase] = max(sums.get(phase, 0.0), spent["cpu"])
    lines = [row("phase", *(METHODS[m] for m in turns)), row("---", *["---:"] * len(turns))]
    for phase in sorted(sums, key=lambda name: -sums[name]):
        cells = [turn["phases"].get(phase) for turn in turns.values()]
        lines.append(row(phase, *("" if cell is None else f"{cell['cpu']:.2f}" for cell in cells)))
    lines.append(row("whole process, CPU", *(f"{turn['cpu']:.2f}" for turn in turns.values())))
    lines.append(row("wall clock", *(f"{turn['wall']:.2f}" for turn in turns.values())))
    layers = next(iter(found.values()))["layers"]
    return f"Models of {layers} layers.\n\n" + "\n".join(lines) + "\n"


def tile_table(records: Records) -> str:
    """Linear by the size of a tile."""
    record = records.get("tiles")
    if record is None:
        return "Not measured.\n"
    lines = [row("entries of a tile", "wall s", "CPU s", "memory MB"), row("---:", *["---:"] * 3)]
    for who in record["rounds"][0]:
        memory = f"{median(record, who, 'memory') / 1e6:.0f}"
        entries = f"2^{int(who.split()[-1]).bit_length() - 1}"
        lines.append(row(entries, spread(record, who, "wall"), spread(record, who, "cpu"), memory))
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
            "Wall seconds of every round, and the load average (what else ran) before its measurements:\n",
            round_table(records),
            "### Where the time goes: CPU seconds of all threads\n",
            phase_table(records),
            "### Linear, 2 models, by the size of a tile\n",
            tile_table(records),
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
