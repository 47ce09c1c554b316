"""Tables of ``benchmarks/generation``, made from its JSON files and put into the README between two markers.

    python -m benchmarks.generation.table [--print]

A number of one world is the mean over its two adapters. Means are over worlds; intervals are 95 % of Student's t over
worlds, of differences that are paired by world.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.readme_table import (
    Records,
    interval,
    markdown,
    mean,
    number,
    read_results,
    with_half_width,
    write_tables,
)
from vlora.eval.generation.estimators import ESTIMATORS

HERE = Path(__file__).parent
SETTINGS = {"word": "one word", "phrase": "a phrase"}
ARMS = {
    "ivon": "IVON", "adamw": "AdamW", "ensemble": "ensemble of 4", "leading_ivon": "IVON, leading",
    "leading_adamw": "AdamW, leading",
}  # fmt: skip
GROUPS = ("clean", "ambiguous", "base", "unknown", "near_miss")
BASELINE = "max_probability"
DIFFERENCES = (
    "mean_token_entropy", "token_nll", "lexical_dissimilarity", "semantic_entropy", "weighted_semantic_entropy",
    "kernel_language_entropy", "eigenscore", "disagreement", "mixture", "scored_semantic_total",
    "scored_semantic_information",
)  # fmt: skip
APART = ("unknown vs ambiguous", "ambiguous vs clean")
OURS = (
    ("ivon", "max_probability"), ("ivon", "mean_token_entropy"), ("ivon", "semantic_entropy"), ("ivon", "mixture"),
    ("ivon", "scored_semantic_total"), ("ivon", "scored_semantic_information"), ("ensemble", "max_probability"),
    ("ensemble", "mean_token_entropy"), ("ensemble", "scored_semantic_total"),
    ("ensemble", "scored_semantic_information"),
    *((f"leading_{name}", score) for name in ("ivon", "adamw")
      for score in ("mixture", "scored_semantic_total", "scored_semantic_information")),
)  # fmt: skip
AGAINST = ("adamw", "mean_token_entropy")
ABSTENTION = ("max_probability", "token_nll", "semantic_entropy", "mixture", "scored_semantic_total")
Keys = Sequence[str]


def joined(records: Records) -> Records:
    """The records with the arms of ``leading/<unit>`` added to those of ``<unit>``."""
    found = {}
    for name, record in records.items():
        if not name.startswith("leading/"):
            more = records.get(f"leading/{name}", {})
            both = {key: {**record[key], **more.get(key, {})} for key in ("scores", "cost")}
            found[name] = {**record, **both}
    return found


def worlds(records: Records, setting: str) -> list[int]:
    """Worlds of a setting."""
    return sorted(record["world"] for record in records.values() if record["setting"] == setting)


def values(records: Records, setting: str, arm: str, *keys: str) -> np.ndarray:
    """One number per world, mean over its two adapters; NaN where there is none."""
    found = []
    for world in worlds(records, setting):
        scores = records[f"{setting}_{world}"]["scores"].get(arm, {})
        found.append(mean([dig(one, *keys) for one in scores.values()]))
    return np.array(found)


def dig(value: Any, *keys: str) -> float:
    """A number deep inside a record, NaN where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return math.nan if value is None else float(value)


def arms(records: Records, setting: str) -> list[str]:
    """Methods that a setting has."""
    return [
        arm for arm in ARMS if not np.isnan(values(records, setting, arm, "groups", "clean", "correct")).all()
    ]


def _cells(records: Records, setting: str, name: str, paths: Sequence[Keys]) -> list[str]:
    """One cell a method and path; ``*`` in a path is the estimator."""
    return [
        with_half_width(values(records, setting, arm, *(name if key == "*" else key for key in path)))
        for path in paths
        for arm in arms(records, setting)
    ]


