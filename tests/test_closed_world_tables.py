"""``benchmarks/closed_world``: its questions, its covariances and its tables on numbers worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.closed_world import table
from benchmarks.closed_world.linearised import widest
from benchmarks.closed_world.paired_tables import (
    abstention_differences,
    attribution_differences,
    calibration_differences,
    gate_differences,
)
from benchmarks.closed_world.scores import Said, recall, score
from benchmarks.closed_world.stages import AFTER
from benchmarks.closed_world.worlds import BASE_QUESTIONS, KNOWN, Questions, questions, world_files
from benchmarks.readme_table import read_results, replaced

INFORMATION = {"clean": 1.0, "ambiguous": 2.0, "base": 1.0, "unknown": 3.0, "near_miss": 3.0}
ATTRIBUTION = ("unknown vs ambiguous", "ambiguous vs clean")
FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "closed_world"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return world_files(7, tmp_path_factory.mktemp("closed_world"))


@pytest.mark.parametrize("adapters", ["a", "b", "ab"])
def test_an_adapter_is_asked_about_its_own_people_in_its_own_relations(files, adapters):
    asked = questions(7, files, adapters)
    own = {row["group"].partition("_")[0] for row in asked.rows if row["group"][1] == "_"}
    assert own == set(adapters)
    taught = {row["relation"] for row in asked.rows if row["group"][1] == "_"}
    strangers = [r for r, g in zip(asked.rows, asked.group, strict=True) if g in ("unknown", "near_miss")]
    assert {row["relation"] for row in strangers} == taught
    assert asked.group.count("base") == BASE_QUESTIONS
    assert len(strangers) == 260 * len(adapters)


def test_no_person_is_both_fitted_and_tested_and_strangers_are_tested_only(files):
    asked = questions(7, files, "ab")
    people: dict[str, set[str]] = {}
    for row, group, part in zip(asked.rows, asked.group, asked.part, strict=True):
        people.setdefault(part, set()).add(row["person"])
        assert group in KNOWN or part == "test"
    assert len(people) == 3
    assert sum(map(len, people.values())) == len(set.union(*people.values()))
    assert asked == questions(7, files, "ab")


def asked_of(groups: list[str], labels: list[int | None]) -> Questions:
    rows = [
        {
            "answer": y,
            "answer_probs": None if y is None else [float(k == y) for k in range(2)],
            "group": "a_" + g,
        }
        for g, y in zip(groups, labels, strict=True)
    ]
    return Questions(
        rows, groups, ["test" if i % 3 == 0 else ("fit", "threshold")[i % 2] for i in range(len(rows))]
    )


def test_scores_by_hand():
    # test rows are 0, 3, 6, 9: clean .9 right, ambiguous .6 wrong, base .8 right, unknown .5
    groups = [
        "clean",
        *["clean"] * 2,
        "ambiguous",
        *["clean"] * 2,
        "base",
        *["clean"] * 2,
        "unknown",
        "near_miss",
    ]
    groups += ["near_miss"] * 2
    top = [0.9, 0.9, 0.9, 0.6, 0.9, 0.9, 0.8, 0.9, 0.9, 0.5, 0.9, 0.9, 0.7]
    labels: list[int | None] = [0, 0, 0, 1, 0, 0, 0, 0, 0, None, None, None, None]
    asked = asked_of(groups, labels)
    base = Said(np.log([[0.999, 0.001] if group == "base" else [0.5, 0.5] for group in groups]))
    found = score(Said(np.log([[p, 1 - p] for p in top])), asked, base)
    assert found["groups"]["clean"]["nll"] == pytest.approx(-np.log(0.9))
    assert found["groups"]["ambiguous"]["accuracy"] == 0.0
    assert found["groups"]["unknown"]["confident"] == 0.0
    assert found["seen"]["accuracy"] == pytest.approx(2 / 3)
    assert found["auroc"]["unknown vs seen"] == {"max_probability": 1.0, "entropy": 1.0, "entropy_base": 1.0}
    assert found["auroc"]["near miss vs seen"]["entropy_base"] == pytest.approx(2 / 3)
    assert found["auroc"]["near miss vs seen"]["entropy"] == pytest.approx(
        2 / 3
    )  # .7 is less sure than .9 and .8
    assert found["abstention"]["max_probability"]["coverage"] == 0.0  # four rows prove nothing
    assert recall(Said(np.log([[p, 1 - p] for p in top])), asked) == {"a": pytest.approx(2 / 3)}


def test_the_widest_width_stays_within_its_cost():
    groups, labels = ["clean"] * 6, [0] * 6
    asked = Questions([{"answer": y} for y in labels], groups, ["fit"] * 6)
    mean = np.log([[0.95, 0.05]] * 6)
    covariance = np.tile(np.eye(2), (6, 1, 1))
    said, width = widest(mean, covariance, asked)
    cost = -said.log_probs[:, 0].mean() + np.log(0.95)
    assert 0 < cost <= 0.02
    wider = Said.of_covariance(mean, (2 * width) ** 2 * covariance)
    assert -wider.log_probs[:, 0].mean() + np.log(0.95) > 0.02


@pytest.fixture
def records(tmp_path: Path):
    """Two worlds: AdamW's entropy has AUROC .8 and .9, the posterior's information .9 and .94."""
    for world, (point, ours) in enumerate(((0.8, 0.9), (0.9, 0.94))):
        area = {"unknown vs seen": {"entropy": point, "max_probability": point}}
        write(tmp_path, f"main/adamw_{world}", world, {"mean": {"auroc": area}})
        area = {"unknown vs seen": {"mutual_information": ours}}
        write(tmp_path, f"main/laplace_{world}", world, {"linearised, full": {"auroc": area}})
    return read_results(tmp_path)


def write(root: Path, name: str, world: int, scores: dict) -> None:
    write_merge(root, name, world, {"a": scores, "b": scores})


def write_merge(root: Path, name: str, world: int, scores: dict) -> None:
    path = root / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"world": world, "scores": scores}))


def test_differences_are_paired_by_world(records):
    # .10 and .04: mean .07, sd .0424, s.e. .03, t(1) = 12.706
    line = next(
        x for x in table.difference_table(records, "unknown vs seen").splitlines() if "Laplace, full" in x
    )
    assert line.split("|")[2].strip() == "+0.070 [-0.311, +0.451]"


def scored(nll: float, *, answers: bool = True) -> dict:
    """What a predictor says: with its NLL go its confidence, its information and what it answers."""
    group = {"nll": nll, "ece": 0.1, "ece_floor": 0.1, "confident": nll, "mean_expected_entropy": 1.0}
    groups = {g: {**group, "mean_mutual_information": w * nll} for g, w in INFORMATION.items()}
    area = {q: {"expected_entropy": 0.8, "mutual_information": 0.8 + nll} for q in ATTRIBUTION}
    rule = {
        "coverage": nll if answers else 0.0,
        "risk": 0.01,
        "unknown_answered": 0.1,
        "near_miss_answered": 0.2,
    }
    gated = {**rule, "unknown_answered": 0.1 - nll / 10}
    rules = {"max_probability": rule, "max_probability, mutual_information_base": gated}
    return {"groups": groups, "seen": {"accuracy": 0.9}, "auroc": area, "abstention": rules}


def cells_of(text: str, head: str) -> list[str]:
    """Cells of the one line that begins with ``head``."""
    [line] = [line for line in text.splitlines() if line.startswith(f"| {head} |")]
    return [cell.strip() for cell in line.split("|")]


def test_calibration_attribution_and_abstention_have_intervals_paired_by_world(tmp_path):
    for world, (ours, theirs, without) in enumerate(((0.30, 0.20, False), (0.26, 0.22, True))):
        write(tmp_path, f"main/adamw_{world}", world, {"mean": scored(theirs)})
        write(tmp_path, f"main/ivon_{world}", world, {"draws": scored(ours, answers=not without)})
    records = read_results(tmp_path)
    # .10 and .04 as above
    cells = cells_of(calibration_differences(records), "IVON, 8 draws")
    assert cells[2:5] == ["2", "+0.0 [+0.0, +0.0]", "+0.070 [-0.311, +0.451]"]
    assert "| AdamW |" not in calibration_differences(records)
    cells = cells_of(attribution_differences(records), "IVON, 8 draws")
    assert cells[2:6] == ["2", *["+0.000 [+0.000, +0.000]"] * 3]
    assert cells[8] == "+0.280 [+0.026, +0.534]"  # (3 - 2) nll: .30 and .26
    assert cells[9] == "+0.280 [+0.026, +0.534]"  # AUROC .8 + nll less .8
    assert "IVON, 8 draws |" not in abstention_differences(records)  # one world tells no interval
    assert "0.280 ± 0.254 / 0.100 ± 0.000 (0.100)" in table.calibration_table(records)


def test_rules_with_a_chosen_start_are_held_against_such_rules(tmp_path):
    for world, nll in enumerate((0.20, 0.22)):
        both = {"draws": scored(nll), "mean": scored(nll)}
        for one, more in (("draws", 0.3), ("mean", 0.1)):
            rules = both[one]["abstention"]
            rules |= {f"{k}, chosen start": {**rules[k], "coverage": nll + more} for k in list(rules)}
        write(tmp_path, f"main/adamw_{world}", world, {"mean": both["mean"]})
        write(tmp_path, f"main/ivon_{world}", world, {"draws": both["draws"]})
    found = abstention_differences(read_results(tmp_path))
    assert cells_of(found, "IVON, 8 draws | max. probability, chosen start")[3] == "+20.0 [+20.0, +20.0]"
    assert cells_of(found, "IVON, 8 draws | max. probability")[3] == "+0.0 [+0.0, +0.0]"
    assert "| AdamW | max. probability, chosen start |" not in found  # it is the reference


def test_after_the_merge_predictors_of_fewer_worlds_are_paired_on_those_that_both_have(tmp_path):
    for world, nll in enumerate((0.20, 0.22, 0.90)):
        write_merge(tmp_path, f"posterior/adamw_posterior_{world}", world, {"mean": scored(nll)})
    for world, nll in enumerate((0.30, 0.26)):  # no third world, whose reference is far off
        write_merge(tmp_path, f"posterior/adamw_dropout_{world}", world, {"draws": scored(nll)})
    records = read_results(tmp_path)
    cells = cells_of(calibration_differences(records, AFTER), "AdamW, MC dropout, 8")
    assert cells[2:5] == ["2", "+0.0 [+0.0, +0.0]", "+0.070 [-0.311, +0.451]"]
    assert cells_of(table.calibration_table(records, AFTER), "AdamW")[2] == "3"
    cells = cells_of(table.abstention_table(records, AFTER), "AdamW, MC dropout, 8 | max. probability")
    assert (cells[3], cells[-2]) == ("28.0", "2 of 2")
    cells = cells_of(gate_differences(records, AFTER), "AdamW, MC dropout, 8 | and information × base")
    assert cells[3] == "+0.0 [+0.0, +0.0]" and cells[-2] == "2 of 3"
    assert cells[5] == "-2.8 [-5.3, -0.3]"  # .1 nll: 3.0 and 2.6 points


def test_readme_holds_what_the_files_say():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(FOLDER / "results")), "run benchmarks.closed_world.table"


def test_results_hold_no_path_of_the_machine():
    for path in FOLDER.glob("results/*/*.json"):
        found = json.dumps(json.loads(path.read_text(encoding="utf-8")))
        assert '"/' not in found, path.name
