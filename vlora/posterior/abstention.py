"""The rules for "don't know" as ``calibration.json`` holds them, and checks of the fields of its sections."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlora.errors import PosteriorFormatError

__all__ = [
    "Abstention",
    "Gate",
    "count",
    "number",
    "one_of",
    "read_abstention",
    "read_gate",
    "reading_section",
]


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """The rule for "don't know"."""

    score: str
    """What is compared: ``max_probability`` of choices is 1 minus the confidence; of answers, the name of a score."""
    risk: float
    """Error rate allowed among the answers."""
    delta: float
    """Chance over held-out sets that the threshold breaks it."""
    threshold: float
    """Answer when the score is at most this; minus infinity when no threshold could be shown to keep the risk."""
    n: int
    """Held-out items behind it."""
    answered: int
    """Those answered at the threshold."""
    wrong: int
    """Wrong ones among them."""
    risk_bound: float
    """Upper bound of the risk at the threshold."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A second limit: no answer above it, however certain the answer looks."""

    score: str
    """What is compared, higher for less certain."""
    quantile: float
    """Share of the held-out items with a right answer that pass."""
    threshold: float
    """That quantile of the score: closed above it."""
    n: int
    """Held-out items behind it."""


def read_gate(gate: Mapping[str, Any] | None, scores: Sequence[str]) -> Gate | None:
    """A gate as stored, checked; None for none.

    Args:
        gate: The section.
        scores: Scores that it may compare.

    Raises:
        ValueError: A value that cannot be.
    """
    if gate is None:
        return None
    return Gate(
        score=one_of("score", gate["score"], scores),
        quantile=number("quantile", gate["quantile"], 0, 1),
        threshold=number("threshold", gate["threshold"], -math.inf, math.inf),
        n=count("n", gate["n"]),
    )


def read_abstention(
    rule: Mapping[str, Any] | None, scores: Sequence[str] | None, limits: tuple[float, float]
) -> Abstention | None:
    """A rule as stored, checked; None for none.

    Args:
        rule: The section.
        scores: Scores that it may compare; None takes any.
        limits: The threshold lies between them; null stands for minus infinity.

    Raises:
        ValueError: A value that cannot be.
    """
    if rule is None:
        return None
    threshold = -math.inf if rule["threshold"] is None else number("threshold", rule["threshold"], *limits)
    return Abstention(
        score=str(rule["score"]) if scores is None else one_of("score", rule["score"], scores),
        risk=number("risk", rule["risk"], 0, 1),
        delta=number("delta", rule["delta"], 0, 1),
        threshold=threshold,
        risk_bound=number("risk_bound", rule["risk_bound"], -1, 2),
        **{name: count(name, rule[name]) for name in ("n", "answered", "wrong")},
    )


@contextmanager
def reading_section(key: str, where: str) -> Iterator[None]:
    """Tell a missing or bad field of a section in one line.

    Raises:
        PosteriorFormatError: A key is missing or holds what it cannot.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PosteriorFormatError(
            f"{where}: the section {key!r} is damaged ({reason}); run vlora calibrate again"
        ) from None


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number between two limits, both excluded.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise ValueError(f"{name} must be a number between {low:g} and {high:g}, got {value!r}")
    return float(value)


def count(name: str, value: Any) -> int:
    """A whole number from 0.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def one_of(name: str, value: Any, names: Sequence[str]) -> str:
    """One of some names.

    Raises:
        ValueError: It is none of them.
    """
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(names)}, got {value!r}")
    return str(value)