def correct_table(records: Records, setting: str) -> str:
    """Share of right answers by group."""
    lines = [
        [
            ARMS[arm],
            *(
                with_half_width(values(records, setting, arm, "groups", g, "correct"), 1, 100.0)
                for g in GROUPS[:3]
            ),
        ]
        for arm in arms(records, setting)
    ]
    return markdown(["right, %", *GROUPS[:3]], lines)


def estimator_table(records: Records, setting: str, paths: dict[str, Keys]) -> str:
    """Every estimator on some questions."""
    header = [f"{ARMS[arm]}: {words}" for words in paths for arm in arms(records, setting)]
    lines = [[name, *_cells(records, setting, name, list(paths.values()))] for name in ESTIMATORS]
    return markdown(["", *header], [line for line in lines if set(line[1:]) != {"—"}])


def difference_table(records: Records, setting: str) -> str:
    """Estimators less the probability of the same model's answer, paired by world."""
    paths: dict[str, Keys] = {
        "wrong, known people": ("errors", "known", "*", "auroc"),
        "unknown vs ambiguous": ("auroc", "unknown vs ambiguous", "*"),
    }
    lines = []
    for name in DIFFERENCES:
        cells = []
        for path in paths.values():
            for arm in arms(records, setting):
                own, other = (
                    values(records, setting, arm, *(one if key == "*" else key for key in path))
                    for one in (name, BASELINE)
                )
                cells.append(interval(own - other, 3))
        lines.append([name, *cells])
    header = [f"{ARMS[arm]}: {words}" for words in paths for arm in arms(records, setting)]
    return markdown([f"− {BASELINE}", *header], lines)


def against_table(records: Records, setting: str) -> str:
    """Scores of the other methods less AdamW's entropy, paired by world."""
    paths: dict[str, Keys] = {
        "wrong, known people": ("errors", "known", "*", "auroc"),
        "wrong, everybody": ("errors", "everybody", "*", "auroc"),
        "unknown vs known": ("auroc", "unknown vs known", "*"),
        "unknown vs ambiguous": ("auroc", "unknown vs ambiguous", "*"),
    }

    def found(arm: str, name: str, path: Keys) -> np.ndarray:
        return values(records, setting, arm, *(name if key == "*" else key for key in path))

    lines = [
        [ARMS[arm], name, *(interval(found(arm, name, p) - found(*AGAINST, p), 3) for p in paths.values())]
        for arm, name in OURS
        if arm in arms(records, setting)
    ]
    return markdown(["", f"− AdamW's {AGAINST[1]}", *paths], lines)


def information_table(records: Records, setting: str) -> str:
    """Semantic mutual information by group, scored and counted, and what it tells apart."""
    kinds = {
        "scored": ("mean_scored_semantic_information", "scored_semantic_information"),
        "counted, chance taken out": ("mean_semantic_information", "semantic_information"),
    }
    lines = []
    for arm in arms(records, setting):
        rows = {
            words: [
                *(values(records, setting, arm, "groups", group, mean_key) for group in GROUPS),
                *(values(records, setting, arm, "auroc", question, key) for question in APART),
            ]
            for words, (mean_key, key) in kinds.items()
        }
        rows["counted as it is"] = [
            *(values(records, setting, arm, "plain", "mean", group) for group in GROUPS),
            *(values(records, setting, arm, "plain", "auroc", question) for question in APART),
        ]
        lines += [
            [ARMS[arm], words, *map(with_half_width, found)]
            for words, found in rows.items()
            if not np.isnan(found[0]).all()
        ]
    return markdown(["", "nats", *GROUPS, *(f"AUROC {question}" for question in APART)], lines)


def calibration_table(records: Records, setting: str) -> str:
    """Brier score and ECE of every confidence on known people."""
    lines = []
    for arm in arms(records, setting):
        first = next(r for r in records.values() if r["setting"] == setting and arm in r["scores"])
        for name in next(iter(first["scores"][arm].values()))["calibration"]:
            brier, ece, floor = (
                with_half_width(values(records, setting, arm, "calibration", name, key))
                for key in ("brier", "ece", "ece_floor")
            )
            lines.append([ARMS[arm], name, brier, f"{ece} ({floor})"])
    return markdown(["", "confidence", "Brier", "ECE (floor)"], lines)


