"""The content of ``calibration.json``: what evaluation fitted on held-out rows, and applying it.

    format                  1
    posterior_temperature   std_scale c (standard deviations are multiplied by it, ess divided by c^2), nll before and
                            after, all (c, NLL) tried, number and covariance of draws, the rows it was fitted on
    linearised_prior        format 1; prior precision of the linearised predictive at temperature 1, of ``independent``
                            entries and, where the folder has them, of ``kronecker`` factors and ``leading`` directions;
                            all (precision, NLL) tried; the rows
    logit_temperature       T of every predictor: mean, draws as trained and at the fitted width, linearised
    decisions               prediction sets and the threshold for "don't know", see :mod:`vlora.posterior.decisions`
    answers                 the same for generated answers, see :mod:`vlora.posterior.answer_decisions`
    posterior_sha256        which posterior it belongs to

``vlora calibrate`` writes it and touches nothing else in the folder. Other top-level keys are kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlora.errors import PosteriorFormatError
from vlora.posterior.answer_decisions import KEY as ANSWERS
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.decisions import FORMAT, PRIOR, Decisions, Kind, check_content
from vlora.posterior.decisions import KEY as DECISIONS
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.kinds import source_identity
from vlora.posterior.posterior import Posterior

__all__ = [
    "ANSWERS",
    "DECISIONS",
    "FORMAT",
    "KEY",
    "LOGIT",
    "PRIOR",
    "PRIOR_FORMAT",
    "answer_decisions_of",
    "calibrated",
    "decisions_of",
    "fitted_prior",
    "fitted_scale",
    "identity",
    "kept_sections",
    "token_temperatures_of",
    "under_prior",
]

KEY = "posterior_temperature"
"""Section that holds the fitted width."""
LOGIT = "logit_temperature"
"""Section that holds the logit temperatures."""
PRIOR_FORMAT = 1
"""Version of the section of the linearised prior that this vlora writes, and the newest one it reads."""
_SOURCES = {
    "curvature_sha256": ("Kronecker factors", "curvature.safetensors"),
    "directions_sha256": ("leading directions", "directions.safetensors"),
}


def identity(posterior: Posterior) -> str:
    """Hash of everything that the draws of a posterior depend on."""
    meta = posterior.meta
    content = [
        tensors_sha256(posterior.mean), tensors_sha256(posterior.hess), meta.ess, meta.weight_decay, meta.seed,
        meta.fixed_zeros,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fitted_scale(posterior: Posterior) -> Mapping[str, Any] | None:
    """The section of the fitted width, checked; None if none was fitted for draws with this ``covariance``.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior or other directions.
    """
    stored = posterior.calibration or {}
    if KEY not in stored:
        return None
    check_content(stored, "calibration.json")
    section = stored[KEY]
    scale = section.get("std_scale") if isinstance(section, Mapping) else None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < scale < math.inf:
        raise PosteriorFormatError(
            f"calibration.json holds std_scale {scale!r}, expected a positive number; run vlora calibrate again"
        )
    _check_identity(posterior, stored)
    covariance = section.get("covariance", "independent")
    if covariance != posterior.covariance:
        return None
    _check_source(posterior, posterior.covariance, section, "width")
    return section


def fitted_prior(posterior: Posterior, kind: Kind) -> Mapping[str, Any] | None:
    """The fitted prior of the linearised predictive, checked; None if none was fitted for this kind of covariance.

    Args:
        posterior: As read from its folder, at the width it was trained with.
        kind: Covariance of the weights.

    Returns:
        ``prior_precision`` with what is known of its fit: ``nll``, ``at_bound``, ``evaluated``, ``rows``, ``split``.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or fitted for another posterior, curvature or directions.
    """
    stored = posterior.calibration or {}
    if PRIOR not in stored:
        return None
    check_content(stored, "calibration.json")
    section = stored[PRIOR]
    number = section.get("format") if isinstance(section, Mapping) else None
    if number != PRIOR_FORMAT:
        raise PosteriorFormatError(
            f"calibration.json holds {PRIOR} of format {number!r}, this vlora reads {PRIOR_FORMAT}; install a newer "
            "vlora, or run vlora calibrate again"
        )
    found = section.get(kind)
    if found is None:
        return None
    value = found.get("prior_precision") if isinstance(found, Mapping) else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise PosteriorFormatError(
            f"calibration.json holds prior_precision {value!r}, expected a positive number; run vlora calibrate again"
        )
    _check_identity(posterior, stored)
    _check_source(posterior, kind, found, "prior")
    common = {name: section.get(name) for name in ("rows", "split", "task")}
    return {**common, **found}


def _check_source(posterior: Posterior, kind: Kind, found: Mapping[str, Any], fitted: str) -> None:
    """Refuse what was fitted with other factors or directions than the posterior has."""
    for name, value in source_identity(posterior, kind).items():
        if found.get(name) != value:
            what, file = _SOURCES[name]
            raise PosteriorFormatError(
                f"the {fitted} in calibration.json was fitted with other {what} ({file} changed since); run vlora "
                "calibrate again"
            )


def under_prior(posterior: Posterior, precision: float) -> Posterior:
    """The posterior of the linearised predictive: temperature 1 and this prior precision, ``1 / (N h + precision)``.

    Raises:
        ValueError: The posterior does not know its number of examples N, or the precision is not positive.
    """
    if posterior.meta.num_examples < 1:
        raise ValueError("the posterior records no num_examples, so what the data know (N h) is unknown")
    return posterior.at_temperature(1.0).with_prior(precision)


def decisions_of(posterior: Posterior) -> Decisions | None:
    """The fitted decisions, checked; None if none were fitted.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior.
    """
    section = _own_section(posterior, DECISIONS)
    return None if section is None else Decisions.from_json(section)


def answer_decisions_of(posterior: Posterior) -> AnswerDecisions | None:
    """The fitted decisions about generated answers, checked; None if none were fitted.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior.
    """
    section = _own_section(posterior, ANSWERS)
    if section is None:
        return None
    found = AnswerDecisions.from_json(section)
    if found.covariance != "independent":
        _check_source(posterior, found.covariance, section, "answers' rule")
    return found


def token_temperatures_of(posterior: Posterior) -> dict[str, Any] | None:
    """Logit temperatures that were fitted on texts, checked; None if none were.

    Returns:
        ``mean``, ``samples`` (draws as trained) and ``samples_fitted`` (at the fitted width), the ``covariance`` of the
        draws, and ``split``, the rows.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior.
    """
    found, width = _own_section(posterior, LOGIT), _own_section(posterior, KEY)
    if found is None or not isinstance(width, Mapping) or width.get("task") != "causal_lm":
        return None
    names = ("mean", "samples", "samples_fitted")
    values = {name: (found.get(name) or {}).get("temperature") for name in names}
    wrong = [value for value in values.values() if not isinstance(value, float) or not 0 < value < math.inf]
    if wrong:
        raise PosteriorFormatError(
            f"calibration.json holds the logit temperature {wrong[0]!r}, expected a positive number; run vlora "
            "calibrate again"
        )
    return {**values, "covariance": width.get("covariance", "independent"), "split": width.get("split")}


def _own_section(posterior: Posterior, key: str) -> Any:
    """A section that was fitted for this posterior; None if there is none."""
    stored = posterior.calibration or {}
    if key not in stored:
        return None
    check_content(stored, "calibration.json")
    _check_identity(posterior, stored)
    return stored[key]


def kept_sections(posterior: Posterior, replaced: Sequence[str]) -> dict[str, Any]:
    """What a new fit leaves in place: sections fitted for this very posterior, and keys that are not vlora's.

    Args:
        posterior: As read from its folder.
        replaced: Sections that the new fit writes.
    """
    stored = posterior.calibration or {}
    stale = stored.get("posterior_sha256") != identity(posterior)
    gone = {*replaced, *((KEY, PRIOR, LOGIT, DECISIONS, ANSWERS) if stale else ())}
    return {name: section for name, section in stored.items() if name not in gone}


def _check_identity(posterior: Posterior, stored: Mapping[str, Any]) -> None:
    if stored.get("posterior_sha256") != identity(posterior):
        raise PosteriorFormatError(
            "calibration.json was fitted for another posterior (its weights or settings changed since); "
            "run vlora calibrate again"
        )


def calibrated(posterior: Posterior) -> Posterior:
    """The posterior at its fitted width; as it is if none was fitted.

    Raises:
        PosteriorFormatError: See :func:`fitted_scale`.
    """
    section = fitted_scale(posterior)
    return posterior if section is None else posterior.scaled(section["std_scale"])
