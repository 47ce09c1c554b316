"""Health of posteriors in the report: the numbers of ``vlora inspect`` for every model that has a posterior."""

import re

import torch
from report_fixture import check, make_results

from vlora import Posterior
from vlora.eval.report import render_report
from vlora.eval.report_health import health_table
from vlora.posterior import PosteriorMeta

MEASURED = {
    "effective_memory": 0.865, "share_moved": 0.72, "share_negative": 0.01, "rank_correlation": 0.874,
    "rank_correlation_within": 0.613, "hess_to_reference": 1.1, "reference_examples": 64, "reference_held_out": True,
}  # fmt: skip


def posterior(weight_decay=0.0, **health):
    mean = {"a": torch.full((4,), 0.5), "b": torch.full((4,), 0.25)}
    hess = {key: torch.ones(4) for key in mean}
    meta = PosteriorMeta(num_examples=100, ess=100.0, weight_decay=weight_decay, health=health)
    return Posterior(mean, hess, meta, {})


def results_of(**summaries):
    results = make_results(dict.fromkeys(summaries, "posterior"))
    for entry in results["models"]:
        entry["summary"] = summaries[entry["name"]]
    return results


def cells(page, name):
    """Plain text of a model's row in the table of health."""
    table = page[page.index('id="health"') :]
    row = re.search(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', table).group(1)
    return [re.sub("<[^>]+>", "|", cell).strip("|") for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_every_posterior_has_a_row_of_its_summary():
    """std is 1 / sqrt(100) = 0.1, so noise over weight is 0.2 and 0.4, their lower median 0.2."""
    summary = posterior(**MEASURED).summary()
    page = render_report(
        results_of(learnt=summary, merged=posterior().summary(), plain={"kind": "plain PEFT adapter"})
    )
    check(page)
    assert summary["noise_to_weight"] == torch.tensor(0.2).item()
    assert cells(page, "learnt") == [
        "h has moved with the data; it ranks like the per-example squared gradients (rank correlation 0.87)",
        "86.5\u202f%", "72\u202f%", "0\u202f% (0\u202f%)", "0.20",
        "0.0\u202f% (0.0\u202f%)", "0.87 (0.61)|64 held-out rows",
    ]  # fmt: skip
    verdict, memory, moved, *_, rank = cells(page, "merged")
    assert verdict == "not measured: h does not come from one training run"
    assert (memory, moved, rank) == ("–", "–", "–")
    assert [row["name"] for row in health_table(results_of(plain={"kind": "plain PEFT adapter"}))] == []


def test_a_posterior_that_is_still_its_prior_is_said_to_be_so():
    summary = posterior(effective_memory=0.01, share_moved=0.0, share_negative=0.0).summary()
    page = render_report(results_of(cold=summary))
    verdict, memory, moved, *_ = cells(page, "cold")
    assert verdict.startswith("this posterior is still its prior: h has hardly left its start")
    assert (memory, moved) == ("1.0\u202f%", "0\u202f%")


def test_a_width_that_the_prior_sets_is_told_and_older_results_have_none():
    """Of the precision 100 (1 + 99) of every entry, 99 % is the prior's."""
    summary = posterior(weight_decay=99.0, effective_memory=1.0).summary()
    older = {key: value for key, value in summary.items() if not key.startswith("prior")}
    page = render_report(results_of(wide=summary, older=older))
    check(page)
    verdict, _, _, prior, *_ = cells(page, "wide")
    assert verdict.startswith(
        "this posterior is essentially its prior, which sets the width of 100% of its entries; h is"
    )
    assert prior == "99\u202f% (100\u202f%)" and cells(page, "older")[3] == "–"


def test_draws_that_rounding_swallows_are_counted():
    """At ess 1e10 std is 1e-5: below half of bfloat16's spacing at 0.5 and 0.25, above float32's."""
    narrow = posterior(**MEASURED)
    summary = Posterior(
        narrow.mean,
        narrow.hess,
        PosteriorMeta(num_examples=100, ess=1e10, weight_decay=0.0, health=MEASURED),
        {},
    ).summary()
    assert cells(render_report(results_of(narrow=summary)), "narrow")[5] == "0.0\u202f% (100.0\u202f%)"


def test_no_posterior_no_table():
    page = render_report(results_of(plain={"kind": "plain PEFT adapter"}))
    assert "Health of the posteriors" not in page
