"""``vlora calibrate``: fit widths, priors and decisions, and a table of what they do on other rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlora.eval.calibrate import run_calibration
from vlora.eval.calibration_file import Calibrated
from vlora.eval.config import EvalConfig
from vlora.eval.generation.calibrate import run_answer_calibration
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.task_files import load_task
from vlora.posterior.calibration import ANSWERS, DECISIONS, KEY, PRIOR

__all__ = ["answer_calibration_table", "calibrate", "calibration_table", "run_calibration"]

_KINDS = {
    "independent": "linearised",
    "kronecker": "linearised, Kronecker factors",
    "leading": "linearised, leading directions",
}


def calibrate(config: EvalConfig | GenerationConfig) -> tuple[list[Calibrated], str]:
    """Calibrate adapters for probabilities, or for generated answers; what was written, and a table of it.

    Raises:
        VloraError: See the two kinds of calibration.
    """
    if isinstance(config, GenerationConfig):
        results = run_answer_calibration(config)
        return results, answer_calibration_table(results)
    results = run_calibration(config)
    return results, calibration_table(results)


def answer_calibration_table(results: Sequence[Calibrated]) -> str:
    """Score, threshold and what they do on every other set, aligned for a terminal."""
    lines = []
    for result in results:
        section = result.content[ANSWERS]
        rule = section["abstention"]
        done = "trusts" if load_task(section["task_file"]).kind == "given_answers" else "answers"
        limit = f"{done} nothing" if rule["threshold"] is None else f"{done} up to {rule['threshold']:.4g}"
        lines.append(
            f"{result.name}: {rule['score']} {limit}: {rule['answered']} of {rule['n']} held-out attempts, "
            f"{rule['wrong']} wrong; confidence {section['confidence']} with T {1 / section['power']:.3g}"
        )
        lines += _decision_lines({"predictor": "mean", **section}, done)
    return "\n".join(lines)


def calibration_table(results: Sequence[Calibrated]) -> str:
    """NLL on the held-out rows of every predictor, aligned for a terminal; the lowest is the best."""
    lines = []
    for result in results:
        lines += _fit_lines(result)
        lines += _decision_lines(result.content.get(DECISIONS) or {})
    return "\n".join(lines)


def _fit_lines(result: Calibrated) -> list[str]:
    """One line a predictor: its NLL, and with a logit temperature."""
    width, prior = result.content.get(KEY), result.content.get(PRIOR)
    logit = result.content.get("logit_temperature") or {}
    known = width or prior
    if known is None:
        return [f"{result.name}: at its weights"]
    unit = " per token" if known["task"] == "causal_lm" else ""
    rows: list[tuple[str, float, str]] = []
    if width is not None:
        scale = f"draws at std x {width['std_scale']:.4g}{_end(width, 'ladder')}"
        names = (("mean", "mean", "mean"), ("draws as trained", "as_trained", "samples"))
        rows = [
            (words, width["nll"][key], name)
            for words, key, name in (*names, (scale, "fitted", "samples_fitted"))
        ]
    elif prior is not None:
        rows = [("mean", prior["nll_mean"], "mean")]
    for kind, words in _KINDS.items():
        if prior is not None and kind in prior:
            found = prior[kind]
            shown = f"{words}, prior precision {found['prior_precision']:.4g}{_end(found, 'grid')}"
            rows.append((shown, found["nll"], "linearised" if kind == "independent" else kind))
    draws = "" if width is None else f", {width['num_samples']} draws"
    head = f"{result.name}: {known['rows']} held-out rows{draws}; nll in nats{unit}, lower is better"
    size = max(len(words) for words, _, _ in rows)
    return [head] + [f"  {words:<{size}}  nll {nll:.4f}{_scaled(logit, name)}" for words, nll, name in rows]


def _end(fit: Mapping[str, Any], what: str) -> str:
    return f" (end of the {what})" if fit["at_bound"] else ""


def _decision_lines(decisions: Mapping[str, Any], done: str = "answers") -> list[str]:
    """What was promised, and what is left of it on every set that it was not fitted on; ``done`` is what it does."""
    lines = []
    if decisions and decisions["predictor"] not in ("samples", "mean"):
        lines.append(f"  sets and threshold are those of the predictor {decisions['predictor']}")
    lines += _rule_lines(decisions)
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
                f"    {done} {100 * found['coverage']:.1f} %, errors among them {risk}, promised at most "
                f"{100 * found['promised']:g} %{'' if found['holds'] else '  (more than promised)'}{_stopped(found)}"
            )
        if "unanswerable" in entry:
            found = entry["unanswerable"]
            lines.append(
                f"    answers {found['answered']} of {found['rows']} rows without a right answer{_stopped(found)}"
            )
    return lines


def _rule_lines(decisions: Mapping[str, Any]) -> list[str]:
    """Score and gate of choices, where they are not the confidence alone."""
    rule, gate = decisions.get("abstention"), decisions.get("gate")
    lines = []
    choices = "conformal" in decisions  # answers tell their score elsewhere
    if choices and rule is not None and (gate is not None or rule["score"] != "max_probability"):
        limit = "nothing" if rule["threshold"] is None else f"up to {rule['threshold']:.4g}"
        lines.append(f"  {rule['score']}: answers {limit}")
    if gate is not None:
        lines.append(
            f"  gate: {gate['score']} up to {gate['threshold']:.4g}, the {100 * gate['quantile']:g} % quantile of "
            f"{gate['n']} held-out rows with a right answer"
        )
    return lines


def _stopped(found: Mapping[str, Any]) -> str:
    """How many rows the gate stopped, where there is one."""
    return f"; the gate stops {found['gated']}" if "gated" in found else ""


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _scaled(logit: dict[str, Any], name: str) -> str:
    """What a logit temperature makes of a predictor."""
    found = logit.get(name)
    if not found:
        return ""
    nll = "not defined" if found["nll"] is None else f"{found['nll']:.4f}"
    infinite = found.get("num_infinite", 0)
    left = f", {infinite} right answers of probability 0 left out" if infinite else ""
    return f"  with logit T {found['temperature']:.3g}{_end(found, 'range')}: {nll}{left}"
