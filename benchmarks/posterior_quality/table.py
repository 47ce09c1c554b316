"""The tables of this benchmark, made from its JSON files and from nothing else.

    python -m benchmarks.posterior_quality.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
A difference is paired: same task, same seed, same test rows. Its interval is mean ± t(.975, n - 1) s.e. over the n
tasks' means over seeds, since seeds of one task share their test rows.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.posterior_quality.further_tables import Records, estimator_table, lengths_table
from benchmarks.posterior_quality.predictors import (
    FOREIGN_BASELINES,
    INFORMATION,
    METRICS,
    NOISY,
    PAIRS,
    ROWS,
)
from benchmarks.posterior_quality.rate_tables import (
    priors_table,
    probe_table,
    pruning_table,
    rates_table,
    shipped_gaps,
    shipped_table,
)
from benchmarks.posterior_quality.width_tables import shapes_table, ways_table
from benchmarks.readme_table import interval, markdown, mean, number, write_tables

HERE = Path(__file__).parent


def load(root: Path, part: str) -> Records:
    """All records of one part."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / part).glob("*.json"))]


def value(records: Records, task: str, seed: int, row: str, metric: str) -> float:
    """One number, NaN where there is no file or the predictor has no such number."""
    arm, predictor, kind = ROWS.get(row) or INFORMATION[row]
    found = _record(records, task, seed, arm)
    if found is None and "_same" in arm and any((r["arm"], r["seed"]) == (arm, seed) for r in records):
        found = _record(records, task, seed, arm.replace("_same", ""))  # both have one rate: not run again
    return found["scores"].get(predictor, {}).get(kind, {}).get(metric, math.nan) if found else math.nan


def _record(records: Records, task: str, seed: int, arm: str) -> dict[str, Any] | None:
    wanted = (task, seed, arm)
    return next((one for one in records if (one["task"], one["seed"], one["arm"]) == wanted), None)


def task_means(records: Records, row: str, metric: str, tasks: Sequence[str]) -> np.ndarray:
    """Mean over seeds for each task, ``(tasks,)``."""
    return np.array([mean([value(records, task, s, row, metric) for s in seeds(records)]) for task in tasks])


def task_differences(
    records: Records, pair: tuple[str, str], metric: str, tasks: Sequence[str]
) -> np.ndarray:
    """Mean over seeds of the paired difference for each task, ``(tasks,)``."""
    return np.array(
        [mean([_difference(records, task, seed, pair, metric) for seed in seeds(records)]) for task in tasks]
    )


def _difference(records: Records, task: str, seed: int, pair: tuple[str, str], metric: str) -> float:
    first, second = (value(records, task, seed, row, metric) for row in pair)
    return first - second


def seeds(records: Records) -> list[int]:
    """Seeds that the IVON runs have."""
    return sorted({record["seed"] for record in records if record["arm"] == "ivon_auto"})


def tasks_of(records: Records) -> list[str]:
    """Tasks that the records have, noisy ones first."""
    found = {record["task"] for record in records}
    return [*(task for task in NOISY if task in found), *sorted(found - set(NOISY))]


def information_table(records: Records) -> str:
    """Foreign rows: mutual information of a posterior less scores of AdamW's own probabilities, AUROC, paired."""
    rows = []
    every = tasks_of(records)
    for row in filter(partial(ran, records), INFORMATION):
        found = task_means(records, row, "foreign_auroc_mutual_information", every)
        gaps = [
            interval(found - _beside(records, row, base, every), 3) for base in FOREIGN_BASELINES.values()
        ]
        rows.append([row, number(mean(found), 3), *gaps])
    return markdown(["information of", "AUROC", *(f"− {name}" for name in FOREIGN_BASELINES)], rows)


def _beside(records: Records, row: str, base: tuple[str, str], tasks: Sequence[str]) -> np.ndarray:
    """Row and metric ``base`` over the seeds that the arm of ``row`` has, ``(tasks,)``."""
    own = {record["seed"] for record in records if record["arm"] == INFORMATION[row][0]}
    used = sorted(own & set(seeds(records)))
    return np.array([mean([value(records, task, seed, *base) for seed in used]) for task in tasks])


def ran(records: Records, row: str) -> bool:
    """Whether there are runs of a predictor's arm."""
    arm = (ROWS.get(row) or INFORMATION[row])[0]
    return any(record["arm"] == arm for record in records)


def main_table(records: Records) -> str:
    """Every predictor, mean over tasks."""
    rows = []
    for row in filter(partial(ran, records), ROWS):
        means = {
            name: mean(task_means(records, row, m, tasks_of(records))) for name, (m, _, _) in METRICS.items()
        }
        rows.append(
            [row, *(number(means[name] * scale, digits) for name, (_, scale, digits) in METRICS.items())]
        )
    return markdown(["predictor", *METRICS], rows)


