"""Fields of a record: how each is read from JSON, written back, and checked against the others."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array

__all__ = ["FIELDS", "LM_FIELDS", "Field", "check_choices", "check_tokens", "convert", "plain"]

Field = tuple[Callable[[Any], Any], Any]
"""Reader of a JSON value, and the default (``...`` for a field that must be there)."""

# Models are scored in float32, whose softmax is normalised to about 1e-6; a wider gap means other numbers.
_SUM_TOLERANCE = 1e-3


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise TypeError("expected a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not np.isfinite(float(value)):
        raise TypeError("expected a finite number")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("expected true or false")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError("expected a list of strings")
    return tuple(_text(entry) for entry in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("expected an object")
    return value


def _numbers(value: Any) -> Array:
    """Numbers of one shape; None inside stands for minus infinity."""
    array = np.asarray(value)
    if array.dtype == object:
        array = np.array(value, dtype=np.float64)
        array = np.where(np.isnan(array), -np.inf, array)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
        raise TypeError("expected numbers")
    if np.isnan(array).any():
        raise ValueError("it holds NaN, the model may have diverged")
    return array.astype(np.float64)


FIELDS: dict[str, Field] = {
    "model": (_text, ...),
    "item": (_text, ...),
    "split": (_text, ...),
    "group": (_text, ...),
    "label": (_whole, None),
    "label_probs": (_numbers, None),
    "num_tokens": (_whole, ...),
    "text": (_text, ""),
    "text_sha256": (_text, None),
    "choices": (_strings, None),
    "log_probs": (_numbers, None),
    "sample_log_probs": (_numbers, None),
    "expectation_of_products": (_numbers, None),
    "product_of_expectations": (_numbers, None),
    "linearised_covariance": (_numbers, None),
    "share_left": (_number, None),
    "feature_distance": (_number, None),
    "relative_feature_distance": (_number, None),
    "antithetic": (_flag, False),
    "lm": (_mapping, None),
}

LM_FIELDS: dict[str, Field] = {
    "num_tokens": (_whole, ...),
    "nll": (_number, ...),
    "nll_samples": (_number, None),
    "nll_sequence": (_number, None),
    **dict.fromkeys(("correct", "confidence", "entropy"), (_numbers, None)),
    **dict.fromkeys(
        ("sample_correct", "sample_confidence", "total_entropy", "expected_entropy"), (_numbers, None)
    ),
    "nll_expected": (_number, None),
    "nll_std": (_number, None),
    "nll_variance": (_number, None),
    "reverse_information": (_numbers, None),
    **dict.fromkeys(("nll_by_draw", "entropy_by_draw", "weight_by_draw"), (_numbers, None)),
    **dict.fromkeys(
        ("temperature", "sample_temperature", "nll_chosen", "nll_samples_chosen"), (_number, None)
    ),
    **dict.fromkeys(("confidence_chosen", "entropy_chosen"), (_numbers, None)),
    **dict.fromkeys(("sample_confidence_chosen", "sample_entropy_chosen"), (_numbers, None)),
    **dict.fromkeys(("temperatures", "nll_tempered", "nll_samples_tempered"), (_numbers, None)),
}

_AT_MEAN = ("correct", "confidence", "entropy")  # together, or none: of an ensemble
_OF_DRAWS = (
    *("nll_samples", "nll_sequence", "sample_correct", "sample_confidence", "total_entropy"),
    "expected_entropy",
)  # together, or none; an ensemble has but the second and the last
_BY_DRAW = ("nll_by_draw", "entropy_by_draw", "weight_by_draw")  # a number for every draw
_GRIDS = ("temperatures", "nll_tempered", "nll_samples_tempered")  # a number for every temperature


def convert(row: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """Read the known fields of a row; unknown keys are ignored, missing optional ones take their default.

    Raises:
        DataError: A required field is missing, or a value cannot be read.
    """
    values = {}
    for key, (reader, default) in fields.items():
        value = row.get(key)
        if value is None and default is ...:
            raise DataError(
                f"a record needs {key!r}, got only {', '.join(map(str, row)) or 'an empty object'}"
            )
        try:
            values[key] = default if value is None else reader(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{key!r} cannot be read: {error}, got {str(value)[:60]!r}") from None
    return values


def plain(value: Any) -> Any:
    """JSON-able form of a field's value: arrays become lists, minus infinity becomes None."""
    if isinstance(value, np.ndarray):
        return value.tolist() if np.isfinite(value).all() else plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and value == -np.inf else value


