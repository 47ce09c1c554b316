"""The ``answers`` section of ``calibration.json``: what turns generated answers into confidences and "don't know".

    task_file, task_sha256    the task that made the questions
    settings                  keys of ``kind: generation`` that an answer or its score depends on (sampling, judge, ...)
    num_samples, antithetic   posterior draws; std_scale or temperature: their width, against the posterior as stored
    covariance                covariance of the draws; of leading ones also directions_sha256
    confidence, power         which probability of being right is told, and the fitted exponent (1 / temperature)
    abstention                {score, risk, delta, threshold, ...}: answer up to the threshold; null answers nothing
    verified                  [{set, rows, ...}]: how it did on questions that it was not fitted on

This module only reads and checks; evaluation fits (``vlora calibrate``) and applies (``vlora predict``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlora.posterior.abstention import Abstention, count, number, read_abstention, reading_section
from vlora.posterior.draws import DrawCovariance, covariance_of

__all__ = ["KEY", "AnswerDecisions"]

KEY = "answers"
"""Section of ``calibration.json``."""


@dataclass(frozen=True, kw_only=True)
class AnswerDecisions:
    """Everything needed to answer an open question with a confidence or "don't know"."""

    task_file: str
    """Task whose questions were fitted on, by name or path."""
    task_sha256: str
    """Hash of that task and of the rows that its examples come from."""
    num_samples: int
    antithetic: bool
    std_scale: float = 1.0
    """Factor on the standard deviations of the posterior as stored: the fitted width, where it was used."""
    temperature: float | None = None
    """Posterior temperature, where one was set; None for the posterior as stored."""
    covariance: DrawCovariance = "independent"
    """Covariance of the weights that draws are made with."""
    directions_sha256: str | None = None
    """Hash of the leading directions that they were made with; None for independent entries."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the evaluation that an answer or its score depends on."""
    confidence: str = "max_probability"
    """Which probability of being right is told."""
    power: float = 1.0
    """Exponent on it, fitted on held-out questions."""
    abstention: Abstention | None = None
    """The score that decides, with its threshold."""
    verified: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def from_json(cls, section: Any, where: str = "calibration.json") -> "AnswerDecisions":
        """Read and check the section.

        Raises:
            PosteriorFormatError: A key is missing or holds what it cannot.
        """
        with reading_section(KEY, where):
            warmth = section["temperature"]
            return cls(
                task_file=str(section["task_file"]),
                task_sha256=str(section["task_sha256"]),
                num_samples=count("num_samples", section["num_samples"]),
                antithetic=bool(section["antithetic"]),
                std_scale=number("std_scale", section["std_scale"], 0, math.inf),
                temperature=None if warmth is None else number("temperature", warmth, 0, math.inf),
                covariance=covariance_of(section),
                directions_sha256=section.get("directions_sha256"),
                settings=dict(section["settings"]),
                confidence=str(section["confidence"]),
                power=number("power", section["power"], 0, math.inf),
                abstention=read_abstention(section["abstention"], None, (-math.inf, math.inf)),
                verified=tuple(section.get("verified") or ()),
            )

    def to_json(self) -> dict[str, Any]:
        """The section; a threshold of minus infinity becomes null."""
        section = asdict(self)
        rule = section["abstention"]
        if rule is not None and not math.isfinite(rule["threshold"]):
            rule["threshold"] = None
        return {**section, "verified": list(section["verified"])}