def task_table(
    records: Records, metric: str, digits: int, scale: float = 1.0, rows: Iterable[str] = ROWS
) -> str:
    """Every predictor by task, mean over seeds."""
    tasks = tasks_of(records)
    cells = {row: task_means(records, row, metric, tasks) * scale for row in rows if ran(records, row)}
    return markdown(
        ["predictor", *tasks], [[row, *(number(v, digits) for v in values)] for row, values in cells.items()]
    )


def pairs_table(records: Records) -> str:
    """Paired differences: over all tasks, and over the noisy ones and the others apart."""
    every = tasks_of(records)
    groups: dict[str, Callable[[str], bool]] = {
        "all tasks": lambda task: True, "noisy": lambda task: task in NOISY, "others": lambda task: task not in NOISY,
    }  # fmt: skip
    rows = []
    for name, pair in PAIRS.items():
        if not all(ran(records, row) for row in pair):
            continue
        for group, belongs in groups.items():
            tasks = [task for task in every if belongs(task)]
            rows.append(
                [name, group, interval(100 * task_differences(records, pair, "accuracy", tasks), 1)]
                + [interval(task_differences(records, pair, m, tasks), 3) for m in ("nll", "ece", "aurc")]
            )
    return markdown(["difference", "tasks", "accuracy, points", "NLL", "ECE", "AURC"], rows)


def health_table(records: Records) -> str:
    """What the posteriors are like."""
    keys = {
        "rank correlation": "rank_correlation", "within tensors": "rank_correlation_within",
        "share moved": "share_moved", "h / reference": "hess_to_reference", "fitted width": "scale",
        "training loss": "train_loss",
    }  # fmt: skip
    rows = []
    for arm in ("ivon_auto", "ivon_published"):
        for task in tasks_of(records):
            facts = [r["facts"] for r in records if (r["arm"], r["task"]) == (arm, task)]
            if facts:
                std = mean([fact["std_quantiles"][1] for fact in facts])
                lr = ", ".join(sorted({f"{fact['lr']:g}" for fact in facts}))
                numbers = [
                    number(mean([fact.get(key, math.nan) for fact in facts]), 2) for key in keys.values()
                ]
                rows.append([arm, task, lr, number(std, 4), *numbers])
    return markdown(["arm", "task", "lr", "median std", *keys], rows)


def block(root: Path) -> str:
    """Everything between the markers."""
    records = load(root, "main")
    if not records:
        return "No results yet.\n"
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    minutes = sum(record["seconds"] for part in ("tune", "main") for record in load(root, part)) / 60
    parts = [
        f"From {len(records)} runs of {len(seeds(records))} seeds and {len(load(root, 'tune'))} of tuning, "
        f"{minutes:.0f} minutes of one thread in all; {versions}.",
        "**All predictors, mean over tasks and seeds.**", main_table(records),
        "**Paired differences** (NLL, ECE, AURC: lower is better).", pairs_table(records),
        "**Foreign rows by mutual information** (higher is better).", information_table(records),
        "**NLL by task.**", task_table(records, "nll", 3),
        "**Accuracy by task, %.**", task_table(records, "accuracy", 1, 100.0),
        "**ECE by task** (the floor of the mean of AdamW is in the first table).", task_table(records, "ece", 3),
        "**AURC by task** (lower is better).", task_table(records, "aurc", 3),
        "**Foreign rows by mutual information, AUROC by task.**",
        task_table(records, "foreign_auroc_mutual_information", 3, rows=INFORMATION),
        "**Foreign rows by entropy, AUROC by task.**", task_table(records, "foreign_auroc_entropy", 3),
        "**The posteriors.**", health_table(records),
        "**Length of the run** (`lengths.py`; both at a learning rate of 1e-3; lowest to highest seed in brackets).",
        lengths_table(load(root, "lengths")),
        "**Estimates of h** (`estimators.py`).", estimator_table(load(root, "estimators")),
        *rate_parts(root, records),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def rate_parts(root: Path, tuned: Records) -> list[str]:
    """Learning rates, shipped defaults, pruning, priors and widths, where they were run."""
    rates, shipped, surgery = (load(root, part) for part in ("rates", "shipped", "surgery"))
    parts = []
    if rates:
        title = "**Learning rates** (`rates.py`, `rates_text.py`): validation NLL of the mean, accuracy in brackets."
        parts += [title, rates_table(rates)]
        parts += [
            "**A probe of the rate**: the one with the lowest training loss early on.",
            probe_table(rates),
        ]
    if shipped:
        parts += ["**The defaults as shipped** (`shipped.py`).", shipped_gaps(shipped, tuned)]
        parts += [shipped_table(shipped, tuned)]
    if surgery:
        parts += ["**Pruning** (`surgery.py`): the mean after it.", pruning_table(surgery)]
        parts += ["**A learned prior** at the same `ess`.", priors_table(surgery)]
    if widths := load(root, "widths"):
        parts += ["**Other widths** (`widths.py`), validation rows: trained so.", ways_table(widths)]
        parts += ["The default's posterior, drawn so.", shapes_table(widths)]
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(HERE, block, "Tables of posterior_quality from its JSON files.", arguments)


if __name__ == "__main__":
    main()
