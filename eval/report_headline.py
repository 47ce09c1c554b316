"""What the report says first: one sentence per model, then what holds over all models.

Every word is computed from the numbers. A calibration error is judged against its own floor, a model is called better
only by paired differences, and the largest of many scores is named as such.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.metric_names import METRICS
from vlora.eval.report_format import LENGTHS, cell, number, predictor_label, score_label, value_of
from vlora.eval.report_marks import is_marked, marked_predictor, marked_score
from vlora.eval.report_tables import Results, metrics_of, models_of, predictors_of

__all__ = ["findings", "headline"]


def headline(results: Results, model: str) -> dict[str, str]:
    """Return one sentence about a model, made from its richest trusted predictor without temperature scaling."""
    predictors = [
        p for p in predictors_of(results, model) if "+" not in p and not is_marked(results, model, p)
    ]
    if not predictors:
        return {"model": model, "how": "", "sentence": "no scored rows."}
    predictor = predictors[-1]
    found = metrics_of(results, model, predictor)
    parts = [_accuracy_words(found)] if value_of(found.get("accuracy")) is not None else []
    parts += [
        f"{METRICS[k].label} {_with_interval(found, k)}" for k in ("perplexity", "nll") if _has(found, k)
    ]
    if not parts and _has(found, "nll_expectation_of_products"):
        parts.append(f"NLL of whole texts {_with_interval(found, 'nll_expectation_of_products')}")
    if _has(found, "ece_15_equal_width"):
        parts.append(_calibration_words(found))
    if _has(found, "auroc_correctness"):
        parts.append(f"AUROC of correctness {_with_interval(found, 'auroc_correctness')}")
    samples = results.get("num_samples") or 0
    how = f"{samples} posterior samples" if predictor == "samples" and samples else predictor_label(predictor)
    members = next((m.get("members") for m in results.get("models") or [] if m["name"] == model), None)
    if members and predictor == "samples":
        how = f"{len(members)} members"
    return {
        "model": model,
        "how": how,
        "sentence": "; ".join(parts) + "." if parts else "nothing could be scored.",
    }


def _accuracy_words(found: Mapping[str, Any]) -> str:
    """Return the first part of a headline sentence."""
    tokens = value_of(found["accuracy"], "tokens")
    count = tokens or value_of(found["accuracy"], "n")
    of = (
        f" of {int(count):,} {'tokens' if tokens else 'items'}".replace(",", "\N{NARROW NO-BREAK SPACE}")
        if count
        else ""
    )
    return f"{_with_interval(found, 'accuracy')}{of} right"


def _calibration_words(found: Mapping[str, Any]) -> str:
    """Return the ECE beside its floor, and what the two say together."""
    entry = found["ece_15_equal_width"]
    value, floor, top = (value_of(entry, f) for f in ("value", "floor", "floor_high"))
    words = f"ECE {_with_interval(found, 'ece_15_equal_width')}"
    if value is None or floor is None:
        return words
    words += f" against a floor of {number(floor)}"
    if top is None:
        return words
    if value <= top:
        return words + ", no more than a calibrated model shows by chance"
    sure, right = value_of(found.get("mean_confidence")), value_of(found.get("accuracy"))
    if sure is None or right is None:
        return words + ", more than chance"
    return words + (", over-confident" if sure > right else ", under-confident")


def _has(found: Mapping[str, Any], key: str) -> bool:
    """Return whether a metric has a finite value."""
    return value_of(found.get(key)) is not None


def _with_interval(found: Mapping[str, Any], key: str) -> str:
    """Return ``value [low, high]`` of a metric."""
    shown = cell(found.get(key), METRICS[key])
    return f"{shown.text} {shown.interval}".strip()


def findings(results: Results, best: set[tuple[str, str, str]]) -> list[str]:
    """Return sentences about all models together: who is best beyond doubt, and what finds the unknown."""
    sentences = []
    for key in ("accuracy", "nll"):
        winners = [(m, p) for m, p, k in sorted(best) if k == key]
        sentences += [
            f"{METRICS[key].label}: {m} ({marked_predictor(results, m, p)}) is better than every other model by paired "
            "differences."
            for m, p in winners
        ]
    if not sentences and len(models_of(results)) > 1 and results.get("comparisons"):
        sentences.append("No model is better than every other in accuracy or NLL by paired differences.")
    return sentences + _detection_findings(results)


def _detection_findings(results: Results) -> list[str]:
    """Return one sentence per pair of groups: the largest AUROC, how many it was chosen from, and its baselines."""
    entries = [d for d in results.get("detection") or [] if value_of(d.get("auroc")) is not None]
    names = dict.fromkeys(d["name"] for d in entries if d["score"] not in LENGTHS)
    return [_detection_sentence(results, name, [d for d in entries if d["name"] == name]) for name in names]


def _detection_sentence(results: Results, name: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the sentence of one pair; equal largest values are counted, not hidden."""
    scores = [d for d in entries if d["score"] not in LENGTHS]
    top = max(scores, key=_auroc)
    shown = cell(top["auroc"], METRICS["auroc_correctness"])
    equal = sum(number(_auroc(d)) == shown.text for d in scores) - 1
    text = (
        f"{name}: {marked_score(results, top['model'], top['score'])} of {top['model']} "
        f"({marked_predictor(results, top['model'], top['predictor'])}) reaches "
        f"AUROC {shown.text} {shown.interval}, the largest of {len(scores)} scores"
    )
    text += f" (shared with {equal} more)" if equal else ""
    baselines = {
        f"{score_label(d['score'])}{'' if d['score'] in LENGTHS else ' at the mean'} {number(_auroc(d))}": None
        for d in entries
        if d["model"] == top["model"] and d["predictor"] == "mean" and d is not top
    }
    return text + (f"; baselines of this model: {', '.join(baselines)}." if baselines else ".")


def _auroc(entry: Mapping[str, Any]) -> float:
    """Return the AUROC of an entry that has one."""
    return value_of(entry["auroc"]) or 0.0
