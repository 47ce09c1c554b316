"""The baselines that stand beside every posterior: where they are in the results, and why one is not there.

``max_probability``, ``entropy`` of the mean model, ``temperature_scaling``, ``length`` and ``ensemble``. One that the
data, the models or the task cannot have is listed with its reason, so that none is left out silently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.predictions import ChoiceTable
from vlora.eval.tables import ModelTable
from vlora.eval.text_ensemble import TextEnsembleTable

__all__ = ["BASELINES", "absent_notes", "baseline", "ensemble_reason", "list_baselines"]

BASELINES = {
    "max_probability": "Max probability",
    "entropy": "Entropy of the mean model",
    "temperature_scaling": "Temperature scaling",
    "length": "Length only",
    "ensemble": "Ensemble",
}
"""Name -> what it is called in reports."""
_NO_TOKENS = (
    "an ensemble of texts is a mixture of whole texts, whose next-token distributions are not computed"
)


def baseline(name: str, where: str, models: Sequence[str], missing: Mapping[str, str]) -> dict[str, Any]:
    """One entry.

    Args:
        name: Name of the baseline.
        where: Where its numbers are.
        models: Models that have it.
        missing: Why others do not, by model; under an empty name where no model could.
    """
    return {"name": name, "where": where, "models": list(models), "missing": dict(missing)}


def list_baselines(
    tables: Sequence[ModelTable],
    models: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    detects: bool,
) -> list[dict[str, Any]]:
    """All five, of choices or texts.

    Args:
        tables: Records of the models.
        models: Their descriptions.
        settings: Settings of the evaluation, as far as known.
        detects: Whether any detection question was asked.
    """
    whole = [table.model for table in tables if isinstance(table, TextEnsembleTable)]
    single = [table for table in tables if table.model not in whole]
    names, no_tokens = [table.model for table in single], dict.fromkeys(whole, _NO_TOKENS)
    asked = "wrong_answers" + (" and detection" if detects else "")
    scaled = {table.model: "mean+temperature" in table.predictors for table in single}
    unscaled = {table.model: _no_temperature(table) for table in single if not scaled[table.model]}
    together = [str(model["name"]) for model in models if model.get("kind") == "ensemble"]
    reason = {} if together else {"": ensemble_reason(models, settings)}
    lengths = (
        "length"
        if isinstance(tables[0], ChoiceTable)
        else "length (of texts with a prompt also answer_length)"
    )
    return [
        baseline("max_probability", f"{asked}: score max_probability, predictor mean", names, no_tokens),
        baseline("entropy", f"{asked}: score entropy, predictor mean", names, no_tokens),
        baseline(
            "temperature_scaling",
            "rows: predictor mean+temperature",
            [name for name, has in scaled.items() if has],
            {**unscaled, **no_tokens},
        ),
        baseline(
            "length", f"{asked}: score {lengths}", names if not detects else [t.model for t in tables], {}
        ),
        baseline("ensemble", "rows: model ensemble", together, reason),
    ]


def _no_temperature(table: ModelTable) -> str:
    """Why a model has no temperature."""
    if isinstance(table, ChoiceTable):
        return "no labelled validation rows (data.validation) to fit it on"
    return (
        "no validation texts (data.validation) to fit it on, nor a temperature of texts in calibration.json from other "
        "rows than these"
    )


def ensemble_reason(models: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Why there is no ensemble."""
    if settings.get("ensemble") in (False, []):
        return "switched off (ensemble: false)"
    trained = [m for m in models if m.get("kind") in ("adapter", "posterior") and not m.get("sources")]
    if len(trained) < 2:
        return f"{len(trained)} adapter(s) that are no merges; it takes two of different weights"
    return "the adapters have the same weights, or a model has the ensemble's name"


def absent_notes(results: Mapping[str, Any]) -> list[str]:
    """What is missing and why, in sentences for a report; models with one reason together."""
    notes = []
    for entry in results.get("baselines") or []:
        reasons: dict[str, list[str]] = {}
        for model, reason in entry["missing"].items():
            reasons.setdefault(reason, []).append(model)
        for reason, names in reasons.items():
            whose = f" of {', '.join(names)}" if names != [""] else ""
            notes.append(f"Not among the baselines: {BASELINES[entry['name']].lower()}{whose}: {reason}.")
    return notes
