"""The tables of this benchmark, made from its JSON files and from nothing else.

    python -m benchmarks.classification_uq.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
A difference is paired: same task, same seed, same rows. Its interval is mean ± t(.975, n - 1) s.e. over the n tasks'
means over seeds, since seeds of one task share their test rows; of merges, over the means of the n pairs, since the two
domains of a pair share a merged model and the foreign rows. ``±`` is that half width of one thing alone.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classification_uq.left_tables import (
    declined_table,
    joined,
    left_differences,
    left_practice,
    left_table,
    share_practice,
    share_table,
)
from benchmarks.classification_uq.merge_tables import merge_parts
from benchmarks.classification_uq.practice import PARTS, PRACTICE_SEEDS, PRIORS
from benchmarks.classification_uq.scores import GATES, PAIRS, RISKS
from benchmarks.classification_uq.silence import silence
from benchmarks.classification_uq.tasks import TASKS
from benchmarks.posterior_quality.table import load
from benchmarks.readme_table import interval, markdown, mean, number, with_half_width, write_tables

__all__ = ["block", "main"]

HERE = Path(__file__).parent
NAMES = {
    "adamw": "AdamW", "adamw_tempered": "AdamW + temperature", "dropout": "MC dropout, 8",
    "laplace": "diagonal Laplace, 8", "laplace_linearised": "Laplace, linearised",
    "laplace_kronecker": "Laplace, linearised, Kronecker",
    "ivon": "IVON auto, mean", "draws": "IVON auto, 8 draws", "ivon_linearised": "IVON auto, linearised",
    "ivon_kronecker": "IVON auto, linearised, Kronecker",
    "ensemble": "ensemble of 4 AdamW (4 × the cost)", "distance": "AdamW, pooled state", "length": "no model",
}  # fmt: skip
SCORES = {
    "max_probability": "max probability", "entropy": "entropy", "expected_entropy": "expected entropy",
    "information": "information", "logit_variance": "logit variance", "leverage": "leverage",
    "distance": "Mahalanobis distance", "length": "tokens",
}  # fmt: skip
QUALITY = {
    "accuracy, %": ("accuracy", 100.0, 1), "NLL": ("nll", 1.0, 3), "ECE": ("ece", 1.0, 3),
    "floor": ("ece_floor", 1.0, 3), "Brier": ("brier", 1.0, 3), "AUROC correct": ("auroc_correct", 1.0, 3),
    "AURC": ("aurc", 1.0, 4), "AUGRC": ("augrc", 1.0, 4),
}  # fmt: skip
OURS = tuple(("ivon_kronecker", score) for score in ("information", "logit_variance", "leverage"))
BASELINES = (
    ("adamw", "max_probability"), ("adamw_tempered", "entropy"), ("dropout", "entropy"), ("dropout", "information"),
    ("laplace", "information"), ("distance", "distance"), ("ensemble", "entropy"), ("ensemble", "information"),
)  # fmt: skip
"""Detectors of foreign rows that ours are compared with."""
RIVALS = ("adamw", "adamw_tempered", "dropout", "laplace", "laplace_kronecker", "ensemble")
ABSTENTION = {
    "error of answers": "risk test", "answered": "answered test", "ambiguous answered": "answered ambiguous",
    "near answered": "answered near", "far answered": "answered far", "error, other domain": "risk shift",
    "answered, other domain": "answered shift",
}  # fmt: skip
Records = list[dict[str, Any]]


def value(record: dict[str, Any], *path: str) -> float:
    """One number of a record, NaN where there is none."""
    found: Any = record["scores"]
    for key in path:
        found = found.get(key, {}) if isinstance(found, dict) else {}
    return math.nan if found is None or isinstance(found, dict) else float(found)


def task_means(records: Records, *path: str) -> np.ndarray:
    """Mean over seeds for each task of ``TASKS``, ``(tasks,)``; NaN where there is nothing."""
    return np.array(
        [mean([value(r, *path) for r in records if r["task"] == task]) for task in tasks_of(records)]
    )


def tasks_of(records: Records) -> list[str]:
    """Tasks that the records have."""
    return [task for task in TASKS if any(record["task"] == task for record in records)]


def quality_table(records: Records) -> str:
    """Probabilities and their ranking of errors, mean over tasks."""
    rows = []
    for predictor, name in NAMES.items():
        found = [task_means(records, predictor, "quality", key) for key, _, _ in QUALITY.values()]
        if not np.isnan(found[0]).all():
            cells = zip(found, QUALITY.values(), strict=True)
            rows.append([name, *(with_half_width(own, digits, scale) for own, (_, scale, digits) in cells)])
    return markdown(["predictor", *QUALITY], rows)


def quality_differences(records: Records) -> str:
    """Paired differences of the linearised posterior with Kronecker factors."""
    rows = []
    for rival in RIVALS:
        found = {
            key: task_means(records, "ivon_kronecker", "quality", key)
            - task_means(records, rival, "quality", key)
            for key in ("nll", "ece", "auroc_correct", "aurc", "augrc")
        }
        rows.append([NAMES[rival], *(interval(own, 4 if "rc" in key else 3) for key, own in found.items())])
    return markdown(["minus", "NLL", "ECE", "AUROC correct", "AURC", "AUGRC"], rows)


def separation_table(records: Records) -> str:
    """Every score: how well it separates each pair of sets, mean over tasks."""
    columns = [*PAIRS, "near over own, FPR95", "far over own, FPR95"]
    rows = []
    for predictor, name in NAMES.items():
        for score, text in SCORES.items():
            found = [task_means(records, predictor, "separation", score, column) for column in columns]
            if not np.isnan(found).all():
                rows.append([name, text, *(with_half_width(own, 3) for own in found)])
    return markdown(["predictor", "score", *columns], rows)


def separation_differences(records: Records) -> str:
    """Detection of foreign rows: ours less each baseline, AUROC, paired; near and far."""
    rows = []
    for ours in OURS:
        for other in BASELINES:
            found = [
                task_means(records, ours[0], "separation", ours[1], column)
                - task_means(records, other[0], "separation", other[1], column)
                for column in ("near over own", "far over own", "near over ambiguous", "far over ambiguous")
            ]
            rows.append(
                [SCORES[ours[1]], f"{NAMES[other[0]]}: {SCORES[other[1]]}", *(interval(f, 3) for f in found)]
            )
    return markdown(
        ["Kronecker's", "minus", "near", "far", "near over ambiguous", "far over ambiguous"], rows
    )


def by_task(records: Records, column: str) -> str:
    """One pair of sets by task, mean over seeds ± over seeds."""
    rows = []
    for predictor, score in (*BASELINES, *OURS, ("length", "length")):
        rows.append([NAMES[predictor], SCORES[score], *_of_tasks(records, predictor, score, column)])
    return markdown(["predictor", "score", *tasks_of(records)], rows)


def attribution(records: Records) -> str:
    """By task: does information see foreign rows only, and expected entropy ambiguous ones only?"""
    rows = [
        [NAMES[predictor], SCORES[score], column, *_of_tasks(records, predictor, score, column)]
        for predictor in ("ivon_kronecker", "laplace_kronecker", "ensemble")
        for score in ("information", "expected_entropy")
        for column in PAIRS
        if "own" not in column
    ]
    return markdown(["predictor", "score", "AUROC", *tasks_of(records)], rows)


def _of_tasks(records: Records, predictor: str, score: str, column: str) -> list[str]:
    """A cell a task: mean over seeds ± over seeds."""
    path = (predictor, "separation", score, column)
    by = [[value(r, *path) for r in records if r["task"] == task] for task in tasks_of(records)]
    return [with_half_width(np.array(own), 3) for own in by]


def abstention_table(records: Records, risk: float) -> str:
    """What comes of the risk-controlled threshold: shares over all runs, error rates over those that answer."""
    rows = []
    for predictor, name in NAMES.items():
        rules = {"abstention": name} | {
            f"gated by {g}": f"{name}, gated by {g}" for g in GATES.get(predictor, ())
        }
        for kind, text in rules.items():
            if cells := silence(
                [
                    (r["task"], r["scores"][predictor][kind][str(risk)])
                    for r in records
                    if kind in r["scores"].get(predictor, {})
                ],
                risk,
                list(ABSTENTION.values()),
            ):
                rows.append([text, *cells])
    return markdown(["rule", "runs with a threshold", "of them over the limit", *ABSTENTION], rows)


def practice_table(records: Records) -> str:
    """Detection of practice rows by part of the posterior and prior precision, mean over tasks."""
    rows = []
    for prior in PRIORS:
        cells = [
            mean([value(r, f"{part}, {prior:g}", *path) for r in records])
            for part in PARTS
            for path in (("logit_variance", "near over own"), ("nll",))
        ]
        rows.append([f"{prior:g}", *(number(cell, 3) for cell in cells)])
    entropy = mean([value(r, "mean", "entropy", "near over own") for r in records])
    rows.append(["entropy of the mean", number(entropy, 3), *["—"] * (2 * len(PARTS) - 1)])
    header = [text for part in PARTS for text in (f"covariance of {part}", "NLL")]
    return markdown(["prior precision", *header], rows)


def block(root: Path) -> str:
    """Everything between the markers."""
    records, merges = load(root, "main"), load(root, "merge")
    if not records:
        return "No results yet.\n"
    versions = ", ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
    shared = {r["task"]: r["facts"]["members_cpu_seconds"] for r in records}
    seconds = [*shared.values(), *(r["facts"]["cpu_seconds"] for r in records)]
    minutes = sum([*seconds, *(r["cpu_seconds"] for r in [*records, *merges])]) / 60
    practice = load(root, "practice")
    parts = [
        f"From {len(records)} runs ({len(tasks_of(records))} tasks, {len({r['seed'] for r in records})} seeds) and "
        f"{len(merges)} of merging, {minutes:.0f} minutes of one thread in all; {versions}.",
        "**Which rows a score puts above which**, AUROC (FPR95: lower is better), mean over tasks and seeds; here, "
        "under probabilities and under silence ± is over the five tasks, which differ much.",
        separation_table(records),
        "**Attribution by task**; here and in the next two tables ± is over seeds.", attribution(records),
        "**Detectors of foreign rows**, paired differences of AUROC.", separation_differences(records),
        "**Near foreign rows over own rows, by task.**", by_task(records, "near over own"),
        "**Far foreign rows over own rows, by task.**", by_task(records, "far over own"),
        "**Probabilities and ranking of errors** on test rows, a quarter of them ambiguous.", quality_table(records),
        "**IVON linearised with Kronecker factors minus others** (AUROC: higher is better, others lower).",
        quality_differences(records),
    ]  # fmt: skip
    if practice:
        parts += [
            "**Practice rows over own rows, AUROC of the logit variance, and NLL**, by prior.",
            practice_table(practice),
        ]
    found = load(root, "left")
    tested = [r for r in found if r["seed"] not in PRACTICE_SEEDS]
    if tested:
        parts += [
            f"**Share of the prior variance that the data left**, AUROC, {len(tested)} runs.", left_table(tested),
            "**The share under all tensors at once minus other detectors**, paired.", left_differences(tested, records),
        ]  # fmt: skip
    if practised := [r for r in found if r["seed"] in PRACTICE_SEEDS]:
        parts += ["**Practice rows over own rows, by the share left.**", left_practice(practised)]
    shares = joined(load(root, "share"))
    if own := [r for r in shares if r["seed"] not in PRACTICE_SEEDS]:
        parts += [
            "**The share left at the precision of the directions**, foreign over own rows, AUROC.",
            share_table(own, tested),
            "**It minus other detectors**, paired.", left_differences(own, records),
            "**What a gate at its 95 % quantile of validation rows declines**, % of rows.", declined_table(own),
        ]  # fmt: skip
    if practised := [r for r in shares if r["seed"] in PRACTICE_SEEDS]:
        parts += ["**Practice rows over own rows, by its precision.**", share_practice(practised)]
    for risk in RISKS:
        parts += [f"**Silence at {100 * risk:.0f} % risk**, % of rows.", abstention_table(records, risk)]
    if merges:
        parts += merge_parts(merges)
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(HERE, block, "Tables of classification_uq from its JSON files.", arguments)


if __name__ == "__main__":
    main()
