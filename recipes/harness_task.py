"""A task file of vlora's as a task of lm-evaluation-harness: the same prompts, choices and separators."""

import json
import logging
from pathlib import Path
from typing import Any

from vlora.data import SourceConfig, join
from vlora.errors import ConfigError, DataError
from vlora.eval.task_config import task_sources
from vlora.eval.task_reader import choices_task
from vlora.eval.task_rows import read_task

__all__ = ["write_harness_task"]

logger = logging.getLogger(__name__)


def write_harness_task(folder: Path, name: str, data: str | None, fewshot: str | None) -> dict[str, Any]:
    """Write the rows of a task and the harness's file that reads them.

    Prompts carry their solved examples, and choices what stands between prompt and choice, so that the harness scores
    the very strings that ``vlora eval`` scores. Rows without a right answer cannot be scored there; they are counted.

    Args:
        folder: Where to write.
        name: Name of a task of multiple choice, or path of a task file.
        data: Folder or file of its rows; None takes its place on the hub.
        fewshot: Solved rows, for prompts that begin with examples; None takes those of the folder.

    Returns:
        ``task`` (the harness's name for it), ``task_file``, ``task_sha256``, ``shots``, ``rows``, ``unlabelled``.

    Raises:
        ConfigError: No such task, or one that the harness's accuracy does not measure.
        DataError: Rows that cannot be read, or none with a right answer.
    """
    task = choices_task(name)
    if task.true_answers is not None and len(task.true_answers) > 1:
        raise ConfigError(f"task {name} has several right answers a row; score it by vlora eval")
    sources = task_sources(task, name, data)
    test, solved = (_source(source) for source in (sources["test"], fewshot or sources.get("fewshot")))
    asked = read_task(task, test, fewshot=solved)
    rows = [row for row in asked.rows if row["answer"] is not None]
    if not rows:
        raise DataError(f"task {name}: no row has a right answer, so there is nothing to score")
    if len(rows) < len(asked.rows):
        logger.warning("%d of %d rows have no right answer", len(asked.rows) - len(rows), len(asked.rows))
    own = f"vlora_{Path(name).stem}"
    lines = []
    for row in rows:
        prompt = row["prompt"]
        ends = [join(prompt, choice, task.separator)[len(prompt) :] for choice in row["choices"]]
        lines.append(json.dumps({"prompt": prompt, "choices": ends, "answer": row["answer"]}) + "\n")
    (folder / f"{own}.jsonl").write_text("".join(lines), encoding="utf-8")
    content = {
        "task": own,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{own}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        **{"doc_to_text": "prompt", "doc_to_choice": "choices", "doc_to_target": "answer"},
        **{"target_delimiter": "", "num_fewshot": 0},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / f"{own}.yaml").write_text(json.dumps(content), encoding="utf-8")
    return {
        **{"task": own, "task_file": name, "task_sha256": asked.sha256, "shots": asked.shots},
        **{"rows": len(rows), "unlabelled": len(asked.rows) - len(rows)},
    }


def _source(source: Any) -> Any:
    """A source as ``vlora.data`` takes it."""
    return SourceConfig(**source) if isinstance(source, dict) else source
