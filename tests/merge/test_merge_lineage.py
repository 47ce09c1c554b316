"""Whole adapters of one lineage: in memory, from folders, by the command, into a model; what is refused, and why."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from lineage_cases import go_on, make_ancestor
from merge_cases import add_curvature, peft_deltas, tiny_bert

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.checkpoints import ModelMergeConfig
from vlora.merge.in_memory import merge_with_report
from vlora.merge.plan.plan import make_adapter_plan
from vlora.posterior import Posterior
from vlora.recipes.cli import main


@pytest.fixture
def family(tmp_path):
    ancestor = make_ancestor(tmp_path)
    return ancestor, [go_on(ancestor, 2), go_on(ancestor, 3, num_examples=150)]


def whole(posterior):
    """N (h + delta), untempered."""
    meta = posterior.meta
    return {
        k: meta.num_examples * (h.double() + meta.of("weight_decay", k)) for k, h in posterior.hess.items()
    }


def expected(ancestor, children, weights):
    """The formula on whole posteriors, from their files' fields."""
    start, mean, precision = whole(ancestor), {}, {}
    for key, s_0 in start.items():
        m_0 = ancestor.mean[key].double()
        sites = [c.meta.num_examples * c.hess[key].double() for c in children]
        precision[key] = s_0 + sum(w * h for w, h in zip(weights, sites, strict=True))
        natural = s_0 * m_0 + sum(
            w * ((s_0 + h) * c.mean[key].double() - s_0 * m_0)
            for w, h, c in zip(weights, sites, children, strict=True)
        )
        mean[key] = natural / precision[key]
    return mean, precision


def assert_is(merged, mean, precision, rtol=1e-5):
    for key, value in whole(merged).items():
        torch.testing.assert_close(merged.mean[key].double(), mean[key], rtol=rtol, atol=1e-7)
        torch.testing.assert_close(value, precision[key], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, 2.0]])
def test_every_tensor_follows_the_formula_and_the_rank_stays(family, weights):
    ancestor, children = family
    merged, report = merge_with_report(children, weights=weights, ancestor=ancestor)
    assert_is(merged, *expected(ancestor, children, weights))
    assert merged.adapter_config["r"] == ancestor.adapter_config["r"]
    assert merged.meta.num_examples == 200 + 100 + 150
    assert merged.meta.ancestor["sha256"] == ancestor.meta.mean_sha256
    assert merged.meta.ancestor["included"] is True
    assert [s["mean_sha256"] for s in merged.meta.sources] == [s["mean_sha256"] for s in report.adapters]
    assert merged.meta.prior == {"kind": "zero"}
    assert report.identities["single"] < 1e-10
    assert report.identities["permutation"] < 1e-10
    assert report.ancestor["sha256"] == ancestor.meta.mean_sha256
    assert {row["curvature"] for row in report.modules.values()} == {"sites"}
    assert merged.sample(0).keys() == merged.mean.keys()


def test_heads_are_parameters_like_the_factors(tmp_path):
    ancestor = make_ancestor(
        tmp_path, base=tiny_bert, task_type="SEQ_CLS", target_modules=["query", "value"], bias="lora_only"
    )
    children = [go_on(ancestor, 2), go_on(ancestor, 3)]
    merged, report = merge_with_report(children, ancestor=ancestor)
    assert any("classifier" in key for key in report.full_tensors)
    assert_is(merged, *expected(ancestor, children, [1.0, 1.0]))
    assert not any("averaged" in note for note in report.notes)
    taken = merge_adapters(children, weights=[1.0, -0.01], ancestor=ancestor)  # a sum, so this has a meaning
    assert_is(taken, *expected(ancestor, children, [1.0, -0.01]))


def test_one_run_comes_back_and_the_ancestor_adds_nothing(family):
    ancestor, children = family
    alone = merge_adapters(children[:1], ancestor=ancestor)
    assert all(torch.equal(alone.mean[k], v) for k, v in children[0].mean.items())
    assert_is(alone, *expected(ancestor, children[:1], [1.0]))
    both = merge_adapters(children, ancestor=ancestor)
    more = merge_adapters([*children, ancestor], ancestor=ancestor)
    assert_is(more, {k: v.double() for k, v in both.mean.items()}, whole(both))
    assert more.meta.num_examples == both.meta.num_examples
    assert more.meta.ess == both.meta.ess
    only = merge_adapters([ancestor], ancestor=ancestor)
    assert all(torch.equal(only.mean[k], v) for k, v in ancestor.mean.items())
    other = merge_adapters(children[::-1], ancestor=ancestor)
    assert all(torch.equal(other.mean[k], v) for k, v in both.mean.items())


