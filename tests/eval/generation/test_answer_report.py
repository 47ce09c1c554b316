"""The report of answers: complete, self-contained, escaped; results files that are something else are refused."""

import json

import pytest
from test_answer_results import made

from vlora.errors import DataError
from vlora.eval.generation.files import read_answer_results, write_answer_results
from vlora.eval.generation.report import render_answer_report, write_answer_report
from vlora.eval.generation.results import compute_answer_results


@pytest.fixture(scope="module")
def results():
    rows = made([0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 1.0, 0.0], question="who <b>is</b> it?")
    rows += made([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 0.0], model="<i>other")
    rows += made([0.9, 0.8], [None, None], split="ood", group="nobody")
    rows += made([0.9, 0.8], [None, None], split="ood", group="nobody", model="<i>other")
    return {
        "format": 1, "kind": "generation", "task": "nq_open", "task_sha256": "a" * 64, "shots": [], "num_samples": 2,
        "num_answers": 3, "antithetic": True, "clusters_by": "token_f1", "created": "2026-01-01T00:00:00+00:00",
        "models": [{"name": "m"}, {"name": "<i>other"}], "settings": {"threshold": 0.75, "note": "<script>"},
        "cost": {"seconds": 3.0, "seconds_by_model": {"m": 1.0}}, "versions": {"torch": "2"},
        **compute_answer_results(rows, num_bootstrap=20),
    }  # fmt: skip


def test_the_page_shows_every_part_and_needs_nothing_else(results):
    page = render_answer_report(results)
    for part in ("headline", "answers", "estimators", "detection", "confidences", "mistakes", "settings"):
        assert f'<section id="{part}">' in page
    assert "scored_<wbr>semantic_<wbr>information" in page and "nobody vs test" in page
    assert "who &lt;b&gt;is&lt;/b&gt; it?" in page and "&lt;i&gt;other" in page
    assert "<script" not in page and "http" not in page and "src=" not in page
    auroc = results["estimators"][0]["metrics"]["auroc"]["value"]
    assert f"{auroc:.3f} (" in page
    assert "m: 50.0 % of 4 answers right; of" in page and "2026-01-01 00:00 UTC" in page
    assert "baselines max probability 0.750, mean token entropy 0.500, answer length 0.500." in page
    assert "\N{MINUS SIGN}1.000" in page and ">-1.000" not in page  # the penalised score: (2 - 2 x 3) / 4
    assert render_answer_report(results) == page


def test_mistakes_come_most_confident_first(results):
    found = [row for row in results["mistakes"] if row["model"] == "m"]
    assert [row["item"] for row in found] == ["test/all/1", "test/all/3"]
    assert found[0]["confidence"] > found[1]["confidence"]


def test_files_come_back_and_others_are_refused(results, tmp_path):
    write_answer_results(tmp_path / "results.json", results)
    assert read_answer_results(tmp_path / "results.json") == results
    assert write_answer_report(results, tmp_path / "report.html").stat().st_size > 5000
    for content, words in (
        ({**results, "format": 2}, "has format 2, this version reads up to 1"),
        ({"format": 1, "rows": []}, "is not the results of an evaluation of answers"),
        ({k: v for k, v in results.items() if k != "detection"}, "lacks 'detection'"),
    ):
        (tmp_path / "other.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=words):
            read_answer_results(tmp_path / "other.json")
    with pytest.raises(DataError, match="is not a file; run vlora eval"):
        read_answer_results(tmp_path / "none.json")
