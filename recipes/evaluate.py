"""``vlora eval``: score, compute, and draw the report; or sample answers and judge them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from vlora.config import load_config
from vlora.eval.config import EvalConfig
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.report import write_report
from vlora.eval.results import read_results
from vlora.eval.run import RESULTS, run_eval
from vlora.eval.task_config import expand_task
from vlora.eval.task_scores import write_task_scores

__all__ = ["REPORT", "evaluate", "load_evaluation"]

REPORT = "report.html"


@dataclass(frozen=True)
class _Kind:
    """The one key that says which configuration a file is."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    kind: Literal["generation"] | None = None


def load_evaluation(
    source: str | os.PathLike | Mapping, overrides: Sequence[str] = ()
) -> EvalConfig | GenerationConfig:
    """Read the configuration of an evaluation of either kind.

    Args:
        source: Path of a YAML file, or an already parsed mapping.
        overrides: ``key.sub=value`` strings, applied in order.

    Raises:
        ConfigError: The file is missing or not YAML, no such task, or a wrong key or value.
        DataError: A folder does not hold the task's files.
    """
    if load_config(_Kind, source, overrides).kind is None:
        return load_config(EvalConfig, source, overrides, expand=expand_task)
    return load_config(GenerationConfig, source, overrides, expand=_folder)


def _folder(values: dict[str, Any]) -> dict[str, Any]:
    """``data: FOLDER`` as what it means."""
    data = values.get("data")
    return {**values, "data": {"folder": data}} if isinstance(data, str) else values


def evaluate(config: EvalConfig) -> Path:
    """Evaluate adapters and write ``records.jsonl``, ``results.json``, ``config.yaml`` and ``report.html``.

    Args:
        config: What to evaluate; of a named task, ``task_scores.json`` is written as well.

    Returns:
        The output folder.

    Raises:
        VloraError: See :func:`vlora.eval.run.run_eval`.
    """

    def finish(folder: Path) -> None:
        write_task_scores(folder, config)
        write_report(read_results(folder / RESULTS), folder / REPORT)

    return run_eval(config, finish=finish)
