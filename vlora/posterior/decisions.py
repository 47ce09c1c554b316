"""The ``decisions`` section of ``calibration.json``: what turns probabilities into answers, sets and "don't know".

    predictor, num_samples, antithetic, temperature   how probabilities are made (``PREDICTORS``), logit temperature
    covariance                                        covariance of the draws, for samples
    task, row_format, dtype, quantization             what was scored, and how rows become tokens
    task_file, task_sha256                            the task file that made the rows, null without one
    conformal    [{method, alpha, threshold, n}]      prediction sets: lac or aps; threshold null takes every choice
    abstention   {score, risk, delta, threshold, …}   answer at or below the threshold; null answers nothing
    gate         {score, quantile, threshold, n}      closed above its threshold; null is no gate
    verified     [{set, rows, …}]                     how all of it did on rows that it was not fitted on

This module only reads and checks; evaluation fits (``vlora calibrate``) and applies (``vlora predict``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vlora.errors import PosteriorFormatError
from vlora.posterior.abstention import (
    Abstention,
    Gate,
    count,
    number,
    one_of,
    read_abstention,
    read_gate,
    reading_section,
)
from vlora.posterior.answer_decisions import KEY as ANSWERS
from vlora.posterior.answer_decisions import AnswerDecisions
from vlora.posterior.draws import DrawCovariance, covariance_of

__all__ = [
    "FORMAT",
    "KEY",
    "LINEARISED",
    "PREDICTORS",
    "PRIOR",
    "SCORES",
    "Abstention",
    "Conformal",
    "Decisions",
    "Gate",
    "Kind",
    "check_content",
]

FORMAT = 2
"""Version of ``calibration.json`` that this vlora writes, and the newest one it reads."""
KEY = "decisions"
"""Section of ``calibration.json``."""
PRIOR = "linearised_prior"
"""Section that holds the prior of the linearised predictive."""
Kind = Literal["independent", "kronecker", "leading"]
"""Covariance of the weights in the linearised model: independent entries, Kronecker factors within a LoRA factor, or
leading directions of the Fisher matrix over all tensors at once."""
LINEARISED: Mapping[str, Kind] = {"linearised": "independent", "kronecker": "kronecker", "leading": "leading"}
"""Predictors that linearise the model, with their covariance: they have an epistemic part and no draws."""
PREDICTORS = ("samples", "mean", *LINEARISED)
"""How probabilities are made: mixture of draws, posterior mean, or the linearised model."""

SCORES = (
    "max_probability", "entropy", "expected_entropy", "mutual_information", "logit_variance", "share_left",
    "variation_ratio", "entropy_times_base", "mutual_information_times_base",
)  # fmt: skip
"""What a rule for "don't know" may compare; see ``vlora.eval.decision_scores``."""

_SECTIONS = ("posterior_temperature", PRIOR, KEY, ANSWERS)
_METHODS = ("lac", "aps")


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """One rule for prediction sets."""

    method: str
    """``lac`` (smallest sets) or ``aps`` (sets that grow with the difficulty of the item)."""
    alpha: float
    """Share of items whose set may miss the right choice."""
    threshold: float
    """Choices with at most this score are in the set; infinite when ``n`` was too small for ``alpha``."""
    n: int
    """Held-out items behind it."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Everything needed to answer with a confidence, a set, or "don't know"."""

    task: str
    predictor: str
    """``samples`` (mixture of draws at the fitted width), ``mean``, or ``linearised``, ``kronecker`` or ``leading``
    (the linearised model under its fitted prior, with the covariance of ``LINEARISED``)."""
    num_samples: int
    antithetic: bool
    temperature: float
    """Logit temperature on the log-probabilities of the predictor."""
    covariance: DrawCovariance = "independent"
    """Covariance of the weights that draws are made with."""
    conformal: tuple[Conformal, ...] = ()
    abstention: Abstention | None = None
    gate: Gate | None = None
    row_format: Mapping[str, Any] = field(default_factory=dict)
    """``data`` keys that say how a row becomes tokens."""
    task_file: str | None = None
    """Task file whose rows were fitted on, by name or path; None for rows in the columns of ``row_format``."""
    task_sha256: str | None = None
    """Hash of that task and of the rows that its examples come from."""
    dtype: str = "float32"
    quantization: str = "none"
    verified: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def from_json(cls, section: Any, where: str = "calibration.json") -> "Decisions":
        """Read and check the section.

        Raises:
            PosteriorFormatError: A key is missing or holds what it cannot.
        """
        with reading_section(KEY, where):
            return cls(
                task=str(section["task"]),
                predictor=one_of("predictor", section["predictor"], PREDICTORS),
                num_samples=count("num_samples", section["num_samples"]),
                antithetic=bool(section["antithetic"]),
                temperature=number("temperature", section["temperature"], 0, math.inf),
                covariance=covariance_of(section),
                conformal=tuple(_conformal(rule) for rule in section.get("conformal") or ()),
                abstention=_abstention(section.get("abstention")),
                gate=read_gate(section.get("gate"), SCORES),
                row_format=dict(section.get("row_format") or {}),
                task_file=section.get("task_file"),
                task_sha256=section.get("task_sha256"),
                dtype=str(section.get("dtype", "float32")),
                quantization=str(section.get("quantization", "none")),
                verified=tuple(section.get("verified") or ()),
            )

    def to_json(self) -> dict[str, Any]:
        """The section; infinite thresholds become null."""
        section = asdict(self)
        for rule in [*section["conformal"], *([section["abstention"]] if section["abstention"] else [])]:
            rule["threshold"] = rule["threshold"] if math.isfinite(rule["threshold"]) else None
        return {**section, "conformal": list(section["conformal"]), "verified": list(section["verified"])}


def check_content(content: Mapping[str, Any] | None, where: str) -> None:
    """Refuse a ``calibration.json`` that is newer than this version or damaged; None and foreign keys pass.

    Raises:
        PosteriorFormatError: See above.
    """
    if content is None or not any(key in content for key in _SECTIONS):
        return
    found = content.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= FORMAT:
        raise PosteriorFormatError(
            f"{where} has format {found!r}, this vlora reads up to {FORMAT}; install a newer vlora, or run "
            "vlora calibrate again"
        )
    if KEY in content:
        Decisions.from_json(content[KEY], where)
    if ANSWERS in content:
        AnswerDecisions.from_json(content[ANSWERS], where)


def _abstention(rule: Mapping[str, Any] | None) -> Abstention | None:
    bounded = rule is not None and rule["score"] == "max_probability"
    return read_abstention(rule, SCORES, (-1, 2) if bounded else (-math.inf, math.inf))


def _conformal(rule: Mapping[str, Any]) -> Conformal:
    return Conformal(
        method=one_of("method", rule["method"], _METHODS),
        alpha=number("alpha", rule["alpha"], 0, 1),
        threshold=math.inf if rule["threshold"] is None else number("threshold", rule["threshold"], -1, 2),
        n=count("n", rule["n"]),
    )