def test_the_temperature_of_the_inputs_does_not_matter(family):
    ancestor, children = family
    cold = [replace(c, meta=replace(c.meta, ess=100.0 * c.meta.num_examples)) for c in children]
    warm = merge_adapters(children, ancestor=ancestor)
    merged = merge_adapters(cold, ancestor=replace(ancestor, meta=replace(ancestor.meta, ess=2e4)))
    for key, value in warm.mean.items():
        assert torch.equal(merged.mean[key], value)
        assert torch.equal(merged.hess[key], warm.hess[key])
    assert merged.meta.ess == 2e4 + 100 * 250


def test_a_merge_of_merges_is_the_merge_of_all(family):
    ancestor, (first, second) = family
    third = go_on(ancestor, 4, num_examples=70)
    pair = merge_adapters([first, second], ancestor=ancestor)
    rounds = merge_adapters([pair, third], ancestor=ancestor)
    at_once = merge_adapters([first, second, third], ancestor=ancestor)
    assert_is(rounds, {k: v.double() for k, v in at_once.mean.items()}, whole(at_once), rtol=1e-4)
    assert rounds.meta.num_examples == at_once.meta.num_examples == 520


def test_a_run_trained_under_the_ancestor_has_its_precision_taken_out(family):
    ancestor, (first, _) = family
    key_share = {k: v / first.meta.num_examples for k, v in whole(ancestor).items()}
    hess = {
        k: (h.double() + key_share[k] - 0.3).float() for k, h in first.hess.items()
    }  # N (h + .3) = N h_t + S_0
    prior = {"kind": "posterior", "folder": "ancestor", "sha256": ancestor.meta.mean_sha256}
    pulled = replace(first, hess=hess, meta=replace(first.meta, prior=prior, ancestor={}))
    merged = merge_adapters([pulled], ancestor=ancestor)
    assert_is(merged, *expected(ancestor, [first], [1.0]), rtol=1e-4)
    with pytest.raises(IncompatibleAdaptersError, match="give ancestor: ancestor to merge it"):
        merge_adapters([pulled, first])
    other = replace(pulled, meta=replace(pulled.meta, prior={**prior, "sha256": "0" * 64}))
    with pytest.raises(
        IncompatibleAdaptersError, match="was trained under ancestor .mean 0000.*is not the ancestor"
    ):
        merge_adapters([other], ancestor=ancestor)


def test_grams_of_the_merge_count_the_ancestor(family):
    ancestor, children = family
    assert merge_adapters([add_curvature(c, 5) for c in children], ancestor=ancestor).curvature is None
    full = merge_adapters([add_curvature(c, 5) for c in children], ancestor=add_curvature(ancestor, 90))
    assert any(key.endswith("input_gram") for key in full.curvature)


def test_who_is_far_or_unknown_is_named(family):
    ancestor, children = family
    unknown = go_on(ancestor, 9, record=False)
    _, report = merge_with_report([children[0], unknown], names=["a", "b"], ancestor=ancestor)
    assert any(note.startswith("b does not say what it went on from") for note in report.notes)
    far = go_on(ancestor, 9, step=0.6)
    _, report = merge_with_report([children[0], far], names=["a", "b"], ancestor=ancestor)
    warning = next(note for note in report.notes if note.startswith("WARNING"))
    assert "A of b is" in warning
    row = next(iter(report.modules.values()))["from_ancestor"]
    assert row["a"] < 0.4 < 0.5 < row["b"]


