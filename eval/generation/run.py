"""One evaluation of answers from start to end: read, sample and score every model, compute, write the folder.

Written are ``answers.jsonl`` (what every model said about every question), ``results.json`` (what follows from it),
``report.html`` (the same for people) and ``config.yaml`` (the settings as resolved), in one rename.
"""

import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlora.config import save_config, to_plain
from vlora.eval.environment import hardware, peak_memory_bytes, versions
from vlora.eval.generation.baselines import answer_baselines
from vlora.eval.generation.columns import ALL
from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.costs import answer_costs
from vlora.eval.generation.files import ANSWER_FORMAT, write_answer_results
from vlora.eval.generation.records import to_line
from vlora.eval.generation.report import write_answer_report
from vlora.eval.generation.results import compute_answer_results
from vlora.eval.generation.session import Session, answer_all, prepare_session, say_cut
from vlora.eval.generation.store import AnswerStore
from vlora.files import atomic_folder, atomic_write, check_output_folder

__all__ = ["ANSWERS", "run_generation"]

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"
RESULTS = "results.json"
REPORT = "report.html"
CONFIG = "config.yaml"


def run_generation(config: GenerationConfig) -> Path:
    """Evaluate and write the output folder; a killed run continues with the questions it had not answered.

    Returns:
        The output folder, holding ``answers.jsonl``, ``results.json``, ``report.html`` and ``config.yaml``.

    Raises:
        OutputExistsError: The output folder holds something else, or an evaluation and ``overwrite`` is false.
        OutputError: The output cannot be written.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read.
        ConfigError: Settings that do not fit together.
    """
    output = check_output_folder(config.output, RESULTS, overwrite=config.overwrite)
    start, run, store = time.perf_counter(), prepare_session(config), AnswerStore(output)
    truncated = say_cut(run)
    found = answer_all(run, store)
    records = [record for answers, _ in found.values() for record in answers]
    measured = compute_answer_results(
        records,
        detect=to_plain(config.detect),
        threshold=config.threshold,
        rules=config.calibration,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
    )
    results = {
        **_head(run),
        **measured,
        "baselines": answer_baselines(
            measured, [speaker.describe() for speaker in run.speakers], to_plain(config)
        ),
        "truncated": truncated,
        "repeated": run.repeated,
        "cost": {
            "seconds": time.perf_counter() - start,
            "seconds_by_model": {
                name: sum(s.seconds for s in spent.values()) for name, (_, spent) in found.items()
            },
            "by_estimator": [row for own, spent in found.values() for row in answer_costs(own, spent)],
            "questions": len(run.questions),
            "peak_memory_bytes": peak_memory_bytes(),
        },
    }
    _say(measured)
    with atomic_folder(output) as folder:
        atomic_write(folder / ANSWERS, "".join(to_line(record) for record in records))
        write_answer_results(folder / RESULTS, results)
        write_answer_report(results, folder / REPORT)
        save_config(config, folder / CONFIG)
    store.remove(run.keys, run.verdicts(store))
    return output


def _say(measured: Mapping[str, Any]) -> None:
    """Count what the judge left out, and say where nothing can be ranked."""
    ranked = {row["model"] for row in measured["estimators"] if row["group"] == ALL}
    for row in measured["answers"]:
        if row["group"] != ALL:
            continue
        if row["ungraded"] or row["judge_failures"]:
            logger.warning(
                "%s: the judge gave no verdict on %d pairs; %d of %d answers could not be graded, all are kept",
                *(row["model"], row["judge_failures"], row["ungraded"], row["questions"]),
            )
        if row["metrics"] and row["model"] not in ranked:
            logger.warning(
                "%s: its attempts are all right or all wrong, so no score of them can be ranked (AUROC, PRR)",
                row["model"],
            )


def _head(run: Session) -> dict[str, Any]:
    """What the results are of."""
    config = run.config
    return {
        "format": ANSWER_FORMAT,
        "kind": "generation",
        "task": config.task,
        "task_sha256": run.task_sha256,
        "task_file": to_plain(run.task),
        "shots": run.shots,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_samples": config.num_samples,
        "num_answers": config.sampling.num_answers,
        "antithetic": config.antithetic,
        "clusters_by": config.judge.clusters_by,
        "num_bootstrap": config.num_bootstrap,
        "seed": config.seed,
        "models": [speaker.describe() for speaker in run.speakers],
        "settings": to_plain(config),
        "versions": versions(),
        "hardware": hardware(),
    }
