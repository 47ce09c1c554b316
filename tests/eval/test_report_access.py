"""Both pages for people without a mouse, a network or a screen: headings, table heads, figures, links, printing."""

import re
from html.parser import HTMLParser

import pytest
from report_fixture import make_results
from test_results import make_model

from vlora.eval.compare import compare_runs
from vlora.eval.compare_report import render_comparison
from vlora.eval.records import write_records
from vlora.eval.report import render_report
from vlora.eval.results import compute_results


class Page(HTMLParser):
    """Collects what a screen reader goes by."""

    def __init__(self):
        super().__init__()
        self.headings, self.bare_heads, self.unnamed, self.stack = [], [], [], []
        self.language, self.tables, self.table_heads = None, 0, 0

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag == "html":
            self.language = found.get("lang")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "th" and "scope" not in found:
            self.bare_heads.append(self.getpos())
        self.tables += tag == "table"
        self.table_heads += tag == "thead"
        named = "aria-label" in found or found.get("aria-hidden") == "true"
        if tag in ("figure", "svg") and not named:
            self.unnamed.append((tag, self.getpos()))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of a closed-world run, of real records with every metric, and a comparison."""
    plain, ivon = make_model("plain", 2.0, draws=0, seed=1), make_model("ivon", 0.3, seed=2)
    folder = tmp_path_factory.mktemp("pages")
    for name, rows in (("a", plain), ("b", ivon)):
        (folder / name).mkdir()
        write_records(folder / name / "records.jsonl", rows)
    compared = compare_runs([str(folder / "a"), str(folder / "b")], num_bootstrap=20)
    return {
        "closed world": render_report(make_results()),
        "records": render_report(compute_results([*plain, *ivon], num_bootstrap=20)),
        "comparison": render_comparison(compared),
    }


@pytest.mark.parametrize("name", ["closed world", "records", "comparison"])
def test_structure_can_be_read_aloud(pages, name):
    page = Page()
    page.feed(pages[name])
    assert page.language == "en"
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    assert not page.bare_heads and page.tables == page.table_heads > 0
    assert not page.unnamed


@pytest.mark.parametrize("name", ["closed world", "records", "comparison"])
def test_nothing_is_loaded_and_both_modes_and_paper_are_served(pages, name):
    text = pages[name]
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", text) and "@import" not in text
    assert not re.search(r"url\((?!#)", text) and "<script" not in text
    assert 'content="light dark"' in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_every_metric_and_score_stands_in_the_page(pages):
    text = pages["records"]
    for words in ("Smooth ECE", "L2, debiased", "PRR", "AUPR of errors", "Class-wise ECE", "Variation ratio"):
        assert words in text
    assert "All metrics of plain" in text and "Every score: AUROC, AUPR and FPR95" in text
    assert "with draws [" in text and "chance" in text and "lower is better" in text


def test_every_tab_can_be_shown(pages):
    """Tabs work without a script: each needs a rule of its own, and a tab without one would stay empty."""
    for page in pages.values():
        tabs = page.count('<div class="tab">')
        shown = {
            int(n) for n in re.findall(r":nth-of-type\((\d+)\):checked\) > \.tab:nth-of-type\(\1\)", page)
        }
        assert set(range(1, tabs + 1)) <= shown
    assert max(page.count('<div class="tab">') for page in pages.values()) >= 6


def test_a_comparison_tells_its_time_as_the_report_does(pages):
    assert re.search(r"bootstrap resamples · \d{4}-\d\d-\d\d \d\d:\d\d UTC</p>", pages["comparison"])
