"""``vlora inspect``: what a posterior folder holds, for a person or as JSON."""

from collections.abc import Mapping
from typing import Any

from vlora.posterior import Posterior

__all__ = ["describe", "render"]


def describe(source: str) -> dict[str, Any]:
    """Facts about a posterior or PEFT adapter, plain data.

    Raises:
        PosteriorFormatError: The folder cannot be read.
    """
    posterior = Posterior.from_pretrained(source)
    facts = {"folder": source, **posterior.summary()}
    if posterior.curvature:
        facts["curvature_modules"] = len({key.rpartition(".")[0] for key in posterior.curvature})
    if posterior.directions is not None:
        facts["leading_directions"] = len(posterior.directions.values)
    if posterior.meta.sources:
        operations = any("operation" in source for source in posterior.meta.sources)
        facts["made_from" if operations else "merged_from"] = posterior.meta.sources
    if posterior.meta.notes:
        facts["notes"] = posterior.meta.notes
    if posterior.calibration:
        facts["calibration"] = {k: v for k, v in _short(posterior.calibration).items() if v not in (None, {})}
    facts["versions"] = posterior.meta.versions
    return facts


def _short(calibration: Mapping[str, Any]) -> dict[str, Any]:
    """The fitted numbers without what was tried and on which rows."""
    width = calibration.get("posterior_temperature") or {}
    logit = calibration.get("logit_temperature") or {}
    decisions, prior = (calibration.get(name) or {} for name in ("decisions", "linearised_prior"))
    abstention, gate = (decisions.get(name) or {} for name in ("abstention", "gate"))
    score = abstention.get("score", "max_probability")
    compared = "1 - confidence" if score == "max_probability" else score
    return {
        **{name: width.get(name) for name in ("std_scale", "temperature")},
        **{
            f"linearised prior precision, {kind}": prior[kind].get("prior_precision")
            for kind in ("independent", "kronecker", "leading")
            if kind in prior
        },
        **{f"logit T of {name}": fit.get("temperature") for name, fit in logit.items()},
        "predictor": decisions.get("predictor"),
        "covariance of the draws": width.get("covariance"),
        f"answers when {compared} is at most": abstention.get("threshold"),
        **({f"and {gate['score']} is at most": gate.get("threshold")} if gate else {}),
    }


def render(facts: Mapping[str, Any]) -> str:
    """The facts as an aligned two-column text."""
    rows = [
        (key.replace("_", " "), _words(value)) for key, value in facts.items() if value not in (None, {}, [])
    ]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {_words(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "; ".join(_words(inner) for inner in value)
    return str(value)
