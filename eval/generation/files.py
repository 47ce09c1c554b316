"""``results.json`` of an evaluation of answers: written whole or not at all, refused when it is something else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlora.errors import DataError
from vlora.files import atomic_write

__all__ = ["ANSWER_FORMAT", "read_answer_results", "write_answer_results"]

ANSWER_FORMAT = 1
_SECTIONS = ("models", "answers", "estimators", "confidences", "detection")


def write_answer_results(path: str | Path, results: Mapping[str, Any]) -> Path:
    """Write results as strict JSON.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    return atomic_write(path, json.dumps(results, allow_nan=False, ensure_ascii=False, indent=1) + "\n")


def read_answer_results(path: str | Path) -> dict[str, Any]:
    """Read them back.

    Raises:
        DataError: The file is missing, damaged, of another kind, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; run vlora eval with kind: generation first")
    try:
        results = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); run the evaluation again") from None
    if not isinstance(results, dict) or results.get("kind") != "generation":
        raise DataError(f"{path} is not the results of an evaluation of answers (kind: generation)")
    if not isinstance(results.get("format"), int) or results["format"] > ANSWER_FORMAT:
        raise DataError(
            f"{path} has format {results.get('format')}, this version reads up to {ANSWER_FORMAT}; "
            "install a newer vlora"
        )
    missing = [name for name in _SECTIONS if name not in results]
    if missing:
        raise DataError(f"{path} lacks {missing[0]!r}; run the evaluation again")
    return results
