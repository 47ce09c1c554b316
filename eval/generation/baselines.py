"""The baselines that stand beside every posterior, in results of answers: see :mod:`vlora.eval.baselines`."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.baselines import baseline, ensemble_reason

__all__ = ["answer_baselines"]

_SCORES = {
    "max_probability": ("max_probability",),
    "entropy": ("mean_token_entropy",),
    "length": ("answer_length", "prompt_length"),
}
"""Estimators of every baseline that is one."""


def answer_baselines(
    measured: Mapping[str, Any], models: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """All five, from what :func:`vlora.eval.generation.results.compute_answer_results` found.

    Args:
        measured: Its sections.
        models: Description of every model.
        settings: Settings of the evaluation.
    """
    names = [str(model["name"]) for model in models]
    found = []
    for name, estimators in _SCORES.items():
        rows = [*measured["estimators"], *measured["detection"]]
        have = {row["model"] for row in rows if row["estimator"] in estimators}
        missing = dict.fromkeys(
            [m for m in names if m not in have], "its attempts are all right or all wrong"
        )
        where = f"estimators and detection: {' and '.join(estimators)}"
        found.append(baseline(name, where, [m for m in names if m in have], missing))
    scaled = {row["model"] for row in measured["confidences"] if row["confidence"].endswith("+temperature")}
    reason = "no graded attempts at validation questions (data.validation) to fit it on"
    missing = dict.fromkeys([m for m in names if m not in scaled], reason)
    where = "confidences: max_probability+temperature, and every other confidence with +temperature"
    found.append(baseline("temperature_scaling", where, [m for m in names if m in scaled], missing))
    together = [str(model["name"]) for model in models if model.get("kind") == "ensemble"]
    reasons = {} if together else {"": ensemble_reason(models, settings)}
    found.append(baseline("ensemble", "all sections: model ensemble", together, reasons))
    return found
