"""Units of a benchmark in processes of one thread each."""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["run_units"]


def run_units(description: str, units: Sequence[tuple[Any, ...]], one: Callable[[Any], str]) -> None:
    """Parse ``--data``, ``--work`` and ``--jobs``, and run what is missing.

    Args:
        description: For ``--help``.
        units: Arguments of each unit; the two folders are put behind them.
        one: Runs a unit, unless its file exists, and says so in a line. A function of a module.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the features (2 GB)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, one thread each")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for line in pool.imap_unordered(one, [(*unit, args.data, args.work) for unit in units]):
            print(line, flush=True)