def test_what_is_not_of_the_lineage_is_refused_by_name(family, tmp_path):
    ancestor, children = family
    plain = Posterior(children[0].mean, {}, children[0].meta, ancestor.adapter_config)
    stranger = replace(
        children[1], meta=replace(children[1].meta, ancestor={"folder": "x", "sha256": "1" * 64})
    )
    alpha = replace(children[1], adapter_config={**ancestor.adapter_config, "lora_alpha": 12})
    rslora = replace(children[1], adapter_config={**ancestor.adapter_config, "use_rslora": True})
    wide = make_ancestor(tmp_path / "wide", r=4, lora_alpha=12)
    fewer = make_ancestor(tmp_path / "fewer", target_modules=["q_proj", "v_proj"])
    deterministic = replace(
        children[1], hess={k: h for k, h in children[1].hess.items() if "lora_A" not in k}
    )
    for other, message in (
        (plain, "'b' is a plain adapter without h.*vlora posterior"),
        (stranger, r"'b' went on from x \(mean 111111111111\), which is not the ancestor"),
        (
            alpha,
            r"'b' did not go on from .*its scaling .lora_alpha, use_rslora. on .* is 6, the ancestor's 3",
        ),
        (rslora, "'b' did not go on from .*its scaling"),
        (wide, "'b' did not go on from .*its rank on .* is 4, the ancestor's 2"),
        (fewer, "'b' did not go on from .*only the ancestor has .*down_proj"),
        (deterministic, "'b' has another .*lora_A.weight than the ancestor in memory, but no h of it"),
    ):
        with pytest.raises(IncompatibleAdaptersError, match=message):
            merge_adapters([children[0], other], names=["a", "b"], ancestor=ancestor)
    bare = replace(ancestor, hess={})
    with pytest.raises(
        IncompatibleAdaptersError, match="the ancestor in memory is a plain adapter without h"
    ):
        merge_adapters(children, ancestor=bare)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"curvature": "kronecker"}, r"ancestor goes with curvature: sites \(or auto\), got kronecker"),
        ({"scale": 0.5}, "scale would scale the ancestor too"),
        ({"module_options": {"scale": {"q_proj": 0.5}}}, "scale would scale the ancestor too"),
        ({"prior": "x"}, "the ancestor is the prior"),
        ({"method": "ties"}, "method ties has no option ancestor"),
        ({"ancestor": ""}, "ancestor must be a posterior folder"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    values = {"adapters": [{"path": "a"}], "output": "m", "ancestor": "anc", **settings}
    with pytest.raises(ConfigError, match=message):
        load_config(MergeConfig, values)


def test_whole_models_have_no_ancestor():
    values = {"models": [{"path": "a"}], "base_model": "b", "output": "m", "ancestor": "x", "into": "model"}
    with pytest.raises(ConfigError, match="method gradient_matching has no option ancestor"):
        load_config(ModelMergeConfig, {**values, "method": "gradient_matching"})


def save(family, tmp_path, **settings):
    ancestor, children = family
    for name, child in zip(("math", "code"), children, strict=True):
        child.save_pretrained(tmp_path / name)
    values = {
        "adapters": [{"path": str(tmp_path / n)} for n in ("math", "code")],
        "ancestor": str(tmp_path / "ancestor"),
        "output": str(tmp_path / "merged"),
        **settings,
    }
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(values))
    return values


def test_folders_plan_report_and_card(family, tmp_path, capsys):
    config = load_config(MergeConfig, save(family, tmp_path, curvature="sites"))
    plan = make_adapter_plan(config)
    assert plan.problems == []
    assert {row["curvature"] for row in plan.modules.values()} == {"sites"}
    assert {row["rank"] for row in plan.modules.values()} == {2}
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(tmp_path / "merge.yaml")])
    assert not stop.value.code
    merged = Posterior.from_pretrained(tmp_path / "merged")
    assert_is(merged, *expected(*family, [1.0, 1.0]))
    assert (
        plan.bytes_read == sum(adapter.nbytes for adapter in plan.adapters) * 3 // 2
    )  # and the ancestor, as large
    tensors = [*merged.mean.values(), *merged.hess.values()]
    assert plan.bytes_written == sum(t.numel() * t.element_size() for t in tensors)
    report = json.loads((tmp_path / "merged/merge_report.json").read_text())
    assert report["options"]["ancestor"] == str(tmp_path / "ancestor")
    assert report["ancestor"]["sha256"] == family[0].meta.mean_sha256
    assert merged.meta.ancestor["folder"] == str(tmp_path / "ancestor")
    assert "ancestor" in (tmp_path / "merged/README.md").read_text()
    assert "ancestor" in (tmp_path / "merged/report.html").read_text()
    assert peft_deltas(tmp_path / "merged")
    assert "one lineage" in capsys.readouterr().err


def test_the_plan_refuses_what_the_merge_refuses(family, tmp_path):
    ancestor, children = family
    other = replace(children[1], adapter_config={**ancestor.adapter_config, "lora_alpha": 12})
    values = save((ancestor, [children[0], other]), tmp_path, rank=1)
    plan = make_adapter_plan(load_config(MergeConfig, values))
    assert any("'code' did not go on from the ancestor" in problem for problem in plan.problems)
    values = save(family, tmp_path, rank=1)
    plan = make_adapter_plan(load_config(MergeConfig, values))
    assert any("keep its rank, 2" in problem for problem in plan.problems)
    values = save(family, tmp_path, output=str(tmp_path / "ancestor"), overwrite=True)
    with pytest.raises(ConfigError, match="is or holds the input"):
        make_adapter_plan(load_config(MergeConfig, values))
    with pytest.raises(ConfigError, match="is or holds the input"):
        run_merge(load_config(MergeConfig, values))


def test_a_preview_refuses(family, tmp_path, capsys):
    save(family, tmp_path)
    with pytest.raises(SystemExit):
        main(["merge", "preview", str(tmp_path / "merge.yaml")])
    assert "leave ancestor out" in capsys.readouterr().err
