"""A mark beside linearised numbers of a model whose linearised predictive does not follow its draws.

The verdict is that of ``models[].linearised_agreement`` in ``results.json`` (:mod:`vlora.eval.linearised_gate`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlora.eval.report_format import Cell, number, predictor_label, score_label, value_of

__all__ = ["MARK", "agreement_notes", "is_marked", "marked_cell", "marked_predictor", "marked_score"]

MARK = "\N{BLACK UP-POINTING TRIANGLE}"
_COMPARED = {"mutual_information": "mutual information", "log_prob_variance": "the variance of log p"}


def is_marked(results: Mapping[str, Any], model: str, name: str) -> bool:
    """Whether a predictor or score of a model is a linearised one that failed its comparison with the draws."""
    return name.startswith("linearised") and model in _failed(results)


def marked_predictor(results: Mapping[str, Any], model: str, predictor: str) -> str:
    """The reader's name of a model's predictor, with the mark where it failed."""
    return predictor_label(predictor) + _mark(results, model, predictor)


def marked_score(results: Mapping[str, Any], model: str, score: str) -> str:
    """The reader's name of a model's score, with the mark where it failed."""
    return score_label(score) + _mark(results, model, score)


def marked_cell(results: Mapping[str, Any], model: str, names: tuple[str, str], cell: Cell) -> Cell:
    """A cell of a table with a column per predictor and score, with the mark where it failed."""
    if cell.text == Cell.text or not any(is_marked(results, model, name) for name in names):
        return cell
    return replace(cell, text=f"{cell.text} {MARK}")


def agreement_notes(results: Mapping[str, Any]) -> list[str]:
    """A sentence per model that failed: what was asked for and what was found."""
    notes = []
    for model, found in _failed(results).items():
        reached, asked = (number(value_of(found.get(key)), 2) for key in ("correlation", "least_correlation"))
        text = f"rank correlation of {_COMPARED.get(found['compared'], found['compared'])} {reached}, asked for {asked}"
        if "distance" in found:
            reached, asked = (number(value_of(found.get(key))) for key in ("distance", "most_distance"))
            text += f"; mean distance {reached}, at most {asked}"
        if "most_ratio" in found:
            reached, most = (value_of(found.get(key)) for key in ("ratio", "most_ratio"))
            text += f"; ratio {number(reached, 2)}, within a factor of {number(most, 0)}"
        notes.append(
            f"{MARK} {model}: the linearised predictive does not follow the draws ({text}); its numbers are marked."
        )
    return notes


def _mark(results: Mapping[str, Any], model: str, name: str) -> str:
    return f" {MARK}" if is_marked(results, model, name) else ""


def _failed(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Model -> its comparison, of those that failed."""
    entries = [(one["name"], one.get("linearised_agreement")) for one in results.get("models") or []]
    return {name: found for name, found in entries if found and not found["passed"]}
