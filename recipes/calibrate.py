"""``vlora calibrate``: fit the width of posteriors and decisions, and a table of what they do on other rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.calibrate import Calibrated, run_calibration
from vlora.posterior.calibration import DECISIONS, KEY

__all__ = ["calibration_table", "run_calibration"]


def calibration_table(results: Sequence[Calibrated]) -> str:
    """NLL on the held-out rows of every predictor, aligned for a terminal; the lowest is the best."""
    lines = []
    for result in results:
        lines += _width_lines(result) if KEY in result.content else [f"{result.name}: at its weights"]
        lines += _decision_lines(result.content.get(DECISIONS) or {})
    return "\n".join(lines)


def _width_lines(result: Calibrated) -> list[str]:
    width, logit = result.content[KEY], result.content.get("logit_temperature") or {}
    bound = " (end of the ladder)" if width["at_bound"] else ""
    rows = (
        ("mean", "mean", "mean"),
        ("draws as trained", "as_trained", "samples"),
        (f"draws at std x {width['std_scale']:.4g}{bound}", "fitted", "samples_fitted"),
    )
    head = f"{result.name}: {width['rows']} held-out rows, {width['num_samples']} draws"
    return [head] + [
        f"  {words:<44}  nll {width['nll'][key]:.4f}{_scaled(logit, name)}" for words, key, name in rows
    ]


def _decision_lines(decisions: Mapping[str, Any]) -> list[str]:
    """What was promised, and what is left of it on every set that it was not fitted on."""
    lines = []
    for entry in decisions.get("verified") or ():
        lines.append(f"  on {entry['set']} ({entry['rows']} rows, {entry['labelled']} with a right answer)")
        lines += [
            f"    {rule['method']} set for {100 * (1 - rule['alpha']):g} %: holds the answer in "
            f"{_percent(rule['coverage'], rule['low'], rule['high'])}, mean size {rule['mean_size']:.2f}"
            f"{'' if rule['holds'] else '  (less than promised)'}"
            for rule in entry.get("conformal") or ()
        ]
        if "abstention" in entry:
            found = entry["abstention"]
            risk = "–" if found["risk"] is None else _percent(found["risk"], found["low"], found["high"])
            lines.append(
                f"    answers {100 * found['coverage']:.1f} %, errors among them {risk}, promised at most "
                f"{100 * found['promised']:g} %{'' if found['holds'] else '  (more than promised)'}"
            )
        if "unanswerable" in entry:
            found = entry["unanswerable"]
            lines.append(f"    answers {found['answered']} of {found['rows']} rows without a right answer")
    return lines


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _scaled(logit: dict[str, Any], name: str) -> str:
    """What a logit temperature makes of a predictor."""
    found = logit.get(name)
    return f"  with logit T {found['temperature']:.3g}: {found['nll']:.4f}" if found else ""
