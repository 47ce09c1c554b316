"""Adapters into their base: equal to PEFT's ``merge_and_unload`` to the rounding of the dtype."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoint_cases import gpt2, llama, loaded, lora, merge, peft_merged, save_model, settings, tensors_of
from safetensors.torch import save_file

from vlora.errors import CheckpointError, ConfigError, IncompatibleAdaptersError
from vlora.merge import merge_adapters
from vlora.merge.checkpoints import make_plan
from vlora.merge.checkpoints.masks import MaskSource
from vlora.posterior import Posterior
from vlora.posterior.hashing import fingerprint_weights, tensors_sha256

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(tie_word_embeddings|tied|save_embedding_layers|fan_in_fan_out|invalid shape)"
)

ATTENTION = ["c_attn", "c_proj"]  # attn.c_proj of GPT-2 is a square Conv1D
CASES = {
    "lora": (llama, {}),
    "rslora": (llama, {"use_rslora": True, "r": 4}),
    "patterns": (llama, {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.down_proj": 5}}),
    "dora": (llama, {"use_dora": True}),
    "head": (llama, {"modules_to_save": ["lm_head"]}),
    "embedding": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "embedding dora": (llama, {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    "conv1d": (gpt2, {"target_modules": ATTENTION}),
    "conv1d dora": (gpt2, {"target_modules": ATTENTION, "use_dora": True}),
    "conv1d bias": (gpt2, {"target_modules": ATTENTION, "bias": "all"}),
    "conv1d lora_bias": (gpt2, {"target_modules": ATTENTION, "lora_bias": True}),
    "tied embedding": (gpt2, {"target_modules": ["c_attn", "wte"]}),
    "tied head": (gpt2, {"target_modules": ["c_attn", "lm_head"]}),
    "tied head saved": (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
    "tokens": (llama, {"trainable_token_indices": [5, 1, 16]}),
    "tokens, dora": (llama, {"trainable_token_indices": [3], "use_dora": True}),
    "tokens of both": (llama, {"trainable_token_indices": {"embed_tokens": [2], "lm_head": [4, 3]}}),
    "tied tokens": (lambda: llama(tie_word_embeddings=True), {"trainable_token_indices": [1, 5]}),
    "tied llama": (lambda: llama(tie_word_embeddings=True), {"target_modules": ["q_proj", "lm_head"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_equal_to_merge_and_unload(tmp_path, case):
    make, options = CASES[case]
    base = save_model(tmp_path / "base", make(), shard="3KB")
    adapter = lora(tmp_path / "adapter", make(), **options)
    out = merge(
        tmp_path / "out", into="model", base_model=str(base), adapters=[{"path": str(adapter)}],
        max_shard_size="4KB", block_megabytes=1e-3,
    )  # fmt: skip
    expected, found = peft_merged(make(), adapter), tensors_of(out)
    tied = json.loads((out / "config.json").read_text()).get("tie_word_embeddings", make is gpt2)
    assert expected.keys() - found.keys() == ({"lm_head.weight"} if tied else set())
    if tied:
        assert torch.equal(expected["lm_head.weight"], make_embedding(expected))
    for name, value in found.items():
        torch.testing.assert_close(
            value, expected[name], rtol=2e-6, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    before = make().state_dict()
    assert sum(not torch.equal(before[n], v) for n, v in found.items()) >= 3  # the merge did something


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_in_a_tensor_that_is_only_copied_is_named(tmp_path, dtype, value):
    base = save_model(tmp_path / "base", llama(), dtype)
    tensors = tensors_of(base)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    settings = {"into": "model", "base_model": str(base)}
    adapters = [{"path": str(lora(tmp_path / "adapter", llama()))}]
    message = r"base/model\.safetensors holds NaN or infinity in model\.norm\.weight; leave this model out"
    for changes in ({}, {"dtype": "float16"}):
        with pytest.raises(CheckpointError, match=message):
            merge(tmp_path / "out", adapters=adapters, **settings, **changes)
    assert not (tmp_path / "out").exists()


def test_a_mask_among_the_buffers_may_be_infinite(tmp_path):
    base = save_model(tmp_path / "base", gpt2())
    mask = torch.full((16, 16), float("-inf")).triu(1)
    tensors = {**tensors_of(base), "transformer.h.0.attn.bias": mask}
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    adapter = lora(tmp_path / "adapter", gpt2(), target_modules=["c_attn"])
    out = merge(tmp_path / "out", into="model", base_model=str(base), adapters=[{"path": str(adapter)}])
    assert torch.equal(tensors_of(out)["transformer.h.0.attn.bias"], mask)


def make_embedding(tensors):
    return next(v for k, v in tensors.items() if k.endswith(("embed_tokens.weight", "wte.weight")))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_output_loads_unchanged(tmp_path, make):
    base = save_model(tmp_path / "base", make(), torch.bfloat16, shard="2KB")
    adapter = lora(tmp_path / "adapter", make(), target_modules=["lm_head"])
    out = merge(
        tmp_path / "out",
        into="model",
        base_model=str(base),
        adapters=[{"path": str(adapter)}],
        max_shard_size="3KB",
    )
    assert len(list(out.glob("model-0*-of-*.safetensors"))) >= 2
    found, written = loaded(out), tensors_of(out)
    assert all(
        found[name].dtype == torch.bfloat16 and torch.equal(found[name], v) for name, v in written.items()
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(tmp_path, dtype):
    base = save_model(tmp_path / "base", llama(), dtype)
    adapter = lora(tmp_path / "adapter", llama())
    out = merge(tmp_path / "out", into="model", base_model=str(base), adapters=[{"path": str(adapter)}])
    exact = peft_merged(llama().to(dtype).float(), adapter)
    theirs = peft_merged(llama().to(dtype), adapter)
    for name, value in tensors_of(out).items():
        assert value.dtype == dtype
        ulp = exact[name].abs().clamp_min(2.0**-14) * torch.finfo(dtype).eps
        assert ((value.float() - exact[name]).abs() <= 0.5001 * ulp + 1e-7).all()
        assert ((value.float() - theirs[name].float()).abs() <= 1.01 * ulp).all()


def test_several_adapters_are_summed_without_loss(tmp_path):
    base = save_model(tmp_path / "base", llama())
    first = lora(tmp_path / "a", llama(), 1)
    second = lora(tmp_path / "b", llama(), 2, r=3, target_modules=["q_proj", "v_proj"])
    out = merge(
        tmp_path / "out", into="model", base_model=str(base), method="task_arithmetic", scale=0.5,
        adapters=[{"path": str(first), "weight": 2}, {"path": str(second), "weight": -1}],
    )  # fmt: skip
    start, one, two = llama().state_dict(), peft_merged(llama(), first), peft_merged(llama(), second)
    for name, value in tensors_of(out).items():
        expected = start[name] + (one[name] - start[name]) - 0.5 * (two[name] - start[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    lineage = json.loads((out / "merge.json").read_text())
    assert [s["role"] for s in lineage["inputs"]] == ["base", "adapter", "adapter"]
    assert all(len(s["mean_sha256"]) == 64 for s in lineage["inputs"][1:])


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "della"])
def test_dense_methods_need_no_rank(tmp_path, method, monkeypatch):
    """The same as the merge of the two merged models, tile for tile: nothing is lost to a rank on the way."""
    base = save_model(tmp_path / "base", llama())
    folders = [lora(tmp_path / name, llama(), seed) for seed, name in enumerate("ab", 1)]
    adapters = [{"path": str(folder), "weight": w} for folder, w in zip(folders, (1.0, 2.0), strict=True)]
    models = []
    for folder in folders:
        name = f"{folder.name}-full/{folder.name}"
        (tmp_path / name).parent.mkdir()
        models.append(
            merge(tmp_path / name, into="model", base_model=str(base), adapters=[{"path": str(folder)}])
        )
    _same_masks(monkeypatch, folders, models)
    out = merge(tmp_path / "out", into="model", base_model=str(base), method=method, adapters=adapters)
    sources = [{"path": str(m), "weight": w} for m, w in zip(models, (1.0, 2.0), strict=True)]
    expected = tensors_of(merge(tmp_path / "full", base_model=str(base), method=method, models=sources))
    changed = 0
    for name, value in tensors_of(out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        changed += not torch.equal(value, tensors_of(base)[name])
    assert changed == 4


def _same_masks(monkeypatch, adapters, models):
    """Masks of a merged model like those of its adapter, which has another content."""
    own, uniform = {}, MaskSource.uniform
    for adapter, model in zip(adapters, models, strict=True):
        own[fingerprint_weights(str(model))] = tensors_sha256(Posterior.from_pretrained(adapter).mean)
    monkeypatch.setattr(
        MaskSource,
        "uniform",
        lambda mask, tile: uniform(replace(mask, content=own.get(mask.content, mask.content)), tile),
    )


def test_trained_rows_that_do_not_fit_are_refused(tmp_path):
    base = save_model(tmp_path / "base", llama())
    odd = lora(tmp_path / "odd", llama(), trainable_token_indices=[1, 5])
    values = {"into": "model", "base_model": str(base)}
    with pytest.raises(
        IncompatibleAdaptersError, match="'odd' was trained with trainable tokens and has no meaning"
    ):
        merge(tmp_path / "out", adapters=[{"path": str(odd), "weight": 0.5}], **values)
    path = odd / "adapter_config.json"
    config = json.loads(path.read_text())
    for indices, error, message in (
        ([1], IncompatibleAdaptersError, "holds 2 trained rows .* names 1; restore the adapter_config.json"),
        (
            [1, 17],
            CheckpointError,
            "trained row 17 of model.embed_tokens .* the base has 17 x 12; give the base with",
        ),
    ):
        path.write_text(json.dumps(config | {"trainable_token_indices": indices}))
        with pytest.raises(error, match=message):
            merge(tmp_path / "out", adapters=[{"path": str(odd)}], **values)


def test_what_cannot_be_right_is_refused_by_name(tmp_path):
    base = save_model(tmp_path / "base", llama())
    dora, plain = lora(tmp_path / "dora", llama(), use_dora=True), lora(tmp_path / "plain", llama(), 2)
    with pytest.raises(
        IncompatibleAdaptersError, match="'dora' was trained with DoRA.*merge it into the base alone"
    ):
        merge(
            tmp_path / "out", into="model", base_model=str(base),
            adapters=[{"path": str(dora)}, {"path": str(plain)}],
        )  # fmt: skip
    with pytest.raises(IncompatibleAdaptersError, match="no meaning at another weight than 1"):
        merge(
            tmp_path / "out",
            into="model",
            base_model=str(base),
            adapters=[{"path": str(dora), "weight": 0.5}],
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kasa_config": {"beta": 1}},
            "KaSA changes .*; merge it with PEFT's merge_and_unload, .* as base_model",
        ),
        (
            {"trainable_token_indices": [1]},
            "trainable tokens .* holds no trainable_tokens_delta, it is incomplete",
        ),
        ({"use_bdlora": {"nblocks": 2}}, "block-diagonal .*; merge it with PEFT's merge_and_unload"),
        ({"use_qalora": True}, "pools its inputs; .* PEFT cannot merge it either; leave it out"),
        ({"arrow_config": {"top_k": 1}}, "Arrow routes .* PEFT cannot merge it either; leave it out"),
        ({"alora_invocation_tokens": [1]}, "some tokens only; .* PEFT cannot merge it either"),
        ({"layer_replication": [[0, 2]]}, "changes the base model; .* PEFT cannot merge it either"),
        (
            {"use_dora": True},
            "the file holds no lora_magnitude_vector, it is incomplete; save the adapter again",
        ),
        ({"lora_bias": True}, "the file holds no lora_B.bias, it is incomplete; save the adapter again"),
    ],
)
def test_the_cure_for_what_the_base_cannot_take_is_not_to_merge_it_into_the_base(tmp_path, changes, message):
    base, folder = save_model(tmp_path / "base", llama()), lora(tmp_path / "odd", llama())
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    values = {"into": "model", "base_model": str(base), "adapters": [{"path": str(folder)}]}
    for act in (
        lambda: make_plan(settings(tmp_path / "out", **values), dry=True),
        lambda: merge(tmp_path / "out", **values),
    ):
        with pytest.raises(IncompatibleAdaptersError, match=f"'odd' was trained with .*{message}"):
            act()
    assert not (tmp_path / "out").exists()


def test_runs_of_one_ancestor_go_into_the_base_by_their_sites(tmp_path):
    """As the merged adapter would; the plan and the merge refuse alike what is not of the lineage."""
    from vlora.merge.checkpoints.plan import make_plan

    base = save_model(tmp_path / "base", llama())
    plain = Posterior.from_pretrained(lora(tmp_path / "plain", llama(), lora_alpha=4))
    ancestor = with_h(plain, 1)
    ancestor.save_pretrained(tmp_path / "ancestor")
    places = []
    for seed in (2, 3):
        noise = torch.Generator().manual_seed(seed)
        mean = {k: v + 0.05 * torch.randn(v.shape, generator=noise) for k, v in plain.mean.items()}
        places.append({"path": str(tmp_path / f"run{seed}")})
        with_h(replace(plain, mean=mean), seed).save_pretrained(places[-1]["path"])
    given = {
        "into": "model", "base_model": str(base), "adapters": places, "ancestor": str(tmp_path / "ancestor"),
    }  # fmt: skip
    found = tensors_of(merge(tmp_path / "out", **given))
    runs = [Posterior.from_pretrained(place["path"]) for place in places]
    merge_adapters(runs, ancestor=ancestor).save_pretrained(tmp_path / "merged")
    for name, value in peft_merged(llama(), tmp_path / "merged").items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6)
    written = json.loads((tmp_path / "out/merge.json").read_text())
    assert {"ancestor"} == {s["name"] for s in written["inputs"] if s["role"] == "ancestor"}
    with pytest.raises(ConfigError, match="lies inside the input"):
        merge(tmp_path / "ancestor/new", **given)
    other = replace(runs[1], adapter_config={**runs[1].adapter_config, "lora_alpha": 8})
    other.save_pretrained(places[1]["path"])
    for work in (
        lambda: make_plan(settings(tmp_path / "two", **given), dry=True),
        lambda: merge(tmp_path / "two", **given),
    ):
        with pytest.raises(IncompatibleAdaptersError, match="'run3' did not go on from the ancestor"):
            work()


def with_h(plain, seed):
    noise = torch.Generator().manual_seed(100 + seed)
    hess = {k: torch.rand(v.shape, generator=noise) for k, v in plain.mean.items()}
    return replace(plain, hess=hess, meta=replace(plain.meta, num_examples=50, ess=500.0, weight_decay=0.1))


def test_commits_of_the_base_and_of_adapters_are_in_the_card(tmp_path):
    first, second = "0123456789abcdef" * 2 + "01234567", "fedcba9876543210" * 2 + "fedcba98"
    base = save_model(tmp_path / "models--me--base" / "snapshots" / first, llama())
    adapter = lora(tmp_path / "models--me--adapter" / "snapshots" / second, llama())
    out = merge(tmp_path / "out", into="model", base_model=str(base), adapters=[{"path": str(adapter)}])
    inputs = json.loads((out / "merge.json").read_text())["inputs"]
    assert {source["role"]: source["revision"] for source in inputs} == {"base": first, "adapter": second}
    card = (out / "README.md").read_text()
    assert f"| {first} |" in card and f"| {second} |" in card
    whole = merge(
        tmp_path / "whole",
        method="task_arithmetic",
        base_model=str(base),
        models=[{"path": str(out), "weight": 0.5}],
    )
    inputs = json.loads((whole / "merge.json").read_text())["inputs"]
    assert {source["role"]: source["revision"] for source in inputs} == {"base": first, "model": None}


def test_a_plan_counts_the_factors_that_stay_in_memory(tmp_path):
    base = save_model(tmp_path / "base", llama())
    adapter = lora(tmp_path / "adapter", llama(), r=8, modules_to_save=["lm_head"])
    plan = make_plan(
        settings(tmp_path / "out", into="model", base_model=str(base), adapters=[{"path": str(adapter)}])
    )
    own = sum(value.numel() * 4 for value in Posterior.from_pretrained(adapter).mean.values())
    assert sum(job.rule.kept() for job in plan.draft.jobs) == own
    assert plan.estimate.memory_bytes > own
