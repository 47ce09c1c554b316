"""``vlora predict``: rows in, answers out as JSON lines; answers are classes, choices, or generated."""

import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

from vlora.data import Task
from vlora.errors import ConfigError, DataError
from vlora.eval.generation.predict import AnswerPrediction, AnswerPredictor
from vlora.eval.predict import Prediction, Predictor
from vlora.eval.task_files import load_task
from vlora.files import atomic_write
from vlora.posterior import Posterior
from vlora.posterior.calibration import answer_decisions_of, decisions_of

__all__ = ["lines_of", "predict_rows", "predictor_for", "read_rows", "rows_for", "rows_of_texts", "summary"]

logger = logging.getLogger(__name__)


AnyPredictor = Predictor | AnswerPredictor


def predictor_for(
    folder: str, task: str | None, predictor: str | None, alpha: float | None, **settings: Any
) -> AnyPredictor:
    """The predictor that the task asks for, else the one that was calibrated: of choices, or of generated answers.

    Args:
        folder: Posterior folder, plain adapter, or hub id of either.
        task: As asked for.
        predictor: As asked for; for classes and choices alone.
        alpha: As asked for; for classes and choices alone.
        **settings: Of either.

    Raises:
        ConfigError: Both kinds were calibrated and no task says which is meant, or a setting of the other kind.
        VloraError: The folder or its calibration cannot be used.
    """
    if not _asks_for_answers(folder, task):
        return Predictor.from_pretrained(folder, task=task, predictor=predictor, **settings)
    for name, value in (("predictor", predictor), ("alpha", alpha)):
        if value is not None:
            raise ConfigError(f"--{name} is for classes and choices, not for generated answers; leave it out")
    return AnswerPredictor.from_pretrained(folder, task=task, **settings)


def _asks_for_answers(folder: str, task: str | None) -> bool:
    """Whether answers are to be generated."""
    if task is not None:
        return task not in get_args(Task) and load_task(task).kind != "multiple_choice"
    posterior = Posterior.from_pretrained(folder)
    answers, choices = answer_decisions_of(posterior), decisions_of(posterior)
    if answers is not None and choices is not None:
        other = choices.task_file or choices.task
        raise ConfigError(
            f"{folder} was calibrated for answers to {answers.task_file} and for the choices of {other}; say which is "
            "meant by --task"
        )
    return answers is not None


def rows_for(predictor: AnyPredictor, source: str) -> list[dict[str, Any]]:
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


def rows_of_texts(
    texts: Sequence[str], choices: Sequence[str], predictor: AnyPredictor
) -> list[dict[str, Any]]:
    """Rows of texts given on the command line, in the columns that the predictor reads.

    Raises:
        ConfigError: The columns are templates, pairs or a task's, so that a single text does not fill them.
    """
    if isinstance(predictor, AnswerPredictor):
        return _questions_of_texts(texts, choices, predictor)
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


def _questions_of_texts(
    texts: Sequence[str], choices: Sequence[str], predictor: AnswerPredictor
) -> list[dict[str, Any]]:
    """Rows of questions given on the command line."""
    columns = predictor.reader.columns
    if choices:
        raise ConfigError("--choice goes with tasks of choices; this one generates its answers")
    if len(columns) != 1:
        raise ConfigError(
            f"--text fills one column, but task {predictor.reader.name} reads {', '.join(columns)}; give a JSONL file"
        )
    return [{columns[0]: text} for text in texts]


def predict_rows(
    predictor: AnyPredictor,
    rows: Sequence[dict[str, Any]],
    *,
    alpha: float | None = None,
    method: str = "lac",
    answer_all: bool = False,
) -> list[Prediction] | list[AnswerPrediction]:
    """Predictions with a progress bar; see ``predict`` of both predictors."""
    if not predictor.calibrated:
        logger.warning(
            'nothing was calibrated: no prediction sets and no "don\'t know"; run vlora calibrate first'
        )
    with tqdm(unit="row", desc="predict", disable=None) as bar:
        if isinstance(predictor, AnswerPredictor):
            return predictor.predict(rows, answer_all=answer_all, tick=bar.update)
        settings: dict[str, Any] = {"alpha": alpha, "method": method}
        return predictor.predict(rows, answer_all=answer_all, tick=bar.update, **settings)


def lines_of(predictions: Sequence[Prediction | AnswerPrediction]) -> str:
    """Predictions as JSON lines, numbers with six digits."""
    plain = (_rounded(asdict(one)) for one in predictions)
    return "".join(json.dumps(one, allow_nan=False, ensure_ascii=False) + "\n" for one in plain)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def summary(predictions: Sequence[Prediction | AnswerPrediction], out: Path) -> str:
    """Write what was predicted to a file, whole or not at all, and say what is in it.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    atomic_write(out, lines_of(predictions))
    silent = sum(one.dont_know for one in predictions)
    return f'wrote {out}: {len(predictions)} rows, {silent} of them "don\'t know"'
