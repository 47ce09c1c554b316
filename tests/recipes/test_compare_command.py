"""``vlora compare`` on two runs: the table, JSON, and a page that stands alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "eval"))
from report_fixture import Checker

from vlora.eval.records import write_records
from vlora.recipes.cli import app


def run(*arguments):
    try:
        app(args=[str(argument) for argument in arguments], prog_name="vlora")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def runs(tmp_path):
    """Two runs of 40 questions; the second is right far more often."""
    for name, right in (("old <b>", 0.55), ("new", 0.95)):
        rng = np.random.default_rng(4)
        rows = []
        for i in range(40):
            p = 0.9 if rng.random() < right else 0.1
            logs = np.log([p, 1 - p]).tolist()
            rows.append(
                {
                    "model": "m",
                    "item": f"test/{i}",
                    "split": "test",
                    "group": "g",
                    "num_tokens": 3,
                    "label": 0,
                }
            )
            rows[-1] |= {"log_probs": logs}
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / "records.jsonl", rows)
    return tmp_path / "old <b>", tmp_path / "new"


def test_the_table_names_the_better_one(runs, capsys):
    assert run("compare", *runs, "--num-bootstrap", 300) == 0
    printed = capsys.readouterr().out
    assert "new:m - old <b>:m: mean against mean, 40 items" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("Accuracy")]
    assert line.endswith("new:m is better") and "p (Holm) is adjusted over all 7 tests" in printed


def test_json_and_page(runs, capsys, tmp_path):
    page = tmp_path / "c.html"
    assert run("compare", *runs, "--num-bootstrap", 300, "--json", "--html", page) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == 7 and found["pairs"][0]["tests"][0]["test"] == "McNemar exact"
    html = page.read_text()
    checker = Checker()
    checker.feed(html)
    assert not checker.problems and not checker.open and not checker.loads
    assert len(checker.ids) == len(set(checker.ids)) and "<script" not in html
    assert "old &lt;b&gt;:m" in html and "<b>:m" not in html
    assert "new:m is better than old &lt;b&gt;:m in Accuracy" in html


def test_different_items_are_one_line(runs, capsys):
    path = runs[1] / "records.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    assert run("compare", *runs) == 1
    message = capsys.readouterr().err
    assert "the items differ: 2 only in old <b>:m (first test/38)" in message and message.count("\n") == 1
