"""Named weightings and the front of a preview, and ``vlora merge preview`` from folders to page and JSON."""

import json
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, rand

from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.merge import MergeConfig
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.preview import preview
from vlora.merge.preview.build import build_model, solve_in_full
from vlora.merge.preview.weightings import GROWTH, Family, pareto_front
from vlora.posterior import Posterior
from vlora.recipes.cli import main

NAMES = ("math", "code", "law")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("preview")
    for seed, name in enumerate(NAMES, 1):
        plain = Posterior.from_pretrained(make_adapter(root / "plain" / name, seed))
        add_curvature(add_posterior(plain, seed, num_examples=40), 50 * seed).save_pretrained(root / name)
    return root


def values(folder, names=NAMES, **settings):
    adapters = [{"path": str(folder / name)} for name in names]
    return {"method": "task_arithmetic", "adapters": adapters, "output": str(folder / "m"), **settings}


def previewed(folder, names=NAMES, count=256, low=0.0, high=1.5, variance=True, worth=None, **settings):
    config = load_config(MergeConfig, values(folder, names, **settings))
    inputs = [Posterior.from_pretrained(source.path) for source in config.adapters]
    return preview(config, inputs, count=count, low=low, high=high, variance=variance, worth=worth)


@pytest.mark.parametrize("columns", [2, 3])
def test_the_front_is_what_brute_force_finds(columns):
    losses = rand(80, columns, seed=columns).round(decimals=1)  # with ties
    beaten = lambda i: any(  # noqa: E731
        (losses[j] <= losses[i]).all() and (losses[j] < losses[i]).any() for j in range(len(losses))
    )
    assert set(pareto_front(losses)) == {i for i in range(len(losses)) if not beaten(i)}


def test_the_named_weightings_are_the_best(folder):
    done = previewed(folder, count=512)
    rows = {name: done.row(index) for name, index in done.named.items()}
    assert rows["given"]["weights"] == {"math": 1.0, "code": 1.0, "law": 1.0}
    assert rows["best average"]["average"] <= done.increase.mean(1).min().item() + 1e-6
    assert rows["best worst task"]["worst"] <= done.increase.amax(1).min().item() + 1e-6
    assert done.named["best average"] in done.front
    single = (done.weights == torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)).all(1).nonzero()[0].item()
    assert done.increase[single, 1].item() == pytest.approx(0.0, abs=1e-12)
    assert all(len(values) == 3 for values in (done.weights[0], done.without, done.examples))
    assert done.examples == [40, 40, 40]
    nats = rows["given"]["nats_per_example"]["code"]
    assert nats == pytest.approx(rows["given"]["increase"]["code"] * done.without[1].item() / 40, rel=1e-4)


def family_of(folder, names=NAMES[:2], **settings):
    config = load_config(MergeConfig, values(folder, names))
    inputs = [Posterior.from_pretrained(source.path) for source in config.adapters]
    return Family(build_model(read_inputs(inputs, list(names)), list(names)), False, -5.0, 5.0, **settings)


@pytest.mark.parametrize("worth", [None, (3.0, 1.0)])
def test_the_best_average_of_quadratic_growth_is_the_closed_form(folder, worth):
    shares = None if worth is None else torch.tensor(worth, dtype=torch.float64)
    family = family_of(folder, growth=1.0, worth=shares)
    best = family.refine(family.sobol(256, 0), family.average, 0)
    base = family.model.without() / torch.tensor(worth or (1.0, 1.0), dtype=torch.float64)
    total = sum(family.model.forms[t] / base[t] for t in (0, 1))
    pull = sum(family.model.forms[t][:, t] / base[t] for t in (0, 1))
    torch.testing.assert_close(best, torch.linalg.solve(total, pull), rtol=1e-2, atol=1e-2)


