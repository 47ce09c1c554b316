"""``vlora predict``: rows in, answers out as JSON lines."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlora.errors import ConfigError, DataError
from vlora.eval.predict import Prediction, Predictor
from vlora.files import atomic_write

__all__ = ["lines_of", "predict_rows", "read_rows", "rows_for", "rows_of_texts", "summary"]

logger = logging.getLogger(__name__)


def rows_for(predictor: Predictor, source: str) -> list[dict[str, Any]]:
    """Rows to answer: a JSONL file or standard input, with a task file also a folder or file that it reads.

    Raises:
        DataError: The data cannot be read.
    """
    if predictor.reader is None or source == "-" or source.endswith(".jsonl"):
        return read_rows(source)
    return predictor.reader.load(source)


def read_rows(source: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file, or of standard input for ``-``.

    Raises:
        DataError: The file is missing, empty, or a line is not a JSON object; the message names the line.
    """
    if source != "-" and not Path(source).is_file():
        raise DataError(f"{source} is not a file; give a JSONL file, or - for standard input")
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{source} line {number} is not valid JSON ({error}); write one object a line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{source} line {number} must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    if not rows:
        raise DataError(f"{source} holds no row; write one JSON object a line")
    counts = Counter(str(row["id"]) for row in rows if row.get("id") is not None)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        logger.warning(
            "%d ids occur more than once, first %r; all rows are answered", len(repeated), repeated[0]
        )
    return rows


def rows_of_texts(texts: Sequence[str], choices: Sequence[str], predictor: Predictor) -> list[dict[str, Any]]:
    """Rows of texts given on the command line, in the columns that the predictor reads.

    Raises:
        ConfigError: The columns are templates, pairs or a task's, so that a single text does not fill them.
    """
    if predictor.reader is not None:
        raise ConfigError(f"--text cannot fill the columns of task {predictor.reader.name}; give --data")
    form = predictor.decisions.row_format
    multiple = predictor.decisions.task == "multiple_choice"
    column = (form.get("prompt") or "question") if multiple else form.get("text") or "text"
    listed = form.get("choices") or "choices"
    if not isinstance(column, str) or "{" in column or (multiple and not isinstance(listed, str)):
        raise ConfigError(
            "--text fills one column, but this model reads a template or several; give a JSONL file"
        )
    if multiple and len(choices) < 2:
        raise ConfigError("multiple choice needs at least two --choice beside --text")
    return [{column: text, **({listed: list(choices)} if multiple else {})} for text in texts]


def predict_rows(predictor: Predictor, rows: Sequence[dict[str, Any]], **settings: Any) -> list[Prediction]:
    """Predictions with a progress bar; see :meth:`vlora.eval.predict.Predictor.predict`."""
    if not predictor.calibrated:
        logger.warning(
            'nothing was calibrated: no prediction sets and no "don\'t know"; run vlora calibrate first'
        )
    with tqdm(unit="row", desc="predict", disable=None) as bar:
        return predictor.predict(rows, tick=bar.update, **settings)


def lines_of(predictions: Sequence[Prediction]) -> str:
    """Predictions as JSON lines, numbers with six digits."""
    plain = (_rounded(asdict(one)) for one in predictions)
    return "".join(json.dumps(one, allow_nan=False, ensure_ascii=False) + "\n" for one in plain)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def summary(predictions: Sequence[Prediction], out: Path) -> str:
    """Write what was predicted to a file, whole or not at all, and say what is in it.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    atomic_write(out, lines_of(predictions))
    silent = sum(one.dont_know for one in predictions)
    return f'wrote {out}: {len(predictions)} rows, {silent} of them "don\'t know"'
