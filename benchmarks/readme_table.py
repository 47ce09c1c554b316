"""What every benchmark's ``table.py`` shares: records, Student's t, the block between two markers of a README."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "END",
    "START",
    "Records",
    "interval",
    "markdown",
    "mean",
    "number",
    "read_results",
    "replaced",
    "row",
    "t_quantile",
    "with_half_width",
    "write_tables",
]

START, END = "<!-- table:start -->", "<!-- table:end -->"
Records = dict[str, dict[str, Any]]


def read_results(folder: Path) -> Records:
    """Every record below the folder by its name, such as ``tasks/sst2_float32_0``."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.json"))
    }


def row(*cells: str) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A whole table in Markdown."""
    return "\n".join([row(*header), "|" + "---|" * len(header), *(row(*cells) for cells in rows)])


def mean(values: Any) -> float:
    """Mean of the values that are known, NaN of none."""
    known = np.asarray(values, dtype=float)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else math.nan


def number(value: float, digits: int) -> str:
    """A number as text, a dash for NaN."""
    return "—" if math.isnan(value) else f"{value:.{digits}f}"


def interval(values: np.ndarray, digits: int) -> str:
    """Mean of the known values and its 95 % interval."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return "—"
    half = t_quantile(len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return (
        f"{known.mean():+.{digits}f} [{known.mean() - half:+.{digits}f}, {known.mean() + half:+.{digits}f}]"
    )


def with_half_width(values: np.ndarray, digits: int = 3, scale: float = 1.0) -> str:
    """Mean of the known values ± half of its 95 % interval; of one value the value alone."""
    known = scale * values[~np.isnan(values)]
    if len(known) < 2:
        return number(mean(known), digits)
    half = t_quantile(len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return f"{known.mean():.{digits}f} ± {half:.{digits}f}"


def t_quantile(df: int) -> float:
    """.975 quantile of Student's t with ``df`` degrees of freedom: bisection on the integral of its density."""
    log_scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        x = np.linspace(0.0, middle, 4001)
        mass = math.exp(log_scale) * np.trapezoid((1 + x * x / df) ** (-(df + 1) / 2), x)
        low, high = (middle, high) if mass < 0.475 else (low, middle)
    return low


def replaced(text: str, new: str) -> str:
    """The text with another block between its markers.

    Raises:
        SystemExit: The markers are missing, doubled or in the wrong order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or text.count(START) > 1 or text.count(END) > 1:
        raise SystemExit(f"expected one {START} and after it one {END}; put them where the tables belong")
    return f"{before}{START}\n{new}{END}{after}"


def write_tables(
    folder: Path, block: Callable[[Path], str], description: str, arguments: Sequence[str] | None = None
) -> None:
    """Make the tables of a benchmark and put them into its README, or print them.

    Args:
        folder: Of the benchmark.
        block: What stands between the markers, made from the folder of the JSON files; ends with a line break.
        description: For ``--help``.
        arguments: Of the command line; None for the process's own.

    Raises:
        SystemExit: There is no such folder, or the README has no place for the tables.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=folder / "results", help="folder of the JSON files")
    parser.add_argument("--readme", type=Path, default=folder / "README.md", help="file with the two markers")
    parser.add_argument("--print", action="store_true", help="show the block, change nothing")
    args = parser.parse_args(arguments)
    if not args.results.is_dir():
        raise SystemExit(f"{args.results} is not a folder; run run.py first or give --results")
    new = block(args.results)
    if args.print:
        print(new)
    else:
        args.readme.write_text(replaced(args.readme.read_text(encoding="utf-8"), new), encoding="utf-8")
