"""``vlora merge plan`` for adapters: from headers alone, and true of the merge that follows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from merge_cases import add_curvature, add_posterior, make_adapter, tiny_bert

from vlora.config import load_config
from vlora.errors import CheckpointError, ConfigError, OutputExistsError, PosteriorFormatError
from vlora.merge import METHODS, MergeConfig, run_merge
from vlora.merge.plan import headers as headers_file
from vlora.merge.plan.plan import make_adapter_plan
from vlora.posterior import Posterior
from vlora.recipes.cli import main

PLAIN = {"target_modules": ["q_proj"], "r": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("plans")
    for seed, name in enumerate(("math", "code"), 1):
        plain = Posterior.from_pretrained(make_adapter(root / "plain" / name, seed))
        add_curvature(add_posterior(plain, seed), 50 * seed).save_pretrained(root / name)
        add_posterior(plain, seed).save_pretrained(root / "h" / name)
    make_adapter(root / "other", 3, base=tiny_bert, target_modules=["query"], task_type="SEQ_CLS")
    make_adapter(root / "narrow", 4, **PLAIN)
    dora = make_adapter(root / "dora", 5, use_dora=True)
    assert dora.is_dir()
    return root


def planned(folder, names=("math", "code"), **settings):
    adapters = [{"path": str(folder / name)} for name in names]
    values = {"adapters": adapters, "output": str(folder / "m"), **settings}
    return make_adapter_plan(load_config(MergeConfig, values))


def test_it_says_what_the_merge_then_does(folder, tmp_path):
    for rank, out in (("keep", 2), ("lossless", 4), (3, 3)):
        plan = planned(folder, rank=rank, output=str(tmp_path / str(rank)))
        assert plan.problems == [] and plan.missing == {} and plan.mismatched == {} and plan.lacks == {}
        assert {row["rank"] for row in plan.modules.values()} == {out}
        assert {row["curvature"] for row in plan.modules.values()} == {"kronecker"}
        done = run_merge(plan.config)
        report = json.loads((done / "merge_report.json").read_text())
        for module, row in report["modules"].items():
            assert (row["rank"], row["curvature"]) == (plan.modules[module]["rank"], "kronecker")
        tensors = ("adapter_model", "posterior", "curvature")
        written = sum((done / f"{name}.safetensors").stat().st_size for name in tensors)
        assert (
            plan.bytes_written == pytest.approx(written, rel=0.3) and plan.bytes_written < written
        )  # headers
    read = sum(e.nbytes for a in plan.adapters for p in (a.mean, a.hess, a.curvature) for e in p.values())
    assert plan.bytes_read == read and plan.memory_bytes > read and plan.seconds > 0


def test_no_tensor_is_read(folder, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("vlora.posterior.folder.load_file", refuse)
    monkeypatch.setattr("safetensors.torch.load_file", refuse)
    assert planned(folder).problems == []
    stand_in = planned(folder).adapters[0].stand_in()
    assert all(value.untyped_storage().nbytes() <= 8 for value in stand_in.mean.values())


@pytest.mark.parametrize(
    ("names", "settings", "kind"),
    [
        (("math", "code"), {}, "kronecker"),
        (("math", "h/code"), {}, "separable"),
        (("math", "plain/code"), {}, "isotropic"),
        (("math", "code"), {"curvature": "separable"}, "separable"),
    ],
)
def test_the_curvature_is_the_one_that_the_merge_takes(folder, names, settings, kind, tmp_path):
    plan = planned(folder, names, output=str(tmp_path / "m"), **settings)
    assert {row["curvature"] for row in plan.modules.values()} == {kind}
    assert f"6 {kind}" in plan.notes[0]
    report = json.loads((run_merge(plan.config) / "merge_report.json").read_text())
    assert {row["curvature"] for row in report["modules"].values()} == {kind}


def test_missing_modules_and_uneven_ranks(folder):
    plan = planned(folder, ("math", "narrow"), method="linear", rank="keep")
    assert len(plan.missing["narrow"]) == 4 and all("q_proj" not in m for m in plan.missing["narrow"])
    assert "rank: keep needs equal ranks, but they are 2 in 'math', 4 in 'narrow'" in plan.problems[0]
    plan = planned(folder, ("math", "narrow"), method="linear")
    assert plan.problems == []
    assert sorted({row["rank"] for row in plan.modules.values()}) == [2, 6]
    assert planned(folder, method="linear", rank=0.9).modules[next(iter(plan.modules))]["rank"] is None


@pytest.mark.parametrize(
    ("names", "settings", "problem"),
    [
        (("math", "other"), {"method": "linear"}, "task_type CAUSAL_LM and 'other' for SEQ_CLS"),
        (("math", "dora"), {"method": "linear"}, "'dora' was trained with use_dora"),
        (("math", "plain/code"), {"method": "fisher"}, "fisher needs h, which 'code' lacks in 6 modules"),
        (("math", "code"), {"method": "regmean"}, "regmean needs activation_gram, which 'math' lacks in 6"),
        (("math", "h/code"), {"method": "mats"}, "mats needs output_gram, which 'code' lacks in 6 modules"),
        (("math", "h/code"), {"curvature": "kronecker"}, "gradient_matching needs input_gram, which 'code'"),
        (
            ("math", "code"),
            {"base_model": "else"},
            "base_model is 'else', but 'math' was trained on 'tiny/base'",
        ),
        (("math",), {"method": "slerp"}, "slerp is between two adapters, got 1"),
        (
            ("math", "code"),
            {"module_options": {"tau": {"nowhere": 0.2}}},
            "the pattern 'nowhere' of module_options.tau matches none",
        ),
    ],
)
def test_problems_are_found_before_anything_is_read(folder, names, settings, problem):
    assert any(problem in found for found in planned(folder, names, **settings).problems)


def test_another_base_and_another_shape(folder, tmp_path):
    wide = make_adapter(tmp_path / "wide", 7)
    posterior = Posterior.from_pretrained(wide)
    key = next(k for k in posterior.mean if k.endswith("q_proj.lora_A.weight"))
    changed = replace(posterior, mean={**posterior.mean, key: torch.zeros(2, 14)})
    changed.save_pretrained(tmp_path / "wide")
    config = json.loads((tmp_path / "wide" / "adapter_config.json").read_text())
    (tmp_path / "wide" / "adapter_config.json").write_text(json.dumps(config))
    plan = planned(folder, ("math", tmp_path / "wide"), method="linear")
    (module, shapes) = next(iter(plan.mismatched.items()))
    assert module in key and shapes == {"math": [12, 12], "wide": [12, 14]}
    assert any("other architectures" in problem for problem in plan.problems)
    config["base_model_name_or_path"] = "tiny/else"
    (tmp_path / "wide" / "adapter_config.json").write_text(json.dumps(config))
    plan = planned(folder, ("math", tmp_path / "wide"), method="linear")
    assert any("'tiny/base' and 'wide' on 'tiny/else'" in problem for problem in plan.problems)


def test_negative_weights_and_a_full_disk(folder, monkeypatch):
    adapters = [{"path": str(folder / "math"), "weight": -1.0}, {"path": str(folder / "code")}]
    found = planned(folder, adapters=adapters, method="regmean").problems
    assert any("'math' has a negative one" in problem for problem in found)
    monkeypatch.setattr("vlora.merge.plan.plan._free", lambda _: 10)
    assert "10 are free; free some space" in planned(folder).problems[-1]


def test_what_is_no_adapter_or_no_output_is_one_line(folder, tmp_path):
    with pytest.raises(PosteriorFormatError, match="'nowhere': no folder .*nowhere"):
        planned(folder, ("math", "nowhere"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    with pytest.raises(PosteriorFormatError, match="is the download or copy complete"):
        planned(folder, (tmp_path / "a",))
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"123")
    with pytest.raises(PosteriorFormatError, match="holds no object"):
        planned(folder, (tmp_path / "a",))
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is truncated or no safetensors file"):
        planned(folder, (tmp_path / "a",))
    with pytest.raises(ConfigError, match="is or holds the input"):
        planned(folder, output=str(folder / "math"), overwrite=True)
    with pytest.raises(OutputExistsError):
        planned(folder, output=str(folder / "code"))
    assert headers_file.read_adapter_headers(str(folder / "math"), None, "x").nbytes > 0


def test_the_command(folder, tmp_path, capsys):
    adapters = [{"path": str(folder / name)} for name in ("math", "plain/code")]
    values = {"adapters": adapters, "output": str(tmp_path / "m")}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))

    def outcome(*words):
        try:
            main(["merge", *map(str, words)])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert outcome("plan", tmp_path / "c.yaml") == 0
    text = capsys.readouterr().out
    assert "math weight 1" in text and "h 6, input_gram 6, output_gram 6" in text
    assert "code weight 1" in text and "no posterior, no curvature" in text
    assert "rank 2 to 4" in text and text.endswith("can be carried out\n") and "6 isotropic" in text
    assert outcome(tmp_path / "c.yaml", "--dry-run") == 0
    capsys.readouterr()
    assert outcome("plan", tmp_path / "c.yaml", "--json", "method=fisher") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["lacks"]["code"]["h"][0] in told["modules"] and len(told["problems"]) == 1
    assert told["inputs"][0]["has"] == {"h": 6, "input_gram": 6, "output_gram": 6, "activation_gram": 0}
    assert outcome("plan", tmp_path / "c.yaml", "method=fisher") == 1
    assert capsys.readouterr().out.endswith("cannot be carried out\n")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_time_that_the_merge_takes_up_to_a_factor(folder, tmp_path, method):
    """On modules of 12 inputs the time is that of the interpreter; only nonsense is noticed here."""
    if method in ("slerp", "regmean"):
        names = ("math", "code") if method == "slerp" else ("seen/math", "seen/code")
        for name in names if method == "regmean" else ():
            changed = Posterior.from_pretrained(folder / Path(name).name)
            grams = {
                k.replace("input_gram", "activation_gram"): v
                for k, v in changed.curvature.items()
                if "input" in k
            }
            replace(changed, curvature={**changed.curvature, **grams}).save_pretrained(tmp_path / name)
        names = tuple(tmp_path / name for name in names) if method == "regmean" else names
    else:
        names = ("math", "code")
    plan = planned(folder, names, method=method)
    assert plan.problems == [] and 0 < plan.seconds < 30
    assert "trials on random numbers of their shapes" in plan.basis


def test_a_rank_that_a_method_cannot_have_is_a_problem_of_the_plan(folder):
    (problem,) = planned(folder, method="ties", rank="lossless").problems
    assert "lossless" in problem and planned(folder, method="ties", rank="lossless").seconds == 0.0
