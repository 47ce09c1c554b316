"""What a task defines beyond accuracy: TruthfulQA's MC1 and MC2, and the hash of what was asked.

``task_scores.json`` lies beside ``results.json`` after every evaluation of a named task.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlora.eval.config import EvalConfig
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.intervals import bootstrap_mean, resample_counts
from vlora.eval.metrics.truthfulness import truthful_mc1, truthful_mc2
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.records import Record, read_records
from vlora.eval.task_files import load_task
from vlora.eval.task_rows import read_task
from vlora.files import atomic_write

__all__ = ["TASK_SCORES", "truthful_rows", "write_task_scores"]

TASK_SCORES = "task_scores.json"


def write_task_scores(folder: str | Path, config: EvalConfig) -> Path | None:
    """Write the scores of a named task beside its records.

    Args:
        folder: Folder with ``records.jsonl``.
        config: The evaluation; without ``data.task_file`` nothing is written.

    Raises:
        DataError: Records or rows that cannot be read.
        OutputError: The file cannot be written.
    """
    data = config.data
    if data.task_file is None:
        return None
    asked = read_task(
        load_task(data.task_file), data.test, fewshot=data.fewshot, max_rows=data.max_rows, seed=data.seed
    )
    marks = {f"test/{number}": row["true"] for number, row in enumerate(asked.rows) if row["true"]}
    records = [r for r in read_records(Path(folder) / "records.jsonl") if r.split == "test"]
    rows = (
        truthful_rows(records, marks, num_bootstrap=config.num_bootstrap, seed=config.seed) if marks else []
    )
    content = {
        "format": 1,
        "task": data.task_file,
        "task_sha256": asked.sha256,
        "shots": asked.shots,
        "rows": rows,
    }
    return atomic_write(Path(folder) / TASK_SCORES, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def truthful_rows(
    records: Sequence[Record],
    marks: Mapping[str, Sequence[bool]],
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """MC1 and MC2 of every model, at the mean and for the mixture of draws, with intervals over questions.

    Args:
        records: Test records of multiple choice; both scores are the same for likelihoods and for probabilities
            normalised over the choices, which the records hold.
        marks: Whether each choice is true, by item; the best true answer comes first.
        num_bootstrap: Resamples of the questions.
        seed: Seed of the resampling.

    Raises:
        DataError: Marks that do not fit a record's choices.
    """
    rows = []
    for model in dict.fromkeys(record.model for record in records):
        own = [record for record in records if record.model == model]
        counts = resample_counts(len(own), num_bootstrap, seed)
        predictors = {"mean": [record.log_probs for record in own]}
        if all(record.sample_log_probs is not None for record in own):
            predictors["samples"] = [_mixture(record) for record in own]
        for predictor, answers in predictors.items():
            pairs = [(np.asarray(a), np.asarray(marks[r.item])) for a, r in zip(answers, own, strict=True)]
            values = {
                "mc1": [truthful_mc1(answer) for answer, _ in pairs],
                "mc2": [truthful_mc2(answer, true) for answer, true in pairs],
            }
            metrics = {name: vars(bootstrap_mean(scores, counts)) for name, scores in values.items()}
            rows.append({"model": model, "predictor": predictor, "metrics": metrics})
    return rows


def _mixture(record: Record) -> Array:
    """Mean probability over draws of every choice, as a logarithm."""
    return mixture_log_probs(np.asarray(record.sample_log_probs)[:, None])[0]
