"""One evaluation from start to end: read, score every model on one base, compute results, write the folder.

Written are ``records.jsonl`` (what every model said about every item), ``results.json`` (what follows from it),
``config.yaml`` (the settings as resolved) and ``scores`` (the store that a later evaluation continues from), in one
rename. The report is drawn from ``results.json`` a floor above.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlora.config import save_config, to_plain
from vlora.eval.config import EvalConfig
from vlora.eval.ensemble import ENSEMBLE, ensemble_cost, ensemble_records
from vlora.eval.environment import hardware, peak_memory_bytes, versions
from vlora.eval.feature_states import with_distances
from vlora.eval.prepare import Evaluation, prepare
from vlora.eval.records import Record, write_records
from vlora.eval.results import compute_results, write_results
from vlora.eval.scores_folder import begin_work, clear_work, keep_scores
from vlora.eval.store import ScoreFile, ScoreStore
from vlora.eval.subject_scores import count_truncated, missing_vectors, open_scores, score_subject
from vlora.eval.subjects import Subject
from vlora.eval.tables import ALL
from vlora.files import atomic_folder, check_output_folder

__all__ = ["RECORDS", "RESULTS", "SCORES", "run_eval"]

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
RESULTS = "results.json"
CONFIG = "config.yaml"
SCORES = "scores"

_Finished = tuple[list[Record], dict[str, Any]]
"""Records of a model, and seconds, tokens and memory that they took."""


def run_eval(config: EvalConfig, *, finish: Callable[[Path], object] | None = None) -> Path:
    """Evaluate and write the output folder; a killed run continues with the batch it had not finished.

    Args:
        config: What to evaluate.
        finish: Called with the filled folder before it takes its place, to add to it; the report goes in this way,
            so that no output is ever without one.

    Returns:
        The output folder, holding ``records.jsonl``, ``results.json``, ``config.yaml`` and, unless ``store`` names
        another place, ``scores``.

    Raises:
        OutputExistsError: The output folder holds something else, or an evaluation and ``overwrite`` is false.
        OutputError: The output cannot be written.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read or scored.
        ConfigError: Settings that do not fit together.
    """
    output = check_output_folder(config.output, RESULTS, overwrite=config.overwrite)
    start = time.perf_counter()
    evaluation = prepare(config)
    work = output.with_name(output.name + ".work") if config.store is None else None
    store = ScoreStore(work or Path(str(config.store)).expanduser())
    if work is not None:
        begin_work(work, output / SCORES)
    store.foreign()
    files = [open_scores(evaluation, subject, store) for subject in evaluation.subjects]
    truncated = count_truncated(evaluation, files[0])
    finished = _measure_distances(evaluation, _score_all(evaluation, files), files)
    described = [
        _describe(subject, facts) for subject, (_, facts) in zip(evaluation.subjects, finished, strict=True)
    ]
    together, entries = _ensemble(evaluation, finished)
    records = [record for records, _ in finished for record in records] + together
    results = compute_results(
        records,
        models=described + entries,
        detect=to_plain(config.detect),
        task=config.task,
        num_samples=config.num_samples,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
        settings=to_plain(config),
        versions=versions(),
        hardware=hardware(),
        truncated=truncated,
        repeated=evaluation.repeated,
        cost=_cost(evaluation, finished, time.perf_counter() - start),
    )
    _say_one_class(results)
    with atomic_folder(output) as folder:
        write_records(folder / RECORDS, records)
        write_results(folder / RESULTS, results)
        save_config(config, folder / CONFIG)
        if work is not None:
            keep_scores(work, folder / SCORES)
        if finish is not None:
            finish(folder)
    if work is not None:
        clear_work(work, output / SCORES)
    return output


def _say_one_class(results: Mapping[str, Any]) -> None:
    """Say where every answer is right, or every one wrong: nothing can be ranked then."""
    for row in results["rows"]:
        accuracy = row["metrics"].get("accuracy") if row["group"] == ALL else None
        if accuracy is not None and accuracy["value"] in (0.0, 1.0) and "+" not in row["predictor"]:
            logger.warning(
                "%s, %s: all %d answers are %s, so AUROC and other rankings of wrong answers are not defined",
                *(row["model"], row["predictor"], accuracy["n"], "right" if accuracy["value"] else "wrong"),
            )


def _score_all(evaluation: Evaluation, files: Sequence[ScoreFile]) -> list[_Finished]:
    """Records and facts of every model; every finished batch is kept as soon as it is there."""
    pairs = list(zip(evaluation.subjects, files, strict=True))
    missing = {s.name: len(missing_vectors(evaluation, s, file)) for s, file in pairs}
    known = [name for name, count in missing.items() if count == 0]
    if known:
        logger.info("scored before, taken from %s: %s", files[0].path.parent, ", ".join(known))
    total = len(evaluation.items) * sum(missing.values())
    finished = []
    with tqdm(total=total, unit="score", desc="evaluate", disable=None if total else True) as bar:
        for subject, file in pairs:
            bar.set_postfix_str(subject.name)
            finished.append(score_subject(evaluation, subject, file, bar.update))
    return finished


def _measure_distances(
    evaluation: Evaluation, finished: list[_Finished], files: Sequence[ScoreFile]
) -> list[_Finished]:
    """The records with distances of hidden states, where reference rows are given."""
    if evaluation.config.data.reference is None:
        return finished
    found = []
    for subject, (records, facts), file in zip(evaluation.subjects, finished, files, strict=True):
        measured, cost = with_distances(evaluation, subject, records, file)
        paid = {"seconds": file.seconds, "forward_tokens": round(file.tokens)}
        found.append((measured, {**facts, **paid, "estimators": [*facts["estimators"], cost]}))
    return found


def _ensemble(
    evaluation: Evaluation, finished: Sequence[_Finished]
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Records of the ensemble and its entry in the results; nothing where there is none."""
    names = evaluation.ensemble
    if not names:
        return [], []
    by_name = {subject.name: done[0] for subject, done in zip(evaluation.subjects, finished, strict=True)}
    together = ensemble_records([by_name[name] for name in names])
    return together, [{"name": ENSEMBLE, "kind": "ensemble", "members": list(names)}]