def test_losses_grow_by_a_power_of_the_quadratic_form_from_0_at_the_adapter_to_1_without(folder):
    weights = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.4, 0.7]], dtype=torch.float64)
    grown, std = family_of(folder).relative(weights)
    squared, more = family_of(folder, growth=1.0).relative(weights)
    torch.testing.assert_close(grown, squared**GROWTH)
    torch.testing.assert_close(std, (squared + more) ** GROWTH - grown)
    assert grown[0, 0] == pytest.approx(0.0, abs=1e-9) and grown[1].tolist() == pytest.approx([1.0, 1.0])


def test_what_adapters_are_worth_is_the_unit_and_weighs_the_average(folder):
    worth = dict(zip(NAMES, (0.5, 0.1, 0.2), strict=True))
    done = previewed(folder, worth=worth)
    row = done.row(0)
    nats = {task: row["increase"][task] * worth[task] for task in NAMES}
    assert row["nats_per_example"] == pytest.approx(nats, rel=1e-4)
    assert row["average"] == pytest.approx(sum(nats.values()) / 0.8, rel=1e-4)
    best = done.row(done.named["best average"])
    plain = previewed(folder).row(previewed(folder).named["best average"])
    assert best["weights"]["math"] > plain["weights"]["math"]
    assert done.to_json()["worth"] == worth and done.to_json()["format"] == 2
    with pytest.raises(
        ConfigError, match="worth: expected one number for each of math, code, law; 'law' is missing"
    ):
        previewed(folder, worth={"math": 1.0, "code": 1.0})
    with pytest.raises(ConfigError, match="'tax' is no task"):
        previewed(folder, worth={**worth, "tax": 1.0})
    with pytest.raises(ConfigError, match="'code' is worth -1 nats, expected more than 0"):
        previewed(folder, worth={**worth, "code": -1.0})


def test_deviations_are_those_of_the_posterior_as_it_is_drawn(folder):
    """Forty times the ess makes the variance's first term 40 times smaller and its second 1,600 times."""
    config = load_config(MergeConfig, values(folder, NAMES[:2]))
    inputs = [Posterior.from_pretrained(source.path) for source in config.adapters]
    cold = [replace(p, meta=replace(p.meta, ess=100.0 * 40)) for p in inputs]
    weights = torch.tensor([[0.7, 1.0]], dtype=torch.float64)
    for tau in (None, 0.3):
        found = []
        for given in (inputs, cold):
            model = build_model(read_inputs(given, ["a", "b"]), ["a", "b"], tau=tau)
            found.append(model.predict(weights)[1])
            if tau is not None:
                shares = model.coefficients(weights)
                found[-1] = solve_in_full(read_inputs(given, ["a", "b"]), model, shares, tau)[1]
        ratio = found[1] / found[0]
        assert (ratio > 0.99 / 1600).all() and (ratio < 1.01 / 40).all()
    assert inputs[0].temperature == pytest.approx(0.4)


def test_a_mean_is_previewed_as_a_mean(folder):
    done = previewed(folder, method="linear")
    torch.testing.assert_close(done.weights.sum(1), torch.ones(len(done.weights), dtype=torch.float64))
    assert done.row(0)["weights"]["law"] == pytest.approx(1 / 3)


def test_seeds_of_a_task_share_a_weight(folder):
    adapters = [{"path": str(folder / n), "group": "school" if n != "law" else None} for n in NAMES]
    done = previewed(folder, adapters=adapters)
    assert done.tasks == ["school", "law"]
    assert done.members == {"school": ["math", "code"], "law": ["law"]}
    assert done.increase[:, 0].min() > 0  # no weighting is at both seeds at once


