"""The results of an evaluation of answers as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.generation.columns import ALL

__all__ = ["answer_table"]


def answer_table(results: Mapping[str, Any]) -> str:
    """How right every model is, and AUROC and PRR of every estimator for wrong answers, one column a model.

    Args:
        results: Content of a ``results.json`` of kind ``generation``.
    """
    models = [str(model["name"]) for model in results["models"]]
    lines = [_line("", models), _line("questions", [_count(results, model) for model in models])]
    for name in ("correct", "not_attempted", "penalised_score"):
        lines.append(_line(name, [_shown(_answer(results, model, name)) for model in models]))
    rows = [row for row in results["estimators"] if row["group"] == ALL]
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    if names:
        lines.append(_line("wrong answers: AUROC (PRR)", [""] * len(models)))
    for name in names:
        cells = []
        for model in models:
            row = next((r for r in rows if r["estimator"] == name and r["model"] == model), None)
            metrics = row["metrics"] if row else {}
            cells.append(f"{_shown(metrics['auroc'])} ({_shown(metrics['prr'], 2)})" if metrics else "–")
        lines.append(_line("  " + name, cells))
    for question in dict.fromkeys(row["question"] for row in results["detection"]):
        lines.append(_line(f"{question}: AUROC", [""] * len(models)))
        rows = [row for row in results["detection"] if row["question"] == question]
        for name in dict.fromkeys(row["estimator"] for row in rows):
            by_model = {row["model"]: row["auroc"] for row in rows if row["estimator"] == name}
            lines.append(_line("  " + name, [_shown(by_model.get(model)) for model in models]))
    return "\n".join(line.rstrip() for line in lines)


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:<30}" + "".join(f"{cell:>18}" for cell in cells)


def _answer(results: Mapping[str, Any], model: str, name: str) -> Any:
    rows = [row for row in results["answers"] if row["model"] == model]
    first = next((row for row in rows if row["group"] == ALL), rows[0] if rows else {"metrics": {}})
    return first["metrics"].get(name)


def _count(results: Mapping[str, Any], model: str) -> str:
    rows = [row for row in results["answers"] if row["model"] == model]
    return str(next((row["questions"] for row in rows if row["group"] == ALL), 0))


def _shown(measured: Any, digits: int = 3) -> str:
    if not measured or measured["value"] is None:
        return "–"
    return f"{measured['value']:.{digits}f}"
