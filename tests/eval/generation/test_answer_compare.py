"""Comparing runs of answers: each test against its definition, pairing by question, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_answer_results import made

from vlora.errors import DataError
from vlora.eval.compare import compare_kinds
from vlora.eval.generation.compare import DEFAULT_SCORES, answer_kind, chosen_scores
from vlora.eval.generation.confidence import fit_power, sharpen
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.eval.generation.records import to_line
from vlora.eval.metrics.abstention import abstention_scores, penalised_score
from vlora.eval.metrics.delong import compare_auroc
from vlora.eval.metrics.paired_tests import holm, mcnemar
from vlora.eval.metrics.ranking import auroc
from vlora.eval.records import write_records
from vlora.eval.tables import Resampler
from vlora.recipes.compare import compare_runs, comparison_table, write_comparison

NUMBER = 60


def answers(model, seed, skill, *, draws=True, decline=0):
    """Test, validation and unknown questions; ``skill`` says how far the probabilities follow what is right."""
    rng = np.random.default_rng(seed)
    right = (rng.random(NUMBER) < 0.6).astype(float)
    nll = np.round(rng.exponential(1.0, NUMBER) + skill * (1 - right) + 0.01, 6)
    rows = made(nll[:40], right[:40], model=model)
    rows += made(nll[40:50], right[40:50], split="validation", group="validation", model=model)
    rows += made(nll[50:] + skill, [None] * 10, split="ood", group="nobody", model=model)
    for number in range(decline):
        rows[number] = replace(rows[number], attempted=False, correct=0.0)
    if not draws:
        rows = [
            replace(r, answer=replace(r.answer, draw_log_probs=r.answer.draw_log_probs[:1])) for r in rows
        ]
    return rows


def save(folder, *models, threshold=0.75, detect=None):
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_text("".join(to_line(r) for rows in models for r in rows))
    settings = {"threshold": threshold, "detect": detect or {}}
    sections = {name: [] for name in ("models", "answers", "estimators", "confidences", "detection")}
    content = {"kind": "generation", "format": 1, "settings": settings, **sections}
    (folder / "results.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    before = save(folder / "before", answers("adamw", 1, 0.0, draws=False), threshold=0.5)
    return before, save(folder / "after", answers("ivon", 2, 2.0, decline=5))


def by_metric(found, pair=0):
    return {test["metric"]: test for test in found["pairs"][pair]["tests"]}


def test_every_number_is_that_of_its_test(runs):
    found = compare_runs(runs, num_bootstrap=400)
    (pair,) = found["pairs"]
    assert (pair["a"], pair["b"], pair["n"], pair["ungraded"]) == ("after:ivon", "before:adamw", 40, 0)
    assert (pair["predictor_a"], pair["predictor_b"], pair["threshold"]) == ("samples", "mean", 0.5)
    ours, theirs = answers("ivon", 2, 2.0, decline=5)[:40], answers("adamw", 1, 0.0)[:40]
    right = [np.array([r.correct for r in rows]) for rows in (ours, theirs)]
    said = [np.array([float(r.attempted) for r in rows]) for rows in (ours, theirs)]
    tests, exact = by_metric(found), mcnemar(*right)
    assert tests["correct"]["p"] == exact.p_value and tests["correct"]["only_a"] == exact.only_a
    scores = [abstention_scores(s, c) for s, c in zip(said, right, strict=True)]
    for name in ("incorrect", "accuracy_given_attempted", "f_score"):
        assert [tests[name][side] for side in "ab"] == pytest.approx([getattr(s, name) for s in scores])
        assert tests[name]["test"] == "paired bootstrap" and tests[name]["low"] <= tests[name]["high"]
    assert tests["incorrect"]["higher_is_better"] is False
    expected = [penalised_score(np.ones(40), c, 0.5, attempted=s) for s, c in zip(said, right, strict=True)]
    assert [tests["penalised_score"][side] for side in "ab"] == pytest.approx(expected)
    adjusted = holm([test["p"] for test in pair["tests"]])
    assert [test["p_holm"] for test in pair["tests"]] == pytest.approx(list(adjusted))


def test_wrong_answers_differ_so_their_areas_are_resampled(runs):
    tests = by_metric(compare_runs(runs, num_bootstrap=400))
    both = [
        (a, b) for a, b in zip(answers("ivon", 2, 2.0)[5:40], answers("adamw", 1, 0.0)[5:40], strict=True)
    ]
    for side, place in (("a", 0), ("b", 1)):
        rows = [pair[place] for pair in both]
        area = auroc([-sum(r.answer.log_probs) for r in rows], [1 - float(r.correct or 0) for r in rows])
        test = tests["auroc max_probability: wrong answers"]
        assert test[side] == pytest.approx(area, abs=1e-6) and test["test"] == "paired bootstrap"
    assert tests["auroc mixture: wrong answers"]["stand_in"] == {"b": "max_probability"}
    assert tests["auroc mixture: wrong answers"]["b"] == test["b"]
    assert "stand_in" not in test and "auroc scored_semantic_information: wrong answers" not in tests


def test_groups_and_given_answers_are_delongs(tmp_path, runs):
    test = by_metric(compare_runs(runs, num_bootstrap=50))["auroc max_probability: nobody vs test"]
    rows = [answers(*which) for which in (("ivon", 2, 2.0), ("adamw", 1, 0.0))]
    scores = [[-sum(r.answer.log_probs) for r in [*own[50:], *own[:40]]] for own in rows]
    expected = compare_auroc(*scores, [1.0] * 10 + [0.0] * 40)
    assert test["p"] == pytest.approx(expected.p_value, abs=1e-4) and test["test"] == "DeLong"
    given = []
    for rows in (answers("x", 1, 0.0)[:40], answers("y", 1, 2.0)[:40]):
        given.append([replace(r, answer=replace(r.answer, given=True)) for r in rows])
    found = by_metric(compare_runs([save(tmp_path / "g", *given)], num_bootstrap=50))
    assert found["auroc max_probability: wrong answers"]["test"] == "DeLong"
    assert found["auroc max_probability: wrong answers"]["better"] == "g:y"
    assert found["correct"]["p"] == 1 and "incorrect" not in found


def test_confidences_are_tempered_where_both_have_validation_questions(runs, tmp_path):
    tests = by_metric(compare_runs(runs, num_bootstrap=50))
    ours = answers("ivon", 2, 2.0, decline=5)
    held = [r for r in ours if r.split == "validation"]
    power = fit_power([np.exp(sum(r.answer.log_probs)) for r in held], [r.correct for r in held])
    spoken = ours[5:40]
    sure = sharpen([np.exp(sum(r.answer.log_probs)) for r in spoken], power)
    expected = float(np.mean((sure - np.array([r.correct for r in spoken])) ** 2))
    assert tests["brier max_probability+temperature"]["a"] == pytest.approx(expected, abs=1e-5)
    assert tests["penalised_score mixture+temperature"]["stand_in"] == {"b": "max_probability"}
    plain = [
        [r for r in answers(m, s, 1.0, draws=False) if r.split != "validation"]
        for m, s in (("x", 1), ("y", 2))
    ]
    names = by_metric(compare_runs([save(tmp_path / "n", *plain)], num_bootstrap=50))
    assert "brier max_probability" in names and not any("mixture" in name for name in names)


def test_what_one_grader_could_not_judge_is_counted(tmp_path):
    first, second = answers("x", 1, 0.0), answers("y", 1, 0.0)
    second[0], second[1] = replace(second[0], correct=None), replace(second[1], correct=None)
    (pair,) = compare_runs([save(tmp_path / "r", first, second)], num_bootstrap=50)["pairs"]
    assert (pair["n"], pair["ungraded"]) == (40, 2) and pair["tests"][0]["p"] == 1
    text = comparison_table({"pairs": [pair], "family": 10, "level": 0.05, "num_bootstrap": 50})
    assert "No bootstrap of 50 resamples can show a difference among 10 tests: take at least 399" in text
    assert "40 questions, 2 of them not graded in one of the two, threshold t = 0.75" in text


def test_scores_are_chosen_by_name(runs):
    assert chosen_scores([]) == DEFAULT_SCORES and chosen_scores(["all"]) == tuple(ESTIMATORS)
    names = by_metric(compare_runs(runs, scores=["token_nll", "eigenscore"], num_bootstrap=50))
    assert [name for name in names if name.startswith("auroc")] == [
        "auroc token_nll: wrong answers", "auroc token_nll: nobody vs test"
    ]  # fmt: skip
    found = by_metric(compare_runs(runs, scores=["token_nll:mixture"], num_bootstrap=50))
    test = found["auroc token_nll:mixture: nobody vs test"]
    assert test["scores"] == {"a": "mixture", "b": "token_nll"} and "stand_in" not in test
    both = by_metric(compare_runs(runs, scores=["mixture"], num_bootstrap=50))
    assert test["a"] == both["auroc mixture: nobody vs test"]["a"]
    assert chosen_scores(["all", "token_nll:mixture"]) == (*ESTIMATORS, "token_nll:mixture")
    lacking = by_metric(compare_runs(runs, scores=["mixture:p_true", "token_nll"], num_bootstrap=50))
    assert not any("p_true" in name for name in lacking)  # the earlier run has no draws
    with pytest.raises(DataError, match="there is no score 'best' of answers"):
        compare_runs(runs, scores=["token_nll:best"])
    with pytest.raises(DataError, match="there is no score 'entropy' of answers; choose from all, max_prob"):
        compare_runs(runs, scores=["entropy"])
    with pytest.raises(
        DataError, match="--predictor is for choices and texts; answers are compared by --score"
    ):
        compare_runs(runs, predictor="mean", num_bootstrap=20)


def test_kinds_do_not_mix(runs, tmp_path):
    row = {"model": "m", "item": "test/0", "split": "test", "group": "g", "num_tokens": 3, "label": 0}
    for name in ("choices", "same"):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "records.jsonl", [{**row, "log_probs": np.log([0.9, 0.1]).tolist()}])
    with pytest.raises(
        DataError, match=r"before:adamw holds answers \(answers.jsonl\) and choices:m holds choices"
    ):
        compare_runs([runs[0], str(tmp_path / "choices")], num_bootstrap=20)
    with pytest.raises(DataError, match="--score needs groups to tell apart, and these runs hold none"):
        compare_runs([str(tmp_path / "choices"), str(tmp_path / "same")], scores=["all"])


def test_a_folder_may_hold_tasks_of_either_kind(tmp_path):
    row = {"item": "test/0", "split": "test", "group": "g", "num_tokens": 3, "label": 0}
    for run, seed in (("one", 1), ("two", 2)):
        save(tmp_path / run / "open", answers("m", seed, 1.0))
        (tmp_path / run / "arc").mkdir()
        logs = [
            {**row, "item": f"test/{i}", "log_probs": np.log([0.3, 0.7]).tolist()} for i in range(seed + 3)
        ][:4]
        write_records(tmp_path / run / "arc/records.jsonl", [{**one, "model": "m"} for one in logs])
    found = compare_runs([str(tmp_path / "one"), str(tmp_path / "two")], num_bootstrap=50)
    assert [pair["task"] for pair in found["pairs"]] == ["arc", "open"]
    assert found["family"] == sum(len(pair["tests"]) for pair in found["pairs"])
    page = write_comparison(found, tmp_path / "c.html").read_text()
    assert (
        "Penalised score, max probability + temperature" in page
        and "40 questions, threshold t = 0.75" in page
    )


def test_other_questions_and_damaged_runs_are_one_line(runs, tmp_path):
    other = [replace(r, references=["green"]) for r in answers("m", 1, 0.0)]
    with pytest.raises(DataError, match="test/all/0 has another references in other:m than in before:adamw"):
        compare_runs([runs[0], save(tmp_path / "other", other)])
    with pytest.raises(DataError, match="20 only in before:adamw"):
        compare_runs([runs[0], save(tmp_path / "fewer", answers("m", 1, 0.0)[20:])])
    kind = answer_kind(Resampler(20, 0))
    with pytest.raises(DataError, match=r"holds no answers.jsonl, nor does a folder in it"):
        compare_kinds([_empty(tmp_path)], [kind], Resampler(20, 0))
    (tmp_path / "other/results.json").unlink()
    with pytest.raises(DataError, match="results.json is not a file; run vlora eval with kind: generation"):
        compare_runs([runs[0], str(tmp_path / "other")])


def _empty(folder):
    (folder / "empty").mkdir()
    return str(folder / "empty")
