"""Kronecker curvature of GPT-2's Conv1D layers in whole merges: the same as of the same model with nn.Linear layers."""

import json
from pathlib import Path

import pytest
import torch
from checkpoint_cases import gpt2, loaded, merge, raw_model, save_model, settings, tensors_of
from conv1d_cases import with_linear_layers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from vlora.curvature import collect_curvature
from vlora.errors import CheckpointError
from vlora.merge.checkpoints.plan import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*(fan_in_fan_out|tied|tie_word_embeddings)")

TARGETS = ["attn.c_attn", "attn.c_proj", "mlp.c_fc"]
METHODS = {"gradient_matching": {"curvature": "kronecker"}, "mats": {}, "regmean": {}}


def turned(tensors):
    """Tensors of a GPT-2 as those of its twin."""
    return {
        k: v.mT.contiguous() if ".c_" in k and v.ndim == 2 and "lora" not in k else v
        for k, v in tensors.items()
    }


def trained(base, seed, conv1d):
    """An adapter with random factors, the same for both kinds of layers, and its curvature on rows of its own."""
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=TARGETS, task_type="CAUSAL_LM", fan_in_fan_out=conv1d
    )
    model = get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3, generator=generator)
    ids = torch.randint(1, 17, (24, 9), generator=generator)
    batches = [{"input_ids": part, "labels": part} for part in ids.split(8)]
    return model, collect_curvature(model, batches, activations=True, progress=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Bases, two adapters with curvature and the models they were merged into, as GPT-2 and as its twin."""
    folder = tmp_path_factory.mktemp("conv1d")
    for kind in ("conv1d", "linear"):
        make = gpt2 if kind == "conv1d" else lambda: with_linear_layers(gpt2())
        if kind == "conv1d":
            save_model(folder / kind / "base", gpt2())
        else:  # as a model that is not known to have Conv1D layers
            raw_model(folder / kind / "base", turned(tensors_of(folder / "conv1d" / "base")))
        for seed, name in enumerate("ab", 1):
            model, curvature = trained(make(), seed, kind == "conv1d")
            model.save_pretrained(folder / kind / name)
            for task in ("regmean", "others"):
                target = folder / kind / f"{name}-{task}"
                PeftModel.save_pretrained(model, target)
                kept = {k: v for k, v in curvature.items() if task == "regmean" or "activation" not in k}
                save_file(kept, target / "curvature.safetensors")
            into = {"into": "model", "base_model": str(folder / kind / "base")}
            merge(folder / kind / f"model-{name}", **into, adapters=[{"path": str(folder / kind / name)}])
    return folder


def sources(world, kind, method, prefix=""):
    task = "regmean" if method == "regmean" else "others"
    known = [str(world / kind / f"{name}-{task}") for name in "ab"]
    if not prefix:
        return [{"path": path, "weight": w} for path, w in zip(known, (1.0, 0.5), strict=True)]
    return [
        {"path": str(world / kind / f"model-{name}"), "curvature": path, "weight": w}
        for name, path, w in zip("ab", known, (1.0, 0.5), strict=True)
    ]


def deltas(folder):
    """Dense updates of an adapter as W of nn.Linear would have them."""
    from vlora.posterior import Posterior
    from vlora.posterior.lora_layout import module_scaling, split_keys

    found = Posterior.from_pretrained(str(folder))
    return {
        name: module_scaling(found.adapter_config, name) * (found.mean[k.b] @ found.mean[k.a])
        for name, k in split_keys(found.mean)[0].items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_adapters_with_each_other(world, tmp_path, method):
    from vlora.config import load_config
    from vlora.merge import MergeConfig, run_merge

    found = {}
    for kind in ("conv1d", "linear"):
        values = {
            "method": method, "adapters": sources(world, kind, method), "output": str(tmp_path / kind),
            "rank": 12 if method == "mats" else "lossless", **METHODS[method],
        }  # fmt: skip
        run_merge(load_config(MergeConfig, values))
        found[kind] = deltas(tmp_path / kind)
    assert len(found["conv1d"]) == 6
    for name, delta in found["linear"].items():
        assert delta.norm() > 0.3
        assert (found["conv1d"][name] - delta).norm() < 1e-4 * delta.norm(), name
    plain = deltas(world / "conv1d" / "a")
    name = next(n for n in plain if n.endswith("attn.c_proj"))
    assert (found["conv1d"][name] - plain[name]).norm() > 0.1 * plain[name].norm()
    config = json.loads((tmp_path / "conv1d" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", ["", "model-"])
def test_adapters_into_the_model_and_models_with_each_other(world, tmp_path, method, prefix):
    found = {}
    for kind in ("conv1d", "linear"):
        values = {"method": method, "base_model": str(world / kind / "base"), **METHODS[method]}
        values |= {"models": sources(world, kind, method, prefix)} if prefix else {
            "adapters": sources(world, kind, method), "into": "model", **({"rank": 12} if method == "mats" else {}),
        }  # fmt: skip
        found[kind] = tensors_of(merge(tmp_path / kind, **values))
    start, twin = tensors_of(world / "linear" / "base"), turned(found["conv1d"])
    assert found["linear"].keys() == twin.keys()
    for name, value in found["linear"].items():
        moved = (value - start[name]).norm()
        assert (moved > 0.3) == any(name.endswith(f"{target}.weight") for target in TARGETS), name
        assert (twin[name] - value).norm() <= 2e-4 * moved + 1e-5, name
    ours = loaded(tmp_path / "conv1d")
    assert all(torch.equal(ours[name], value) for name, value in found["conv1d"].items())


def test_threads_and_blocks_change_no_byte_and_identities_hold(world, tmp_path):
    models = sources(world, "conv1d", "gradient_matching", "model-")
    values = {"method": "gradient_matching", "base_model": str(world / "conv1d" / "base"), "models": models}
    found = set()
    for number, (threads, block) in enumerate([(1, 8.0), (3, 0.0002)]):
        out = merge(tmp_path / f"{number}", **values, threads=threads, block_megabytes=block)
        found.add((out / "model.safetensors").read_bytes())
        told = json.loads((out / "merge.json").read_text())
        assert told["identities"]["single"] < 1e-6 and told["identities"]["written"] == 0
        assert "cosine" in told["agreement"]["attn.c_proj.weight"]
    assert len(found) == 1
    plan = make_plan(settings(tmp_path / "no", **values, threads=1), dry=True)
    assert plan.estimate.held_for.endswith("c_fc.weight") and plan.estimate.held_bytes > 4 * 4 * 12 * 48


def test_nan_and_curvature_of_the_other_side_are_one_line(world, tmp_path):
    models = sources(world, "conv1d", "gradient_matching", "model-")
    values = {"method": "gradient_matching", "base_model": str(world / "conv1d" / "base"), "models": models}
    tensors = tensors_of(Path(models[1]["path"]))
    tensors["transformer.h.0.attn.c_attn.weight"][2, 3] = float("nan")
    broken = raw_model(tmp_path / "b", tensors, json.loads((world / "conv1d/base/config.json").read_text()))
    with pytest.raises(
        CheckpointError, match=r"b/model\.safetensors holds NaN or infinity in .*c_attn\.weight"
    ):
        merge(tmp_path / "out", **{**values, "models": [models[0], {**models[1], "path": str(broken)}]})
    (tmp_path / "other").mkdir()
    grams = {f"transformer.h.0.attn.c_attn.{side}_gram": torch.eye(36) for side in ("input", "output")}
    save_file(grams, tmp_path / "other" / "curvature.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has other sizes \(input_gram 36\) than .*c_attn\.weight \(12, 36\)"
    ):
        merge(
            tmp_path / "out",
            **{**values, "models": [{**m, "curvature": str(tmp_path / "other")} for m in models]},
        )
