"""The program: folders in, a posterior folder out, whole or not at all."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from merge_cases import add_curvature, add_posterior, make_adapter, peft_deltas

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError, OutputExistsError, PosteriorFormatError
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.posterior import Posterior


@pytest.fixture
def folders(tmp_path):
    made = []
    for seed, name in enumerate(("math", "code"), 1):
        folder = make_adapter(tmp_path / name, seed)
        posterior = add_curvature(add_posterior(Posterior.from_pretrained(folder), seed), 10 * seed)
        posterior.save_pretrained(folder)
        made.append(folder)
    return made


def config(tmp_path, folders, **settings):
    values = {"adapters": [{"path": str(f)} for f in folders], "output": str(tmp_path / "out"), **settings}
    return load_config(MergeConfig, values)


def test_folders_in_a_posterior_folder_out(tmp_path, folders, capfd):
    output = run_merge(config(tmp_path, folders, rank=2))
    merged = Posterior.from_pretrained(output)
    assert merged.has_hess
    assert {s["name"] for s in merged.meta.sources} == {"math", "code"}
    assert all(len(s["mean_sha256"]) == 64 for s in merged.meta.sources)
    assert merged.curvature
    report = json.loads((output / "merge_report.json").read_text())
    module = report["modules"]["model.layers.0.self_attn.q_proj"]
    assert module["curvature"] == "kronecker"
    assert 0 < module["retained_energy"] < 1
    assert set(module["distance"]) == {"math", "code"}
    resolved = load_config(MergeConfig, output / "merge.yaml")
    assert resolved.adapters[0].weight == 1.0
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "merged 2 adapters by gradient_matching" in captured.err
    assert "rank: 2 retains" in captured.err
    assert peft_deltas(output)


def test_plain_adapters_get_one_clear_line(tmp_path, capfd):
    folders = [make_adapter(tmp_path / n, s) for s, n in enumerate("ab", 1)]
    output = run_merge(config(tmp_path, folders, rank="lossless"))
    assert not Posterior.from_pretrained(output).has_hess
    notes = json.loads((output / "merge_report.json").read_text())["notes"]
    assert sum("isotropic curvature" in note for note in notes) == 1
    assert "no posterior in a, b" in capfd.readouterr().err


def test_h_alone_is_labelled_as_a_small_gain(tmp_path, folders):
    for folder in folders:
        (folder / "curvature.safetensors").unlink()
    output = run_merge(config(tmp_path, folders, rank="keep"))
    assert any("expect a small gain" in note for note in Posterior.from_pretrained(output).meta.notes)


def test_nothing_is_written_when_an_adapter_is_damaged(tmp_path, folders):
    weights = folders[1] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(PosteriorFormatError, match="truncated or damaged"):
        run_merge(config(tmp_path, folders))
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_else_is_left_alone(tmp_path, folders):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="holds something else"):
        run_merge(config(tmp_path, folders, overwrite=True))
    assert (tmp_path / "out" / "thesis.tex").read_text() == "x"


def test_a_former_merge_is_replaced_only_when_asked(tmp_path, folders):
    run_merge(config(tmp_path, folders))
    with pytest.raises(OutputExistsError, match="already holds a result"):
        run_merge(config(tmp_path, folders))
    run_merge(config(tmp_path, folders, overwrite=True, method="linear"))
    assert json.loads((tmp_path / "out" / "merge_report.json").read_text())["method"] == "linear"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("math", "is or holds the input .*math; choose another folder"),
        (".", "is or holds the input .*math; choose another folder"),
        ("math/merged", "lies inside the input .*math; choose a folder beside it"),
    ],
)
def test_an_output_that_is_or_holds_or_is_in_an_input_is_refused(tmp_path, folders, place, message):
    (tmp_path / "adapter_config.json").write_text("{}")  # a folder that overwrite would replace
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=message):
        run_merge(config(tmp_path, folders, output=str(tmp_path / place), overwrite=True))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_curvature_of_another_shape_is_refused_by_every_reader(tmp_path, folders):
    import torch

    from vlora.merge.preview import preview

    first, second = (Posterior.from_pretrained(f) for f in folders)
    assert second.curvature is not None
    for kind, side in (("input_gram", "20"), ("output_gram", "12")):
        wrong = {k: torch.eye(3) if k.endswith(kind) else v for k, v in second.curvature.items()}
        inputs = [first, replace(second, curvature=wrong)]
        for run in (
            lambda inputs=inputs: merge_adapters(inputs, method="linear"),
            lambda inputs=inputs: preview(config(tmp_path, folders), inputs, count=4),
        ):
            with pytest.raises(
                IncompatibleAdaptersError, match=f"has 3 .*factors have {side}; the file belongs to"
            ):
                run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methode": "linear"}, "unknown key 'methode'; did you mean 'method'"),
        ({"method": "tiess"}, "unknown merge method 'tiess'; did you mean 'ties'"),
        ({"method": "linear", "tau": 0.3}, "method linear has no option tau, its options: none"),
        ({"method": "ties", "seed": 1}, "no option seed, its options: density, scale, normalise, space"),
        ({"method": "ties", "density": 0}, r"density must be a share in \(0, 1\], got 0"),
        ({"method": "ties", "space": "small"}, "space must be one of full, knots, core"),
        ({"method": "della", "epsilon": -1}, r"epsilon must be a number in \[0, 1\)"),
        ({"method": "dare_ties", "seed": -1}, "seed must be a whole number >= 0"),
        ({"method": "tsv", "task_rank": 0}, "task_rank must be a whole number >= 1"),
        ({"method": "regmean", "shrink": 2}, r"shrink must be a number in \[0, 1\]"),
        ({"scale": float("inf")}, "scale must be a finite number"),
        ({"rank": 1.5}, r"share of energy in \(0, 1\), got 1.5"),
        ({"tau": -1}, "tau must be > 0"),
        ({"curvature": "diagonal"}, "curvature must be one of auto, sites"),
        ({"rank": 0}, "rank must be auto, keep, lossless or a number >= 1"),
        ({"rank": "max"}, "rank"),
        ({"adapters": []}, "adapters is empty"),
        ({"adapters": [{"path": "x", "wieght": 2}]}, "unknown key 'wieght'; did you mean 'weight'"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config(tmp_path, ["x"], **settings)
    assert "\n" not in str(caught.value)


def test_the_pure_methods_need_torch_only():
    code = (
        "import sys, vlora.merge.methods; "
        "print([m for m in ('peft', 'transformers', 'safetensors', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
