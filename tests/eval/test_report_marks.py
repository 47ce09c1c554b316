"""Linearised numbers that do not follow the draws are marked wherever they stand."""

import re

import jsonschema
import pytest
from report_fixture import make_results
from test_results import make_model

from vlora.eval.report import render_report
from vlora.eval.report_headline import headline
from vlora.eval.report_marks import MARK, agreement_notes, marked_predictor, marked_score
from vlora.eval.results import compute_results
from vlora.eval.results_schema import Results, results_schema

CHOICES = {
    "compared": "mutual_information", "covariance": "independent", "items": 9, "correlation": 0.41,
    "least_correlation": 0.7, "distance": 0.012, "most_distance": 0.05, "ratio": 1.3, "passed": False,
}  # fmt: skip
TEXTS = {
    "compared": "log_prob_variance", "covariance": "independent", "items": 9, "correlation": None,
    "least_correlation": 0.55, "attainable": 0.55, "ratio": 3.21, "most_ratio": 2.0, "passed": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    """Two models with the linearised predictor, in real results."""
    rows = [*make_model("good", 0.3, seed=1), *make_model("bad", 0.3, seed=2)]
    wide = [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    found = compute_results(
        [{**row, "linearised_covariance": wide} for row in rows],
        models=[{"name": "good"}, {"name": "bad"}],
        num_bootstrap=10,
    )
    found["models"][0]["linearised_agreement"] = {**CHOICES, "correlation": 0.9, "passed": True}
    found["models"][1]["linearised_agreement"] = CHOICES
    return found


def test_every_table_marks_the_model_that_failed(results):
    page = render_report(results)
    plain = {**results, "models": [{"name": "good"}, {"name": "bad"}]}
    assert MARK not in render_report(plain)
    for section in ("headline", "groups", "detection", "scores", "comparisons"):
        (part,) = re.findall(rf'<section id="{section}">.*?</section>', page, re.DOTALL)
        assert MARK in part, section
    assert (
        "rank correlation of mutual information 0.41, asked for 0.70; mean distance 0.012, at most 0.050"
        in page
    )
    (scores,) = re.findall(r'<section id="scores">.*?</section>', page, re.DOTALL)
    good, bad = (part for part in re.split(r'<tr class="block">', scores.split("<details>")[0])[1:])
    assert MARK not in good and bad.count(f"linearised {MARK}") == 1
    assert not re.search(rf"(mean|samples)[^<]*{MARK}", page)
    assert headline(results, "good")["how"] == "linearised"
    assert headline(results, "bad")["how"] == "4 posterior samples"  # no sentence about numbers that failed


def test_texts_are_marked_by_their_score():
    results = {"models": [{"name": "bad", "linearised_agreement": TEXTS}, {"name": "good"}]}
    assert marked_score(results, "bad", "linearised_std") == f"linearised std {MARK}"
    assert marked_score(results, "good", "linearised_std") == "linearised std"
    assert marked_score(results, "bad", "entropy") == "entropy"
    assert marked_predictor(results, "bad", "samples") == "samples"
    assert agreement_notes(results) == [
        f"{MARK} bad: the linearised predictive does not follow the draws (rank correlation of the variance of log p "
        "\N{EN DASH}, asked for 0.55; ratio 3.21, within a factor of 2); its numbers are marked."
    ]


def test_results_without_a_comparison_have_no_marks():
    assert MARK not in render_report(make_results({"a": "adapter", "b": "posterior"}))


def test_the_schema_describes_the_comparison(results):
    both = {**results, "models": [*results["models"], {"name": "texts", "linearised_agreement": TEXTS}]}
    Results.model_validate(both, strict=True)
    jsonschema.validate(both, results_schema())
    with pytest.raises(jsonschema.ValidationError, match="'passed' is a required property"):
        broken = {key: value for key, value in TEXTS.items() if key != "passed"}
        jsonschema.validate(
            {**both, "models": [{"name": "a", "linearised_agreement": broken}]}, results_schema()
        )
