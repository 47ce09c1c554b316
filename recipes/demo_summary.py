"""What the demo shows at its end: a table for the terminal and one picture, both made from ``results.json``."""

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlora.recipes.tables import aligned, interval

__all__ = ["draw_picture", "summary_table"]

_TAUGHT = ("a_clean", "a_ambiguous", "b_clean", "b_ambiguous", "base")
_UNTAUGHT = ("unknown", "near_miss")
_WORDS = {
    "a_clean": "A", "a_ambiguous": "A, two answers", "b_clean": "B", "b_ambiguous": "B, two answers",
    "base": "base people", "unknown": "unknown", "near_miss": "near miss",
}  # fmt: skip
_NAMES = {
    "base": "base model", "a_ivon": "A (IVON)", "b_ivon": "B (IVON)", "a_adamw": "A (AdamW)", "b_adamw": "B (AdamW)",
    "mean_ivon": "A+B mean (IVON)", "sum_ivon": "A+B sum (IVON)", "matched_ivon": "A+B matched (IVON)",
    "sum_adamw": "A+B sum (AdamW)", "matched_adamw": "A+B matched (AdamW)",
}  # fmt: skip
_SCORES = [
    ("matched_adamw", "mean", "max_probability", "AdamW matched: max probability"),
    ("matched_adamw", "mean", "entropy", "AdamW matched: entropy"),
    ("matched_ivon", "mean", "entropy", "IVON matched: entropy at the mean"),
    ("matched_ivon", "samples", "entropy", "IVON matched: entropy, draws"),
    ("matched_ivon", "samples", "mutual_information", "IVON matched: mutual information"),
    ("matched_ivon", "mean", "length", "length of the question only"),
]
_QUESTIONS = {
    "unknown people vs all that was taught": "Unknown people against all that was taught (AUROC)",
    "unknown people vs ambiguous facts": "Unknown people against facts with two answers (AUROC)",
}


def summary_table(results: Path) -> str:
    """Accuracy on what was taught, and confident answers about people who do not exist, per model.

    With draws where the model is a posterior, at its weights otherwise; 95 % intervals in brackets.
    """
    rows = _best_rows(json.loads(results.read_text(encoding="utf-8")))
    head = ["model", *(_WORDS[g] for g in _TAUGHT), "confident on unknown"]
    lines = [head]
    for model, groups in rows.items():
        cells = [interval(groups.get(group, {}).get("accuracy"), percent=True) for group in _TAUGHT]
        lines.append(
            [
                _NAMES.get(model, model),
                *cells,
                interval(groups.get("unknown", {}).get("confident_share"), percent=True),
            ]
        )
    return aligned(lines)


def draw_picture(results: Path, target: Path) -> None:
    """Who knows what, and which score tells people nobody was told about from what was taught."""
    values = json.loads(results.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1))
    _draw_knowledge(figure.add_subplot(grid[:, 0]), _best_rows(values))
    for line, (question, title) in enumerate(_QUESTIONS.items()):
        _draw_detection(figure.add_subplot(grid[line, 1]), values, question, title)
    figure.savefig(target, dpi=150)


def _best_rows(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Model -> group -> metrics, with posterior draws where there are any."""
    rows: dict[str, dict[str, Any]] = {}
    for row in values["rows"]:
        known = rows.setdefault(row["model"], {})
        if row["predictor"] == "samples" or (row["predictor"] == "mean" and row["group"] not in known):
            known[row["group"]] = row["metrics"]
    return rows


def _draw_knowledge(axes: Any, rows: dict[str, dict[str, Any]]) -> None:
    """Heat map: accuracy on taught groups, share of confident answers on the others."""
    groups = (*_TAUGHT, *_UNTAUGHT)
    names = ["accuracy"] * len(_TAUGHT) + ["confident_share"] * len(_UNTAUGHT)
    for column, (group, name) in enumerate(zip(groups, names, strict=True)):
        for line, metrics in enumerate(rows.values()):
            metric = metrics.get(group, {}).get(name)
            if metric is None or metric["value"] is None:
                continue
            value = metric["value"]
            color = _mix("#1f6f8b" if column < len(_TAUGHT) else "#b5442e", value)
            axes.fill([column, column + 1, column + 1, column], [line, line, line + 1, line + 1], color=color)
            axes.text(column + 0.5, line + 0.5, f"{100 * value:.0f}", ha="center", va="center", fontsize=9,
                      color="white" if value > 0.55 else "#222222")  # fmt: skip
    axes.set(xlim=(0, len(groups)), ylim=(len(rows), 0))
    axes.set_xticks(
        [i + 0.5 for i in range(len(groups))], [_WORDS[g].replace(", ", ",\n") for g in groups], fontsize=8
    )
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [_NAMES.get(m, m) for m in rows], fontsize=8)
    axes.axvline(len(_TAUGHT), color="white", linewidth=6)
    axes.set_title(
        "Right answers (blue, %) and confident answers about nobody (red, %)", fontsize=9, loc="left"
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_detection(axes: Any, values: dict[str, Any], question: str, title: str) -> None:
    """AUROC of one question for several scores of the merged models, with intervals, the baselines among them."""
    found = {
        (d["model"], d["predictor"], d["score"]): d["auroc"]
        for d in values["detection"]
        if d["name"] == question
    }
    bars = [(label, found[m, p, score]) for m, p, score, label in _SCORES if (m, p, score) in found]
    for line, (label, auroc) in enumerate(bars):
        axes.barh(line, auroc["value"], color="#a8cbd6" if "IVON" in label else "#d5dadd", height=0.7)
        axes.plot([auroc["low"], auroc["high"]], [line, line], color="#222222", linewidth=1.2)
        axes.text(0.02, line, f"{auroc['value']:.2f}  {label}", va="center", fontsize=7.5, color="#222222")
    axes.set(xlim=(0, 1), ylim=(len(bars) - 0.4, -0.6), yticks=[])
    axes.axvline(0.5, color="#222222", linewidth=0.6, linestyle=":")
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _mix(color: str, share: float) -> tuple[float, float, float]:
    """The colour on white, as strong as the share."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(1 - share * (1 - channel) for channel in (red, green, blue))  # type: ignore[return-value]
