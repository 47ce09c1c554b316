"""Class names and indices: one mapping, fixed by the training rows and recorded with the run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from vlora.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["class_index", "class_names", "whole"]

_MAX_CLASSES = 100_000  # beyond this an integer column is an id or a price, not a class


def whole(value: Any) -> Any:
    """A float without a fraction as the integer that it was before a gap in its column; all else as it is.

    CSV readers make a column of integers with gaps one of floats.
    """
    return int(value) if isinstance(value, float) and value.is_integer() else value


def class_names(rows: "Dataset | Sequence[Mapping[str, Any]]", column: str) -> list[str]:
    """Class names in index order, from the rows that define them.

    A hub ``ClassLabel`` column keeps its names. Integers (as floats too, in a column that had gaps) give
    ``"0" .. "max"``; strings are sorted.

    Raises:
        DataError: column missing, mixed types, negative integers, or a single class.
    """
    feature = getattr(rows, "features", {}).get(column)
    if feature is not None and hasattr(feature, "names"):
        return list(feature.names)
    values = {value if isinstance(value, bool) else whole(value) for value in _values(rows, column)}
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        if min(values) < 0 or max(values) >= _MAX_CLASSES:
            raise DataError(
                f"column {column!r}: labels must be class indices 0..{_MAX_CLASSES - 1}, "
                f"got {min(values)}..{max(values)}"
            )
        names = [str(index) for index in range(max(values) + 1)]
    elif all(isinstance(value, str) for value in values):
        names = sorted(str(value) for value in values)
    elif all(isinstance(value, bool) for value in values) and len(values) == 2:
        names = ["False", "True"]
    else:
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"column {column!r}: labels must all be integers or all strings, got {', '.join(kinds)}"
        )
    if len(names) < 2:
        raise DataError(f"column {column!r}: expected at least two classes, got {len(names)} ({names[0]!r})")
    return names


def class_index(value: Any, names: Sequence[str] | None, where: str) -> int:
    """Index of a label; an integer is an index unless the names say otherwise.

    Raises:
        DataError: the label is not one of the classes.
    """
    if isinstance(value, bool):
        value = str(value) if names is not None and str(value) in names else int(value)
    value = whole(value)
    if isinstance(value, int) and (names is None or 0 <= value < len(names)) and value >= 0:
        return value
    if isinstance(value, str) and names is not None and value in names:
        return list(names).index(value)
    if names is None:
        raise DataError(
            f"{where} is {value!r}, expected an index from 0; give data.labels to use class names"
        )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise DataError(f"{where} is {value!r}, outside the {len(names)} classes 0..{len(names) - 1} ({shown})")


def _values(rows: "Dataset | Sequence[Mapping[str, Any]]", column: str) -> set[Any]:
    """Distinct values of a column."""
    columns = getattr(rows, "column_names", None) or list(rows[0])
    if column not in columns:
        raise DataError(f"no label column {column!r}; the columns are {', '.join(columns)}")
    return {row[column] for row in cast("Iterable[Mapping[str, Any]]", rows)}
