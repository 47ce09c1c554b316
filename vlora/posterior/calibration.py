"""The content of ``calibration.json``: what evaluation fitted on held-out rows, and applying it.

    format                  1
    posterior_temperature   std_scale c (standard deviations are multiplied by it, ess divided by c^2), nll before and
                            after, all (c, NLL) tried, number of draws, the rows it was fitted on
    logit_temperature       T of the mean, of the draws as trained and of the calibrated draws, as baselines
    decisions               prediction sets and the threshold for "don't know", see :mod:`vlora.posterior.decisions`
    posterior_sha256        which posterior it belongs to

``vlora calibrate`` writes it and touches nothing else in the folder. Other top-level keys are kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from vlora.errors import PosteriorFormatError
from vlora.posterior.decisions import FORMAT, Decisions, check_content
from vlora.posterior.decisions import KEY as DECISIONS
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.posterior import Posterior

__all__ = ["DECISIONS", "FORMAT", "KEY", "calibrated", "decisions_of", "fitted_scale", "identity"]

KEY = "posterior_temperature"
"""Section that holds the fitted width."""


def identity(posterior: Posterior) -> str:
    """Hash of everything that the draws of a posterior depend on."""
    meta = posterior.meta
    content = [
        tensors_sha256(posterior.mean), tensors_sha256(posterior.hess), meta.ess, meta.weight_decay, meta.seed,
        meta.fixed_zeros,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fitted_scale(posterior: Posterior) -> Mapping[str, Any] | None:
    """The section of the fitted width, checked; None if none was fitted.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior.
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
    return section


def decisions_of(posterior: Posterior) -> Decisions | None:
    """The fitted decisions, checked; None if none were fitted.

    Raises:
        PosteriorFormatError: The section is damaged, newer, or was fitted for another posterior.
    """
    stored = posterior.calibration or {}
    if DECISIONS not in stored:
        return None
    check_content(stored, "calibration.json")
    _check_identity(posterior, stored)
    return Decisions.from_json(stored[DECISIONS])


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
