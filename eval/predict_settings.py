"""How a predictor reads and scores: what ``vlora calibrate`` fitted, what the caller asks for, or stand-ins."""

from collections.abc import Mapping
from typing import get_args

from vlora.data import Source, Task
from vlora.errors import ConfigError
from vlora.eval.task_reader import TaskReader
from vlora.posterior import Posterior
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.calibration import KEY, PRIOR
from vlora.posterior.decisions import PREDICTORS, Decisions
from vlora.posterior.draws import known_covariance

__all__ = ["chosen_decisions", "other_task", "reader_for"]


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
    if known is not None and fitted is not None and other_task(reader, fitted):
        raise ConfigError(
            f"task is {name} but the calibration was fitted with {known}, asked in another way; leave task out, or "
            "run vlora calibrate with it"
        )
    return reader


def other_task(reader: TaskReader, fitted: Decisions | AnswerDecisions) -> bool:
    """Whether a task asks in another way than the one that was fitted on; examples in the data are not known yet."""
    if reader.task.fewshot is not None and not reader.has_fewshot:
        return reader.name != fitted.task_file
    return reader.sha256 != fitted.task_sha256


def chosen_decisions(
    fitted: Decisions | None,
    posterior: Posterior,
    task: str | None,
    predictor: str | None,
    num_samples: int | None,
    reader: TaskReader | None = None,
    covariance: str | None = None,
) -> Decisions:
    """What was fitted, or stand-ins where nothing was.

    Args:
        fitted: The decisions of ``calibration.json``; None without.
        posterior: The adapter as read.
        task: As asked for; None leaves it open.
        predictor: As asked for.
        num_samples: As asked for.
        reader: Of a task file, which makes it multiple choice.
        covariance: Of the draws, as asked for.

    Raises:
        ConfigError: Settings that contradict the fit, that the adapter cannot have, or no task to answer.
    """
    task = "multiple_choice" if reader is not None else task
    if fitted is not None:
        asked = {"task": task, "predictor": predictor, "num_samples": num_samples, "covariance": covariance}
        for name, value in asked.items():
            if value is not None and value != getattr(fitted, name):
                key = "calibration.predictor" if name == "predictor" else name
                raise ConfigError(
                    f"{name} is {value} but the calibration was fitted with {getattr(fitted, name)}; leave it out, or "
                    f"run vlora calibrate with {key}={value}"
                )
        return fitted
    if predictor is not None and predictor not in PREDICTORS:
        raise ConfigError(f"predictor must be one of {', '.join(PREDICTORS)}, got {predictor}")
    task = task or ("sequence_classification" if posterior.meta.labels else _calibrated_task(posterior))
    if task == "causal_lm":
        raise ConfigError(
            "vlora predict answers classification, multiple choice and open questions (--task with a task file of kind "
            "open_qa), not texts (causal_lm); score given texts with vlora eval and task: causal_lm"
        )
    if task not in ("sequence_classification", "multiple_choice"):
        raise ConfigError(
            "task must be sequence_classification, multiple_choice or the name of a task file where nothing was "
            f"calibrated, got {task}"
        )
    predictor = predictor or ("samples" if posterior.has_hess and num_samples != 0 else "mean")
    if predictor == "samples" and not posterior.has_hess:
        raise ConfigError("predictor samples needs a posterior; a plain adapter has its mean alone")
    draws = (8 if num_samples is None else num_samples) if predictor == "samples" else 0
    return Decisions(
        task=task,
        predictor=predictor,
        num_samples=draws,
        antithetic=draws > 0 and draws % 2 == 0,
        temperature=1.0,
        covariance=known_covariance(covariance) if draws else "independent",
    )


def _calibrated_task(posterior: Posterior) -> str | None:
    """The task that a width or prior was fitted on, where there are no decisions."""
    stored = posterior.calibration or {}
    found = (stored[key].get("task") for key in (KEY, PRIOR) if isinstance(stored.get(key), Mapping))
    return next((task for task in found if task), None)