def abstention_table(records: Records, setting: str) -> str:
    """What a threshold for 5 % errors lets through, mean over the adapters that have one."""
    lines = []
    for arm in arms(records, setting):
        for name in ABSTENTION:
            every = [
                one["abstention"][name]
                for world in worlds(records, setting)
                for one in records[f"{setting}_{world}"]["scores"].get(arm, {}).values()
                if name in one["abstention"]
            ]
            some = [one for one in every if one["coverage"] > 0]
            keys = ("coverage", "risk", "unknown_answered", "near_miss_answered")
            if every:
                cells = [number(100 * mean([one[key] for one in some]), 1) for key in keys]
                lines.append([ARMS[arm], name, *cells, f"{len(some)} of {len(every)}"])
    header = ["known answered, %", "of them wrong, %", "unknown answered, %", "near misses answered, %"]
    return markdown(["", "score", *header, "adapters with a threshold"], lines)


def cost_table(records: Records, setting: str) -> str:
    """Decodes and scored answers per question, and forward-equivalents, by step."""
    lines = []
    for arm in arms(records, setting):
        rows = [
            row
            for world in worlds(records, setting)
            for one in records[f"{setting}_{world}"]["cost"].get(arm, {}).values()
            for row in one
        ]
        for step in dict.fromkeys(row["estimator"] for row in rows):
            own = [row for row in rows if row["estimator"] == step]
            passes = number(mean([row["passes"] for row in own]), 1)
            forwards = number(
                mean([math.nan if row["forwards"] is None else row["forwards"] for row in own]), 2
            )
            lines.append([ARMS[arm], step, passes, forwards])
    return markdown(["", "step", "passes per question", "forward-equivalents"], lines)


def block(folder: Path) -> str:
    """Everything between the markers."""
    records = joined(read_results(folder))
    if not records:
        return "No results yet.\n"
    first = next(iter(records.values()))
    parts = [
        f"{', '.join(f'{name} {version}' for name, version in first['versions'].items())}; one thread.\n"
    ]
    errors: dict[str, Keys] = {
        "known, AUROC": ("errors", "known", "*", "auroc"),
        "known, PRR": ("errors", "known", "*", "prr"),
        "everybody, AUROC": ("errors", "everybody", "*", "auroc"),
    }
    apart: dict[str, Keys] = {
        name: ("auroc", name, "*")
        for name in ("unknown vs known", "unknown vs ambiguous", "near miss vs known")
    }
    for setting, words in SETTINGS.items():
        if not worlds(records, setting):
            continue
        parts += [
            f"### Answers of {words}: {len(worlds(records, setting))} worlds\n",
            correct_table(records, setting) + "\n",
            "**Wrong or right?** Wrong answers against right ones, of known people and of everybody.\n",
            estimator_table(records, setting, errors) + "\n",
            "**Known or not?** AUROC.\n",
            estimator_table(records, setting, apart) + "\n",
            f"**Against `{BASELINE}` of the same model**, AUROC, paired by world.\n",
            difference_table(records, setting) + "\n",
            f"**Against AdamW's `{AGAINST[1]}`**, AUROC, paired by world.\n",
            against_table(records, setting) + "\n",
            "**Semantic information** of meaning and draw, mean by group.\n",
            information_table(records, setting) + "\n",
            "**Confidences** on known people.\n",
            calibration_table(records, setting) + "\n",
            "**“Don't know” at 5 % risk.**\n",
            abstention_table(records, setting) + "\n",
            "**Cost.**\n",
            cost_table(records, setting) + "\n",
        ]
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(HERE, block, "Tables of generation from its JSON files.", arguments)


if __name__ == "__main__":
    main()
