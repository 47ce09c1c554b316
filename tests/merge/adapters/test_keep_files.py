"""`keep` from files: through the commands, in plans and lineage, without weight, and which settings are refused."""

import json
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, tiny_llama, two
from safetensors.torch import load_file, save_file

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.keep import read_keep
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.merge.curvature.lift import lift_update
from vlora.merge.plan import make_adapter_plan
from vlora.merge.plan.gram_files import read_gram_headers
from vlora.merge.preview import preview
from vlora.merge.unmerge.run import remove_contributors
from vlora.posterior import Posterior

WEIGHT = 1.7


def test_settings_that_mean_nothing(tmp_path):
    _, plain = two(tmp_path)
    with pytest.raises(ConfigError, match="no file or folder .*nowhere; give .*, or leave keep out"):
        read_keep(str(tmp_path / "nowhere"))
    for settings, message in (
        ({"keep_weight": 1.0}, "keep_weight is the weight of keep, which is not given"),
        ({"module_options": {"keep_weight": {"q_proj": 2.0}}}, "keep_weight is the weight of keep"),
        ({"keep": "x", "keep_weight": -1.0}, "keep_weight must be >= 0, got -1.0"),
        ({"keep": 3}, "keep must be a path, got 3"),
        ({"keep": "x", "curvature": "sites"}, "keep goes with curvature: kronecker or separable"),
        ({"keep": "x", "method": "ties"}, "method ties has no option 'keep'"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge_adapters(plain, **settings)
    with pytest.raises(ConfigError, match="summed by sites, which keep cannot enter; leave keep out"):
        load_config(MergeConfig, {"adapters": [{"path": "a"}], "output": "o", "keep": "x", "ancestor": "y"})


def test_a_posterior_folder_gives_the_diagonals_of_its_h(tmp_path):
    _, plain = two(tmp_path)
    posterior = add_posterior(plain[0], 1)
    posterior.save_pretrained(tmp_path / "p")
    inputs = read_inputs([posterior], ["x"])
    module = "model.layers.0.self_attn.v_proj"
    row, column = lift_update(inputs.update(0, module))
    found = read_keep(str(tmp_path / "p")).of(module, len(row), len(column), WEIGHT)
    torch.testing.assert_close(found.columns, column / column.mean())
    torch.testing.assert_close(found.rows, row / row.mean())
    adapters = [add_posterior(other, seed) for seed, other in enumerate(plain, 5)]
    held, without = merge_adapters(adapters, keep=str(tmp_path / "p")), merge_adapters(adapters)
    lengths = [read_inputs([merged], ["m"]).update(0, module).delta().norm() for merged in (held, without)]
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    "settings", [{"curvature": "sites"}, {"curvature": "isotropic"}, {"ancestor": "a"}, {}]
)
def test_without_weight_it_is_not_there(settings):
    """Its file is neither read nor asked for, and nothing is refused beside it."""
    given = {"adapters": [{"path": "a"}], "output": "o", "keep": "gone", "keep_weight": 0.0, **settings}
    config = load_config(MergeConfig, given)
    assert not config.keeps and "gone" not in config.files() and not read_gram_headers(config)
    some = {**given, "module_options": {"keep_weight": {"q_proj": 2.0}}}
    if settings:
        with pytest.raises(ConfigError, match="leave"):
            load_config(MergeConfig, some)
    else:
        assert load_config(MergeConfig, some).keeps


@pytest.fixture
def merge(tmp_path):
    """Two adapters with curvature on disk, the Grams of a base, and a folder with an adapter without update."""
    _, plain = two(tmp_path)
    paths = []
    for seed, posterior in enumerate(plain, 1):
        add_curvature(add_posterior(posterior, seed), 50 * seed).save_pretrained(tmp_path / f"p{seed}")
        paths.append({"path": str(tmp_path / f"p{seed}")})
    known = add_curvature(plain[0], 900)
    (tmp_path / "k").mkdir()
    bare = {key.removeprefix("base_model.model."): v for key, v in known.curvature.items()}
    save_file(bare, tmp_path / "k" / "curvature.safetensors")
    mean = {k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in known.mean.items()}
    replace(known, mean=mean).save_pretrained(tmp_path / "idle")
    values = {
        "adapters": paths,
        "output": str(tmp_path / "m"),
        "keep": str(tmp_path / "k"),
        "keep_weight": WEIGHT,
    }
    return tmp_path, values


def test_through_the_command_in_memory_and_with_its_lineage(merge):
    tmp_path, values = merge
    done = run_merge(load_config(MergeConfig, values))
    report = json.loads((done / "merge_report.json").read_text())
    assert report["keep"]["path"] == values["keep"] and report["keep"]["weight"] == WEIGHT
    assert len(report["keep"]["sha256"]) == 64 and report["options"]["keep_weight"] == WEIGHT
    assert set(report["sensitivity"]) == {"modules", "half", "double", "without_keep"}
    merged = Posterior.from_pretrained(done)
    assert any("holds the merge at the base model, weight 1.7" in note for note in merged.meta.notes)
    assert merged.has_hess and len(merged.meta.sources) == 2
    inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
    one = merge_adapters(inputs, keep=values["keep"], keep_weight=WEIGHT)
    assert all(torch.equal(merged.mean[k], one.mean[k]) for k in one.mean)
    nothing = merge_adapters(inputs, keep="gone", keep_weight=0.0)
    without = merge_adapters(inputs)
    assert all(torch.equal(nothing.mean[k], without.mean[k]) for k in without.mean)
    third = Posterior.from_pretrained(tmp_path / "idle")
    other = merge_adapters([*inputs, third], weights=[1.0, 1.0, WEIGHT])
    for key in (k for k in one.mean if ".lora_B." in k):
        deltas = [
            p.mean[key].double()
            @ p.mean[key.replace("lora_B", "lora_A")].double()
            * p.adapter_config["lora_alpha"]
            / p.adapter_config["r"]
            for p in (one, other)
        ]
        torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-5, atol=1e-5)


