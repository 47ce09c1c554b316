"""Figures of a report of answers: bins, curves, thresholds and points against their definitions; the page with them."""

from dataclasses import replace

import numpy as np
import pytest
from test_answer_results import made

from vlora.errors import DataError
from vlora.eval.generation.config import AnswerCalibrationConfig
from vlora.eval.generation.decide import validation_parts
from vlora.eval.generation.estimators import item_scores
from vlora.eval.generation.report import render_answer_report
from vlora.eval.generation.results import compute_answer_results

RULES = AnswerCalibrationConfig(risk=0.3, delta=0.2)


def known(number, seed, split="test"):
    """Answers that are right with about the probability that the model gives them, in random order."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.02, 0.98, number)
    right = (rng.random(number) < sure).astype(float)
    rows = made(-np.log(sure), right, split=split)
    return [replace(row, references=["blue"]) for row in rows]


@pytest.fixture(scope="module")
def results():
    rows = known(120, 0) + known(400, 1, split="validation")
    unknown = made([0.9, 0.1], [0.0, 0.0], split="ood", group="nobody")
    rows += [replace(row, references=[]) for row in unknown]
    return compute_answer_results(rows, rules=RULES, num_bootstrap=20)


def entry(results, name, **wanted):
    (found,) = [e for e in results["figures"][name] if all(e[k] == v for k, v in wanted.items())]
    return found


def test_bins_hold_every_attempt_with_its_mean_confidence(results):
    bins = entry(results, "reliability", confidence="max_probability")["bins"]
    sure = np.array([np.exp(-item_scores(r)["max_probability"]) for r in known(120, 0)])
    right = np.array([r.correct for r in known(120, 0)])
    inside = (sure > bins[3]["lower"]) & (sure <= bins[3]["upper"])
    assert sum(one["n"] for one in bins) == 120 and bins[3]["n"] == inside.sum()
    assert bins[3]["confidence"] == pytest.approx(sure[inside].mean())
    assert bins[3]["accuracy"] == pytest.approx(right[inside].mean())
    assert bins[3]["low"] < bins[3]["accuracy"] < bins[3]["high"]
    scaled = entry(results, "reliability", confidence="max_probability+temperature")
    assert scaled["bins"] != bins


def test_the_threshold_stands_on_its_curve(results):
    found = entry(results, "risk_coverage", estimator="max_probability")
    mark = found["threshold"]
    assert mark["answered"] > 0 and mark["coverage"] == mark["answered"] / 120
    assert mark["fitted_on"] == 200 and mark["promised"] == 0.3
    place = int(np.argmin(np.abs(np.array(found["coverage"]) - mark["coverage"])))
    assert found["coverage"][place] == pytest.approx(mark["coverage"], abs=1e-6)
    assert found["risk"][place] == pytest.approx(mark["risk"], abs=1e-6)
    given = [r for r in known(120, 0) if item_scores(r)["max_probability"] <= mark["at"]]
    assert len(given) == mark["answered"] and sum(r.correct == 0 for r in given) == mark["wrong"]
    # A score that is equal for all answers cannot keep the risk, and the curve is flat.
    flat = entry(results, "risk_coverage", estimator="semantic_entropy")
    assert flat["threshold"]["at"] is None and flat["threshold"]["risk"] is None
    assert max(flat["risk"]) == pytest.approx(min(flat["risk"]), abs=2e-6)


def test_no_threshold_without_validation_questions():
    results = compute_answer_results(known(30, 0), num_bootstrap=20)
    assert all(one["threshold"] is None for one in results["figures"]["risk_coverage"])
    assert all("+" not in one["confidence"] for one in results["figures"]["reliability"])


def test_points_are_total_and_epistemic_by_group(results):
    groups = [one["group"] for one in results["figures"]["entropy_mi"]]
    assert groups == ["nobody"]  # the test questions have no group but "all"
    alone = compute_answer_results(known(5, 0), num_bootstrap=20)["figures"]["entropy_mi"]
    scores = item_scores(known(5, 0)[0])
    assert alone[0]["group"] == "all" and alone[0]["n"] == alone[0]["shown"] == 5
    assert alone[0]["entropy"][0] == pytest.approx(scores["scored_semantic_total"], abs=1e-6)
    assert alone[0]["mutual_information"][0] == pytest.approx(scores["scored_semantic_information"], abs=1e-6)


def test_mistakes_of_questions_with_and_without_an_answer_are_apart(results):
    kinds = [row["answerable"] for row in results["mistakes"]]
    assert kinds == [True] * 8 + [False] * 2
    first, nobody = results["mistakes"][0], results["mistakes"][8]
    assert first["confidence"] >= results["mistakes"][1]["confidence"]
    assert nobody["confidence"] == pytest.approx(np.exp(-0.1)) and nobody["entropy"] > 0


def test_parts_of_the_validation_questions():
    first, second = validation_parts(10, 0.3, seed=4)
    assert sorted(first + second) == list(range(10)) and len(second) == 3
    assert (first, second) == validation_parts(10, 0.3, seed=4) != validation_parts(10, 0.3, seed=5)
    with pytest.raises(DataError, match="1 validation questions cannot be shared between temperature and"):
        validation_parts(1, 0.5, seed=0)


def test_the_page_draws_them_for_eyes_and_screen_readers(results):
    page = render_answer_report(
        {
            **{
                "format": 1,
                "kind": "generation",
                "task": "mine/nq.yaml",
                "task_sha256": "a" * 64,
                "shots": [],
            },
            **{"num_samples": 2, "num_answers": 3, "antithetic": True, "clusters_by": "token_f1"},
            **{"created": "2026-01-01T00:00:00+00:00", "models": [{"name": "m"}], "cost": {}, "versions": {}},
            **{"settings": {"threshold": 0.75}, **results},
        }
    )
    assert page.count('<svg class="plot"') == 4 and page.count("<title>reliability diagram</title>") == 2
    assert (
        "threshold: 0." in page
        and "<title>epistemic: information against total: entropy over meanings" in page
    )
    assert "AURC: probability of the answer 0." in page and "ECE 0." in page and "(floor 0." in page
    assert (
        "no threshold could be shown to keep it" in page and "at most 30 % of the answers are wrong" in page
    )
    assert "Answers to questions that have none" in page and "trusted: nq</h1>" in page
    assert "<script" not in page and "http" not in page and 'href="#figures"' in page
    assert page.count('<figure role="group" aria-label="m">') == 4
