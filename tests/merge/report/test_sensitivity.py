"""Sensitivity to the prior against merges that were made again."""

import json
import math

import pytest
import torch
from merge_cases import add_curvature, add_posterior, two

from vlora.config import load_config
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.quadratic import increase, metric_of
from vlora.merge.report.sensitivity import sampled
from vlora.merge.run import merge_with_report
from vlora.recipes.merge_pages import merge_page


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    _, plain = two(tmp_path_factory.mktemp("sensitivity"))
    return [add_curvature(add_posterior(p, seed), 50 * seed) for seed, p in enumerate(plain, 1)]


def test_it_is_what_merging_again_gives(pair):
    settings = {"tau": 0.6, "rank": "lossless", "names": ["a", "b"], "scale": 0.9}
    _, report = merge_with_report(pair, **settings)
    inputs = read_inputs(pair, ["a", "b"])
    assert report.sensitivity["modules"] == sampled(inputs.modules) and len(sampled(inputs.modules)) == 4
    merges = {
        t: read_inputs([merge_adapters(pair, **{**settings, "tau": t})], ["m"]) for t in (0.3, 0.6, 1.2)
    }
    modules = report.sensitivity["modules"]
    deltas = {t: [m.update(0, module).delta() for module in modules] for t, m in merges.items()}
    size = sum(d.square().sum() for d in deltas[0.6])
    for name, tau in (("half", 0.3), ("double", 1.2)):
        found = report.sensitivity[name]
        gap = sum((x - y).square().sum() for x, y in zip(deltas[tau], deltas[0.6], strict=True))
        assert found["update"] == pytest.approx(math.sqrt(gap / size), rel=1e-4) and found["update"] > 1e-3
        for i, adapter in enumerate("ab"):
            losses = [
                sum(
                    increase(metric_of(inputs.update(i, m)), merges[t].update(0, m), inputs.update(i, m))
                    for m in modules
                )
                for t in (tau, 0.6)
            ]
            assert found["predicted_loss"][adapter] == pytest.approx(losses[0] / losses[1] - 1, abs=1e-4)


def test_only_where_a_prior_has_a_part(pair):
    assert merge_with_report(pair, method="linear")[1].sensitivity == {}
    assert merge_with_report(pair, curvature="isotropic")[1].sensitivity == {}
    assert merge_with_report(pair, curvature="separable")[1].sensitivity["double"]["update"] > 0
    assert sampled(list("abcdefghi"), 2048) == ["a", "i"]
    assert sampled(["a"]) == ["a"] and sampled(list("abcdefghi")) == ["a", "d", "f", "i"]


def test_the_page_shows_it(pair, tmp_path):
    for number, posterior in enumerate(pair):
        posterior.save_pretrained(tmp_path / str(number))
    values = {"adapters": [{"path": str(tmp_path / n)} for n in "01"], "output": str(tmp_path / "m")}
    done = run_merge(load_config(MergeConfig, values), merge_page)
    page = (done / "report.html").read_text()
    double = json.loads((done / "merge_report.json").read_text())["sensitivity"]["double"]
    assert "Sensitivity to the prior" in page and f"<td>{100 * double['update']:.2g} %</td>" in page
    assert f"<td>{100 * double['predicted_loss']['1']:+.2g} %</td>" in page and "without the file" not in page
    assert torch.is_tensor(pair[0].mean[next(iter(pair[0].mean))])
