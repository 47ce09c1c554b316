"""Which predictor and task ``vlora predict`` takes: those of the calibration, else what is asked for."""

from collections.abc import Mapping

from vlora.errors import ConfigError
from vlora.posterior import Posterior
from vlora.posterior.calibration import KEY, PRIOR
from vlora.posterior.decisions import PREDICTORS, Decisions

__all__ = ["chosen_decisions"]


def chosen_decisions(
    fitted: Decisions | None,
    posterior: Posterior,
    task: str | None,
    predictor: str | None,
    num_samples: int | None,
) -> Decisions:
    """What was fitted, or stand-ins where nothing was.

    Args:
        fitted: The decisions of ``calibration.json``; None without.
        posterior: The adapter as read.
        task: As asked for; None leaves it open.
        predictor: As asked for.
        num_samples: As asked for.

    Raises:
        ConfigError: Settings that contradict the fit, that the adapter cannot have, or no task to answer.
    """
    if fitted is not None:
        asked = {"task": task, "predictor": predictor, "num_samples": num_samples}
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
            "vlora predict answers classification and multiple choice, not texts (causal_lm); sample answers to open "
            "questions with vlora eval and kind: generation, score given texts with vlora eval and task: causal_lm"
        )
    if task not in ("sequence_classification", "multiple_choice"):
        raise ConfigError(
            f"task must be sequence_classification or multiple_choice where nothing was calibrated, got {task}"
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
    )


def _calibrated_task(posterior: Posterior) -> str | None:
    """The task that a width or prior was fitted on, where there are no decisions."""
    stored = posterior.calibration or {}
    found = (stored[key].get("task") for key in (KEY, PRIOR) if isinstance(stored.get(key), Mapping))
    return next((task for task in found if task), None)