def test_values_per_module_and_an_adapter_alone(merge):
    _, values = merge
    inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
    some = {"module_options": {"keep_weight": {"q_proj": 0.0}}}
    found = merge_adapters(inputs, keep=values["keep"], **some)
    without, whole = merge_adapters(inputs), merge_adapters(inputs, keep=values["keep"])
    for key in found.mean:
        like = without if "q_proj" in key else whole
        assert torch.equal(found.mean[key], like.mean[key]), key
    alone = merge_adapters(inputs[:1], keep=values["keep"])
    assert any(not torch.equal(alone.mean[k], inputs[0].mean[k]) for k in alone.mean if "lora_A" in k)


def test_into_the_base_it_is_the_same_update(merge):
    tmp_path, values = merge
    from peft import PeftModel

    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    adapter = run_merge(load_config(MergeConfig, values))
    expected = PeftModel.from_pretrained(tiny_llama(), adapter).merge_and_unload().state_dict()
    given = {
        **values,
        "output": str(tmp_path / "model"),
        "base_model": str(tmp_path / "base"),
        "into": "model",
    }
    done = run_model_merge(load_config(ModelMergeConfig, given))
    found = load_file(done / "model.safetensors")
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
    lineage = json.loads((done / "merge.json").read_text())
    kept = next(source for source in lineage["inputs"] if source["role"] == "keep")
    assert kept["weight"] == WEIGHT and len(kept["sha256"]) == 64
    assert "| keep | keep | 1.7 |" in (done / "README.md").read_text()
    given |= {"keep": "gone", "keep_weight": 0.0, "output": str(tmp_path / "plain")}
    done = run_model_merge(load_config(ModelMergeConfig, given))
    roles = [source["role"] for source in json.loads((done / "merge.json").read_text())["inputs"]]
    assert "keep" not in roles


def test_the_plan_knows_it(merge):
    tmp_path, values = merge
    config = load_config(MergeConfig, values)
    plan, without = (make_adapter_plan(c) for c in (config, replace(config, keep=None, keep_weight=None)))
    assert not plan.problems and plan.seconds > 0
    assert plan.bytes_read > without.bytes_read and plan.memory_bytes > without.memory_bytes
    few = {k: v for k, v in load_file(tmp_path / "k" / "curvature.safetensors").items() if "v_proj" in k}
    save_file(few, tmp_path / "few.safetensors")
    plan = make_adapter_plan(replace(config, keep=str(tmp_path / "few.safetensors")))
    assert (
        len(plan.problems) == 1 and "has no input_gram for model.layers.0.mlp.down_proj" in plan.problems[0]
    )
    assert "no file or folder gone" in make_adapter_plan(replace(config, keep="gone")).problems[0]
    idle_plan = make_adapter_plan(replace(config, keep="gone", keep_weight=0.0))
    assert not idle_plan.problems and idle_plan.bytes_read == without.bytes_read
    whole = load_file(tmp_path / "k" / "curvature.safetensors")
    save_file({k: v.diagonal().contiguous() for k, v in whole.items()}, tmp_path / "d.safetensors")
    (file,) = read_gram_headers(replace(config, keep=str(tmp_path / "d.safetensors")))
    assert file.bytes_of("model.layers.0.mlp.down_proj", (12, 20)) == 8 * (20**2 + 12**2)
    (file,) = read_gram_headers(config)
    assert file.bytes_of("model.layers.0.mlp.down_proj", (12, 20)) == 8 * (20**2 + 12**2)
    for place in ("p1", "p2"):
        (tmp_path / place / "curvature.safetensors").unlink()
    assert not make_adapter_plan(config).problems  # separable, by h
    plain = replace(
        config,
        adapters=tuple(
            replace(s, path=str(tmp_path / n)) for s, n in zip(config.adapters, "ab", strict=True)
        ),
    )
    assert any("keep goes with Kronecker or separable" in text for text in make_adapter_plan(plain).problems)


def test_a_preview_says_that_it_does_not_know_it(merge):
    _, values = merge
    inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
    with pytest.raises(ConfigError, match="a preview does not know what keep holds"):
        preview(load_config(MergeConfig, values), inputs)
    preview(load_config(MergeConfig, {**values, "keep_weight": 0.0}), inputs, count=2)


def test_removal_merges_again_with_the_same_file_only(merge):
    tmp_path, values = merge
    done = run_merge(load_config(MergeConfig, values))
    result = remove_contributors(done, ["p2"], tmp_path / "left")
    assert result.reproduced
    left = Posterior.from_pretrained(tmp_path / "left")
    alone = merge_adapters(
        [Posterior.from_pretrained(tmp_path / "p1")], keep=values["keep"], keep_weight=WEIGHT
    )
    assert all(torch.equal(left.mean[k], alone.mean[k]) for k in alone.mean)
    other = {k: v + torch.eye(len(v)) for k, v in load_file(tmp_path / "k" / "curvature.safetensors").items()}
    save_file(other, tmp_path / "k" / "curvature.safetensors")
    with pytest.raises(IncompatibleAdaptersError, match="keep .* is not the file that was merged with"):
        remove_contributors(done, ["p2"], tmp_path / "again")
    with pytest.raises(ConfigError, match="is or holds the input"):
        over = {"output": str(tmp_path / "idle"), "keep": str(tmp_path / "idle"), "overwrite": True}
        run_merge(load_config(MergeConfig, {**values, **over}))