def check_choices(values: Mapping[str, Any]) -> None:
    """Check that the fields of a classification or multiple-choice record fit together.

    Raises:
        DataError: Wrong shapes, probabilities that do not sum to one, or a label or number of choices out of range.
    """
    log_probs = values["log_probs"]
    if log_probs is None or log_probs.ndim != 1 or log_probs.size == 0:
        raise DataError("a record needs 'log_probs' as a non-empty list of numbers, or 'lm'")
    size, label = len(log_probs), values["label"]
    _check_normalised("log_probs", np.exp(log_probs))
    samples = values["sample_log_probs"]
    if samples is not None:
        if samples.ndim != 2 or samples.shape[1] != size or len(samples) == 0:
            raise DataError(f"'sample_log_probs' must have shape (S, {size}), got {samples.shape}")
        _check_normalised("sample_log_probs", np.exp(samples))
    for name in ("expectation_of_products", "product_of_expectations"):
        if values[name] is not None:
            if values[name].shape != (size,):
                raise DataError(f"{name!r} must hold {size} numbers, got {values[name].shape}")
            _check_normalised(name, np.exp(values[name]))
    covariance = values["linearised_covariance"]
    if covariance is not None and covariance.shape != (size, size):
        raise DataError(f"'linearised_covariance' must have shape ({size}, {size}), got {covariance.shape}")
    share = values["share_left"]
    if share is not None and not -_SUM_TOLERANCE <= share <= 1 + _SUM_TOLERANCE:
        raise DataError(f"'share_left' must lie between 0 and 1, got {share:.6g}")
    if label is not None and not 0 <= label < size:
        raise DataError(f"'label' must lie in 0…{size - 1}, one index per choice, got {label}")
    if values["choices"] is not None and len(values["choices"]) != size:
        raise DataError(f"{len(values['choices'])} 'choices' but {size} 'log_probs'")
    if values["label_probs"] is not None:
        if values["label_probs"].shape != (size,) or values["label_probs"].min() < 0:
            raise DataError(
                f"'label_probs' must be {size} probabilities, got {values['label_probs'].tolist()}"
            )
        _check_normalised("label_probs", values["label_probs"])


def _check_normalised(name: str, probs: Array) -> None:
    total = probs.sum(axis=-1)
    if not np.allclose(total, 1.0, atol=_SUM_TOLERANCE):
        raise DataError(
            f"{name!r} must be normalised over the choices, got a sum of {float(np.ravel(total)[0]):.4g}"
        )


def check_tokens(values: dict[str, Any]) -> dict[str, Any]:
    """Check that all per-token lists of a language-modelling record have ``num_tokens`` entries; returns ``values``.

    Raises:
        DataError: A list has another length, a probability lies outside [0, 1], or draws are there only in part.
    """
    size = values["num_tokens"]
    lists = {
        key: value
        for key, value in values.items()
        if isinstance(value, np.ndarray) and key not in (*_GRIDS, *_BY_DRAW)
    }
    wrong = [f"{key}: {value.shape}" for key, value in lists.items() if value.shape != (size,)]
    if wrong or size < 1:
        raise DataError(
            f"'lm' needs lists of num_tokens = {size} >= 1 numbers, got {', '.join(wrong) or 'none'}"
        )
    for key in [key for key in lists if "correct" in key or "confidence" in key]:
        if lists[key].min() < 0 or lists[key].max() > 1:
            raise DataError(
                f"'lm' {key!r} must lie in [0, 1], got {lists[key].min():.3g} to {lists[key].max():.3g}"
            )
    absent = [key for key in _AT_MEAN if values[key] is None]
    if absent and (len(absent) < len(_AT_MEAN) or values["nll_sequence"] is None):
        raise DataError(f"'lm' needs {', '.join(map(repr, absent))}, one number a token")
    drawn = ("nll_sequence", "expected_entropy") if absent else _OF_DRAWS
    missing = [key for key in drawn if values[key] is None]
    if missing and len(missing) < len(drawn):
        raise DataError(f"'lm' holds draws only in part, {', '.join(missing)} missing")
    _check_lengths(values)
    return values


def _check_lengths(values: Mapping[str, Any]) -> None:
    """Scores by draw: equally many; scores under many temperatures: one of each."""
    drawn = {key: values[key].shape for key in _BY_DRAW if values[key] is not None}
    if len(set(drawn.values())) > 1 or any(len(shape) != 1 for shape in drawn.values()):
        shown = ", ".join(f"{key}: {shape}" for key, shape in drawn.items())
        raise DataError(f"'lm' needs one number for every draw, got {shown}")
    sizes = {key: values[key].shape for key in _GRIDS if values[key] is not None}
    if sizes and ("temperatures" not in sizes or len(set(sizes.values())) > 1):
        shown = ", ".join(f"{key}: {shape}" for key, shape in sizes.items())
        raise DataError(f"'lm' needs one number for every one of its temperatures, got {shown}")
