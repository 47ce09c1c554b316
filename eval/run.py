"""One evaluation from start to end: read, score every model on one base, compute results, write the folder.

Written are ``records.jsonl`` (what every model said about every item), ``results.json`` (what follows from it) and
``config.yaml`` (the settings as resolved), in one rename. The report is drawn from ``results.json`` a floor above.
"""

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlora.config import save_config, to_plain
from vlora.eval.config import EvalConfig
from vlora.eval.environment import hardware, peak_memory_bytes, versions
from vlora.eval.forward import Draws
from vlora.eval.prepare import Evaluation, prepare
from vlora.eval.progress import WorkFolder
from vlora.eval.records import Record
from vlora.eval.results import compute_results, write_results
from vlora.eval.rows import make_records
from vlora.eval.score import score_model
from vlora.eval.subjects import Subject
from vlora.files import atomic_folder, check_output_folder

__all__ = ["RECORDS", "RESULTS", "run_eval"]

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
RESULTS = "results.json"
CONFIG = "config.yaml"

_Finished = tuple[list[Record], dict[str, Any]]
"""Records of a model, and seconds, tokens and memory that they took."""


def run_eval(config: EvalConfig, *, finish: Callable[[Path], object] | None = None) -> Path:
    """Evaluate and write the output folder; a killed run continues with the models it had not finished.

    Args:
        config: What to evaluate.
        finish: Called with the filled folder before it takes its place, to add to it; the report goes in this way,
            so that no output is ever without one.

    Returns:
        The output folder, holding ``records.jsonl``, ``results.json`` and ``config.yaml``.

    Raises:
        OutputExistsError: The output folder holds something else, or an evaluation and ``overwrite`` is false.
        OutputError: The output cannot be written.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read or scored.
        ConfigError: Settings that do not fit together.
    """
    output = check_output_folder(config.output, RESULTS, overwrite=config.overwrite)
    start = time.perf_counter()
    evaluation, work = prepare(config), WorkFolder(output)
    finished = _score_all(evaluation, work)
    results = compute_results(
        [record for records, _ in finished for record in records],
        models=[subject.describe() for subject in evaluation.subjects],
        detect=to_plain(config.detect),
        task=config.task,
        num_samples=config.num_samples,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
        settings=to_plain(config),
        versions=versions(),
        hardware=hardware(),
        cost=_cost(evaluation, [facts for _, facts in finished], time.perf_counter() - start),
    )
    with atomic_folder(output) as folder:
        with open(folder / RECORDS, "wb") as target:
            for subject in evaluation.subjects:
                with open(work.records_path(subject.name, evaluation.key(subject)), "rb") as source:
                    shutil.copyfileobj(source, target)
        write_results(folder / RESULTS, results)
        save_config(config, folder / CONFIG)
        if finish is not None:
            finish(folder)
    work.remove()
    return output


def _score_all(evaluation: Evaluation, work: WorkFolder) -> list[_Finished]:
    """Records and facts of every model, each kept in the work folder as soon as it is finished."""
    found = {s.name: work.load(s.name, evaluation.key(s)) for s in evaluation.subjects}
    kept = [name for name, finished in found.items() if finished is not None]
    if kept:
        logger.info("continuing: %s scored before, taken from %s", ", ".join(kept), work.path)
    missing = [subject for subject in evaluation.subjects if found[subject.name] is None]
    if missing:
        rows = sum(len(batch.rows) for batch in evaluation.scorer.batches)
        passes = sum(1 + evaluation.num_samples(subject) for subject in missing)
        with tqdm(total=rows * passes, unit="row", desc="evaluate", disable=None) as bar:
            for subject in missing:
                bar.set_postfix_str(subject.name)
                found[subject.name] = finished = _score(evaluation, subject, bar.update)
                work.save(subject.name, evaluation.key(subject), *finished)
    return [finished for finished in found.values() if finished is not None]


def _score(evaluation: Evaluation, subject: Subject, tick: Callable[[int], object]) -> _Finished:
    """Records of one model and what they cost."""
    config, scorer, items = evaluation.config, evaluation.scorer, evaluation.items
    start, draws = time.perf_counter(), evaluation.num_samples(subject)
    antithetic = config.antithetic and draws > 0
    with evaluation.host.wearing(subject.posterior) as model:
        held = Draws(model, subject.posterior, num_samples=draws, antithetic=antithetic)
        scores = score_model(scorer, held, tick)
    records = make_records(
        subject.name, items, scorer, scores, antithetic=antithetic, classes=evaluation.classes
    )
    facts = {
        "seconds": time.perf_counter() - start,
        "forward_tokens": scorer.num_tokens * (1 + draws),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return records, facts


def _cost(evaluation: Evaluation, facts: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Cost of the evaluation, models scored by an earlier, killed run included."""
    names = [subject.name for subject in evaluation.subjects]
    return {
        "seconds": seconds,
        "scoring_seconds": sum(fact["seconds"] for fact in facts),
        "forward_tokens": sum(fact["forward_tokens"] for fact in facts),
        "items": len(evaluation.items),
        "peak_memory_bytes": max([peak_memory_bytes(), *(fact["peak_memory_bytes"] for fact in facts)]),
        "seconds_by_model": {name: fact["seconds"] for name, fact in zip(names, facts, strict=True)},
    }
