"""The conflict map against dense matrices, and its picture in the report of a merge."""

import json
import re

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, make_update

from vlora.merge.curvature.quadratic import metric_of
from vlora.merge.methods.task_arithmetic import task_arithmetic
from vlora.merge.report.conflict import conflict, total_conflict
from vlora.posterior import Posterior
from vlora.recipes.cli import main
from vlora.recipes.merge_figures import conflict_maps


def dense_square(update, difference):
    """c tr(S D G D^T) with the curvature of an update."""
    metric = metric_of(update)
    m, n = difference.shape
    s = torch.eye(m, dtype=torch.float64) if metric.output is None else metric.output
    g = torch.eye(n, dtype=torch.float64) if metric.input is None else metric.input
    s, g = (torch.diag(x) if x.ndim == 1 else x for x in (s, g))
    return metric.scale * torch.trace(s @ difference @ g @ difference.mT).item()


@pytest.mark.parametrize("settings", [{}, {"grams": False}, {"hess": False}, {"hess": False, "grams": False}])
def test_it_is_the_quadratic_of_the_dense_matrices(settings):
    updates = [make_update(1, **settings), make_update(20, r=3, **settings)]
    merged = task_arithmetic(updates, [0.8, 1.1], rank="lossless").update
    examples = [50, 80]
    found = conflict(updates, merged, examples)
    apart = 0.0
    for update, other, count in zip(updates, updates[::-1], examples, strict=True):
        count = count if settings.get("hess", True) else 1
        lost = dense_square(update, merged.delta() - update.delta())
        whole = dense_square(update, update.delta())
        assert found["increase"][update.adapter] == pytest.approx(lost / whole, rel=1e-4)
        assert found["predicted_loss"][update.adapter] == pytest.approx(0.5 * lost / count, rel=1e-4)
        assert found["loss_without_adapter"][update.adapter] == pytest.approx(0.5 * whole / count, rel=1e-4)
        between = dense_square(update, update.delta() - other.delta())
        apart += between / (whole + dense_square(update, other.delta())) / 2
    assert found["disagreement"] == pytest.approx(apart, rel=1e-4)


def test_its_ends_are_agreement_independence_and_opposition():
    one = make_update(1)
    same = conflict([one, one], one, [1, 1])
    assert same["disagreement"] == pytest.approx(0.0, abs=1e-6)
    assert same["increase"][one.adapter] == pytest.approx(0.0, abs=1e-6)
    opposite = make_update(1)
    object.__setattr__(opposite, "b", -opposite.b)
    assert conflict([one, opposite], one, [1, 1])["disagreement"] == pytest.approx(2.0)
    alone = conflict([one], one, [1])
    assert alone["disagreement"] is None
    nothing = task_arithmetic([one], [1e-12], rank="lossless").update
    assert conflict([one], nothing, [1])["increase"][one.adapter] == pytest.approx(1.0)


def test_totals_add_up_over_modules():
    modules = {
        "x": {"predicted_loss": {"a": 1.0, "b": 0.5}, "loss_without_adapter": {"a": 2.0, "b": 2.0}},
        "y": {"predicted_loss": {"a": 3.0}, "loss_without_adapter": {"a": 8.0}},
    }
    totals = total_conflict(modules)
    assert totals["a"] == {"predicted_loss": 4.0, "loss_without_adapter": 10.0, "increase": 0.4}
    assert totals["b"]["increase"] == 0.25


def test_maps_have_layers_across_and_kinds_down():
    names = [f"model.layers.{i}.mlp.experts.3.up_proj" for i in (0, 10, 2)] + ["lm_head"]
    modules = {name: {"increase": {"a": 0.5 * i}} for i, name in enumerate(names)}
    (found,) = conflict_maps(modules, "increase")
    assert found["columns"] == ["", "0", "2", "10"]
    assert found["rows"] == ["mlp.experts.3.up_proj", "lm_head"]
    places = {cell["module"]: (cell["x"], cell["y"], cell["shade"]) for cell in found["cells"]}
    assert places == {
        names[0]: (1, 0, 0.0),
        names[1]: (3, 0, 0.5),
        names[2]: (2, 0, 1.0),
        "lm_head": (0, 1, 1.0),
    }


def test_the_report_is_one_page_with_the_map(tmp_path, capsys):
    folders = []
    for seed, name in enumerate("ab", 1):
        plain = Posterior.from_pretrained(make_adapter(tmp_path / "plain" / name, seed))
        add_curvature(add_posterior(plain, seed), 50 * seed).save_pretrained(tmp_path / name)
        folders.append({"path": str(tmp_path / name), "name": f"<i>{name}"})
    (tmp_path / "c.json").write_text(
        json.dumps({"adapters": folders, "output": str(tmp_path / "m"), "tau": 0.5})
    )
    try:
        main(["merge", str(tmp_path / "c.json")])
    except SystemExit as stop:
        assert not stop.code
    page = (tmp_path / "m/report.html").read_text()
    report = json.loads((tmp_path / "m/merge_report.json").read_text())
    assert "Merge by gradient_matching" in page and "tau: 0.5" in page and "&lt;i&gt;a" in page
    assert not any(outside in page for outside in ("http", "<script", "<i>a", "src="))
    cells = re.findall(r"<title>(model\.[\w.]+): ([\d.]+)</title>", page)
    assert len(cells) == 3 * len(report["modules"])  # two adapters and all pairs
    module, value = cells[0]
    assert float(value) == pytest.approx(report["modules"][module]["increase"]["<i>a"], abs=5e-4)
    assert report["conflict"]["<i>a"]["increase"] == pytest.approx(
        sum(row["predicted_loss"]["<i>a"] for row in report["modules"].values())
        / sum(row["loss_without_adapter"]["<i>a"] for row in report["modules"].values())
    )
    assert f"wrote {tmp_path}/m" in capsys.readouterr().out
    words = [
        "merge",
        "remove",
        str(tmp_path / "m"),
        "--contributor",
        "<i>a",
        "--output",
        str(tmp_path / "out"),
    ]
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code
    assert "&lt;i&gt;b" in (tmp_path / "out/report.html").read_text()
