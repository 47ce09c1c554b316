"""``vlora calibrate``: fit the width of posteriors, and a table of what it changed."""

from collections.abc import Sequence
from typing import Any

from vlora.eval.calibrate import Calibrated, run_calibration
from vlora.posterior.calibration import KEY

__all__ = ["calibration_table", "run_calibration"]


def calibration_table(results: Sequence[Calibrated]) -> str:
    """NLL on the held-out rows of every predictor, aligned for a terminal; the lowest is the best."""
    lines = []
    for result in results:
        width, logit = result.content[KEY], result.content.get("logit_temperature") or {}
        bound = " (end of the ladder)" if width["at_bound"] else ""
        rows = (
            ("mean", "mean", "mean"),
            ("draws as trained", "as_trained", "samples"),
            (f"draws at std x {width['std_scale']:.4g}{bound}", "fitted", "samples_fitted"),
        )
        lines.append(f"{result.name}: {width['split']['rows']} held-out rows, {width['num_samples']} draws")
        lines += [
            f"  {words:<44}  nll {width['nll'][key]:.4f}{_scaled(logit, name)}" for words, key, name in rows
        ]
    return "\n".join(lines)


def _scaled(logit: dict[str, Any], name: str) -> str:
    """What a logit temperature makes of a predictor."""
    found = logit.get(name)
    return f"  with logit T {found['temperature']:.3g}: {found['nll']:.4f}" if found else ""
