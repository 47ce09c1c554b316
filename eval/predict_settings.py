"""How a predictor reads and scores: what ``vlora calibrate`` fitted, what the caller asks for, or stand-ins."""

from typing import get_args

from vlora.data import Source, Task
from vlora.errors import ConfigError
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior
from vlora.posterior.decisions import Decisions

__all__ = ["chosen_decisions", "reader_for"]


def reader_for(fitted: Decisions | None, task: str | None, fewshot: Source | None) -> TaskReader | None:
    """The reader of a task file: the one asked for, else the one that was fitted on.

    Args:
        fitted: What ``vlora calibrate`` stored.
        task: As asked for; the plain kinds of tasks have no file.
        fewshot: Rows with answers, for prompts that begin with examples.

    Raises:
        ConfigError: No such task, one that asks for answers, or another one than was fitted on.
    """
    known = fitted.task_file if fitted is not None else None
    named = task is not None and task not in get_args(Task)
    name = task if named else known if task is None else None
    if name is None:
        if fewshot is not None:
            raise ConfigError("fewshot is for the prompts of a task file; name it by task")
        return None
    reader = TaskReader(name, fewshot)
    if known is not None and fitted is not None and _other(reader, fitted):
        raise ConfigError(
            f"task is {name} but the calibration was fitted with {known}, asked in another way; leave task out, or "
            "run vlora calibrate with it"
        )
    return reader


def _other(reader: TaskReader, fitted: Decisions) -> bool:
    """Whether a task asks in another way than the one that was fitted on; examples in the data are not known yet."""
    if reader.task.fewshot is not None and not reader.has_fewshot:
        return reader.name != fitted.task_file
    return reader.sha256 != fitted.task_sha256


def chosen_decisions(
    fitted: Decisions | None,
    posterior: Posterior,
    task: str | None,
    num_samples: int | None,
    reader: TaskReader | None = None,
) -> Decisions:
    """What was fitted, or stand-ins without sets and thresholds.

    Args:
        fitted: What ``vlora calibrate`` stored.
        posterior: The adapter.
        task: As asked for; None takes what was fitted.
        num_samples: As asked for.
        reader: Of a task file, which makes it multiple choice.

    Raises:
        ConfigError: Settings contradict the fit, or nothing says what the task is.
    """
    task = "multiple_choice" if reader is not None else task
    if fitted is not None:
        for name, asked in (("task", task), ("num_samples", num_samples)):
            if asked is not None and asked != getattr(fitted, name):
                raise ConfigError(
                    f"{name} is {asked} but the calibration was fitted with {getattr(fitted, name)}; leave it out, or "
                    "run vlora calibrate with it"
                )
        return fitted
    task = task or ("sequence_classification" if posterior.meta.labels else None)
    if task not in ("sequence_classification", "multiple_choice"):
        raise ConfigError(
            "task must be sequence_classification, multiple_choice or the name of a task file where nothing was "
            f"calibrated, got {task}"
        )
    draws = (8 if num_samples is None else num_samples) if posterior.has_hess else 0
    return Decisions(
        task=task,
        predictor="samples" if draws else "mean",
        num_samples=draws,
        antithetic=draws > 0 and draws % 2 == 0,
        temperature=1.0,
    )