def _describe(subject: Subject, facts: dict[str, Any]) -> dict[str, Any]:
    """The model's entry in the results, with what scoring found out about it."""
    entry = subject.describe()
    if "share_left_precision" in facts:
        entry["share_left_precision"] = facts["share_left_precision"]
    if "linearised" in facts:
        agreement, posterior = facts["linearised"], subject.posterior
        assert posterior is not None
        entry["summary"] = {**entry["summary"], "linearised": agreement.describe()}
        entry["linearised_agreement"] = {**agreement.to_dict(), "covariance": posterior.covariance}
    return entry


def _cost(evaluation: Evaluation, finished: Sequence[_Finished], seconds: float) -> dict[str, Any]:
    """Cost of the evaluation, models scored by an earlier, killed run included."""
    names, facts = [subject.name for subject in evaluation.subjects], [facts for _, facts in finished]
    return {
        "seconds": seconds,
        "scoring_seconds": sum(fact["seconds"] for fact in facts),
        "forward_tokens": sum(fact["forward_tokens"] for fact in facts),
        "items": len(evaluation.items),
        "peak_memory_bytes": max([peak_memory_bytes(), *(fact["peak_memory_bytes"] for fact in facts)]),
        "seconds_by_model": {name: fact["seconds"] for name, fact in zip(names, facts, strict=True)},
        "by_estimator": [
            *(row for fact in facts for row in fact["estimators"]),
            *ensemble_cost([row for fact in facts for row in fact["estimators"]], evaluation.ensemble),
        ],
    }
