"""The road that a user takes to "I don't know", by the package's own commands and defaults.

    vlora posterior   leading directions at an adapter's weights (AdamW's, or IVON's mean)
    vlora calibrate   prior, threshold and gate on labelled questions about people that were taught; no stranger
    vlora predict     every test question: an answer, or "don't know"
    vlora eval        what the same predictor says of strangers against known people

*plain* is the same adapter without directions: its weights, a temperature, and a threshold on the confidence. Both
thresholds are to keep the error rate at ``RISK``, the default; the questions, and who is for fitting and who for
testing, are those of the other parts. Of the labelled rows half are for the threshold by default; units of
``two_thirds`` fit the same rules with ``calibration.threshold_share: 0.67``, as much as the other parts have.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.closed_world.arms import Setting
from benchmarks.closed_world.worlds import KNOWN, Questions, data_block, questions, world_files
from vlora.recipes.closed_world import model_folder

__all__ = ["GATE", "RISK", "SCORES", "units"]

OPTIMIZERS = ("adamw", "ivon")
DIRECTIONS = 256
RISK = 0.05
"""Error rate allowed among the answers; the best possible one on ambiguous facts is .3."""
GATE = {"score": "mutual_information_times_base", "quantile": 0.95}
RULES: dict[str, dict[str, Any]] = {
    "plain": {"predictor": "mean"},
    "leading": {"predictor": "leading", "gate": GATE},
}
SHARES = {"": 0.5, "_two_thirds": 0.67}
"""Ending of a unit's name -> share of the labelled rows for thresholds; the first is the default."""
SCORES = ("entropy", "max_probability", "mutual_information", "mutual_information_times_base")
_COLUMNS = {
    "prompt": "prompt", "choices": "choices", "answer": "answer", "group": "group", "max_length": 32,
}  # fmt: skip


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """One unit an optimizer and share of the rows that are for the threshold."""
    return {
        f"road_{name}{ending}": partial(_unit, seed, name, share, optimizers, work)
        for name in OPTIMIZERS
        for ending, share in SHARES.items()
    }


def _unit(seed: int, optimizer: str, share: float, optimizers: dict[str, Any], work: Path) -> dict[str, Any]:
    files = world_files(seed, work)
    asked = questions(seed, files, "a")
    setting = Setting(seed, files, "a", asked, work / f"world_{seed}", optimizers)
    trained = setting.trained(optimizer)
    place = work / f"world_{seed}" / f"road_{optimizer}"
    rows = _write_questions(asked, place)
    found: dict[str, Any] = {}
    for rule, calibration in RULES.items():
        folder = place / rule
        if rule == "plain":
            _copied(trained, folder)
        elif not (folder / "directions.safetensors").is_file():
            _command(place, "posterior", {**_posterior(trained, files["train_a"]), "output": str(folder)})
        settings = {
            "model": str(folder), "base_model": str(model_folder()), "task": "multiple_choice",
            "data": {**rows, **_COLUMNS}, "calibration": {**calibration, "risk": RISK, "threshold_share": share},
            "output": str(place / f"{rule}_calibrated"), "overwrite": True,
        }  # fmt: skip
        _command(place, "calibrate", settings)
        answers = place / f"{rule}.jsonl"
        _vlora("predict", str(folder), "--data", rows["test"], "--out", str(answers))
        found[rule] = _answered(asked, answers)
        if rule == "leading" and share == SHARES[""]:  # scores do not depend on it
            report = place / "report"
            _command(place, "eval", {**_evaluated(settings), "output": str(report), "overwrite": True})
            found["auroc"] = _areas(report / "results.json")
    return {"world": seed, "optimizer": optimizer, "threshold_share": share, "found": found}


def _write_questions(asked: Questions, place: Path) -> dict[str, str]:
    """Files of the questions: labelled ones for fitting, all groups for testing."""
    place.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, Any]]] = {"validation": [], "test": []}
    for row, group, part in zip(asked.rows, asked.group, asked.part, strict=True):
        parts["test" if part == "test" else "validation"].append({**row, "group": group})
    for name, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{name}_rows.jsonl").write_text(text, encoding="utf-8")
    return {name: str(place / f"{name}_rows.jsonl") for name in parts}


def _copied(source: Path, target: Path) -> None:
    """The adapter alone, as PEFT saves it: no h, nothing fitted."""
    target.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())


def _posterior(adapter: Path, train: Path) -> dict[str, Any]:
    return {
        "adapter": str(adapter), "base_model": str(model_folder()), "task": "causal_lm", "data": data_block(train),
        "directions": DIRECTIONS, "batch_size": 64, "health_examples": 0, "prior_precision": 1.0, "overwrite": True,
    }  # fmt: skip


def _evaluated(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key != "calibration"}
    return kept | {
        "linearised": "leading",
        "detect": {"unknown": {"positive": ["unknown"], "negative": [*KNOWN]}},
    }


def _answered(asked: Questions, answers: Path) -> dict[str, Any]:
    """Share answered and errors by group of the test rows, in the order in which they were asked."""
    said = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    tested = [(r, g) for r, g, p in zip(asked.rows, asked.group, asked.part, strict=True) if p == "test"]
    answered: dict[str, list[bool]] = {}
    wrong: list[bool] = []
    for one, (row, group) in zip(said, tested, strict=True):
        answered.setdefault(group, []).append(not one["dont_know"])
        if group in KNOWN and not one["dont_know"]:
            wrong.append(one["best"] != row["answer"])
    shares = {group: float(np.mean(values)) for group, values in answered.items()}
    known = [value for group in KNOWN for value in answered.get(group, [])]
    return {
        "answered": shares | {"known": float(np.mean(known))},
        "error": float(np.mean(wrong)) if wrong else None,
    }


def _areas(results: Path) -> list[dict[str, Any]]:
    """AUROC of strangers against known people by predictor and score."""
    return json.loads(results.read_text(encoding="utf-8"))["detection"]


def _command(place: Path, name: str, config: dict[str, Any]) -> None:
    """One command with its configuration file."""
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    _vlora(name, str(path))


def _vlora(*arguments: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command: Sequence[str] = (sys.executable, "-m", "vlora", *arguments)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} failed: {done.stderr[-2000:]}")