def test_notes_say_what_the_preview_is_not(folder):
    frozen = previewed(folder, method="gradient_matching", negative="remove")
    assert (
        frozen.notes[0].startswith("6 of 6 modules are previewed as scaled sums") and frozen.std is not None
    )
    matched = previewed(folder, method="gradient_matching", count=16)
    assert matched.notes[0].startswith("predicted by a reduced model of gradient matching; 5 weightings")
    assert matched.std is not None and matched.check["solved"] == 5
    assert matched.check["increase"] < 5e-3 and matched.check["std"] < 0.05
    assert matched.to_json()["check"] == matched.check
    quick = previewed(folder, method="gradient_matching", count=16, variance=False)
    assert quick.std is None and "standard deviation" not in quick.notes[0] and "std" not in quick.check
    torch.testing.assert_close(quick.increase, matched.increase)
    plain = load_config(MergeConfig, values(folder / "plain", method="task_arithmetic"))
    inputs = [Posterior.from_pretrained(source.path) for source in plain.adapters]
    done = preview(plain, inputs, count=16)
    assert done.std is None and done.examples == [None] * 3
    assert "plain distance between updates" in done.notes[0]
    assert "nats_per_example" not in done.row(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ties"}, "a preview is of weighted sums .* ties is none"),
        ({"names": NAMES[:1]}, "at least two"),
        ({"count": 0}, "expected count >= 1"),
        ({"low": 2.0}, "finite low < high"),
        ({"high": float("inf")}, "got count 256, low 0, high inf"),
        ({"method": "linear", "low": -1.0}, "give low >= 0"),
    ],
)
def test_what_cannot_be_previewed_is_refused(folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        previewed(folder, **settings)


def test_weights_per_module_and_empty_adapters_are_refused(folder):
    adapters = [{"path": str(folder / n), "module_weights": {"q_proj": 0.5}} for n in NAMES]
    with pytest.raises(ConfigError, match="leave module_weights and module_options out"):
        previewed(folder, adapters=adapters)
    config = load_config(MergeConfig, values(folder, NAMES[:2]))
    first, second = (Posterior.from_pretrained(source.path) for source in config.adapters)
    nothing = replace(second, mean={k: 0 * v for k, v in second.mean.items()})
    with pytest.raises(ConfigError, match="'code' loses nothing without its adapter"):
        preview(config, [first, nothing], count=4)


def test_a_page_without_variance_and_without_scale(folder):
    """A variance that is not asked for; a plain adapter, which has no h, so no nats."""
    from vlora.recipes.merge_pages import preview_page

    plain = [{"path": str(folder / name)} for name in ("math", "plain/code")]
    for settings in ({"method": "gradient_matching", "variance": False}, {"adapters": plain}):
        done = previewed(folder, NAMES[:2], count=8, **settings)
        page = preview_page(done)
        assert done.std is None and "±" not in page
        assert page.count("nats / example") == 3 * sum(count is not None for count in done.examples)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
def test_the_command(folder, tmp_path, capsys, names):
    named = [{"path": str(folder / name), "name": f"<b>{name}"} for name in names]
    (tmp_path / "c.json").write_text(json.dumps(values(folder, names, adapters=named)))
    try:
        main(["merge", "preview", str(tmp_path / "c.json"), "--out", str(tmp_path / "p"), "--count", "64"])
    except SystemExit as stop:
        assert not stop.code
    captured = capsys.readouterr()
    assert "best worst task" in captured.out and f"wrote {tmp_path}/p.html" in captured.out
    assert "previewed" in captured.err
    told = json.loads((tmp_path / "p.json").read_text())
    assert len(told["weights"]) == len(told["increase"]) == len(told["std"]) > 64
    assert set(told["named"]) == {"given", "best average", "best worst task"}
    page = (tmp_path / "p.html").read_text()
    assert "<svg" in page and "&lt;b&gt;math" in page
    assert not any(outside in page for outside in ("http", "<script", "<b>math", "src="))


def test_the_command_takes_what_adapters_are_worth(folder, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(values(folder, NAMES[:2])))
    command = ["merge", "preview", str(tmp_path / "c.json"), "--out", str(tmp_path / "p"), "--count", "8"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--worth", "math=.5", "--worth", "code=much"])
    assert stop.value.code
    assert "--worth takes NAME=NUMBER, got 'much' for code" in capsys.readouterr().err
    try:
        main([*command, "--worth", "math=.5", "--worth", "code=.25"])
    except SystemExit as stop:
        assert not stop.code
    assert json.loads((tmp_path / "p.json").read_text())["worth"] == {"math": 0.5, "code": 0.25}
