"""Bad input: one clear line that names the adapter, the thing, and the cure."""

import json
import re
from dataclasses import replace

import pytest
import torch
from merge_cases import add_posterior, make_adapter, tiny_bert

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError, OutputExistsError
from vlora.merge import MergeConfig, merge_adapters, remove_adapter, run_merge
from vlora.posterior import Posterior


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("pair")
    return [Posterior.from_pretrained(make_adapter(root / name, seed)) for seed, name in enumerate("ab", 1)]


def reconfigured(posterior, **changes):
    return replace(posterior, adapter_config={**posterior.adapter_config, **changes})


def retold(posterior, **base):
    return replace(posterior, meta=replace(posterior.meta, base_model={"id": "tiny/base", **base}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"use_dora": True},
            "'adapter 1' was trained with use_dora: DoRA .*alone into the base model \\(into: model",
        ),
        (
            {"lora_bias": True},
            "'adapter 1' was trained with lora_bias.*alone into the base model \\(into: model",
        ),
        ({"kasa_config": {"beta": 1}}, "KaSA changes .* into the base model with PEFT's merge_and_unload"),
        ({"arrow_config": {"top_k": 1}}, "Arrow routes .* PEFT cannot merge it either; leave it out"),
        ({"alora_invocation_tokens": [1]}, "aLoRA is active .* PEFT cannot merge it either; leave it out"),
        ({"peft_type": "IA3"}, "'adapter 1' is a IA3 adapter; only LORA"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "initialised with pissa_niter_4, which also changes the base",
        ),
        (
            {"task_type": "SEQ_CLS"},
            "'adapter 0' was trained for task_type CAUSAL_LM and 'adapter 1' for SEQ_CLS",
        ),
        ({"r": 4}, r"layers.0.mlp.down_proj has factors .* says r=4; restore the adapter_config.json"),
        (
            {"trainable_token_indices": [1]},
            "trainable tokens are no LoRA update; .*alone into the base",
        ),
    ],
)
def test_adapters_that_are_not_plain_lora_are_refused_by_name(pair, changes, message):
    with pytest.raises(IncompatibleAdaptersError, match=message):
        merge_adapters([pair[0], reconfigured(pair[1], **changes)], method="linear")


@pytest.mark.parametrize("method", ["linear", "gradient_matching"])
def test_a_posterior_under_another_prior_is_refused(pair, method):
    posterior = add_posterior(pair[0], 1)
    prior = {"kind": "posterior", "folder": "out/first", "sha256": "0" * 64}
    later = replace(posterior, meta=replace(posterior.meta, prior=prior))
    message = r"'adapter 1' was trained under a prior of kind 'posterior', .*give ancestor: out/first .* plain adapter"
    with pytest.raises(IncompatibleAdaptersError, match=message):
        merge_adapters([posterior, later], method=method)
    with pytest.raises(IncompatibleAdaptersError, match=message):
        merge_adapters([posterior, replace(later, hess={})], method=method)


def test_another_base_model_is_refused(pair):
    with pytest.raises(IncompatibleAdaptersError, match="on 'tiny/base' and 'adapter 1' on 'tiny/other'"):
        merge_adapters([pair[0], retold(pair[1], id="tiny/other")])
    with pytest.raises(IncompatibleAdaptersError, match="not the same weights"):
        merge_adapters([retold(pair[0], fingerprint="1" * 64), retold(pair[1], fingerprint="2" * 64)])
    with pytest.raises(
        IncompatibleAdaptersError, match="'adapter 1' was trained on 'tiny/base' and 'adapter 2'"
    ):
        marked = [retold(pair[1], fingerprint="1" * 64), retold(pair[1], fingerprint="2" * 64)]
        merge_adapters([pair[0], *marked])
    with pytest.raises(IncompatibleAdaptersError, match="base_model is 'tiny/else', but 'adapter 0'"):
        merge_adapters(pair, base_model="tiny/else")


def test_equal_weights_under_two_paths_are_one_base_model(pair):
    same = [retold(pair[0], fingerprint="1" * 64), retold(pair[1], id="copy/of/it", fingerprint="1" * 64)]
    assert merge_adapters(same, method="linear").mean


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "got 1 weights for 2 adapters"),
        ([1.0, float("nan")], "weight 1 is nan; give a finite number"),
        ([0.0, 1.0], "weight 0 is 0; leave that adapter out"),
    ],
)
def test_bad_weights(pair, weights, message):
    with pytest.raises(ConfigError, match=message):
        merge_adapters(pair, weights=weights)


def test_nothing_to_merge():
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge_adapters([])


def test_an_option_of_another_method_is_refused(pair):
    with pytest.raises(ConfigError, match="linear has no option 'tau'; its options: none"):
        merge_adapters(pair, method="linear", tau=0.3)


def test_nan_is_named(pair):
    mean = {k: v.clone() for k, v in pair[1].mean.items()}
    key = next(iter(mean))
    mean[key][0, 0] = float("nan")
    with pytest.raises(IncompatibleAdaptersError, match=f"'adapter 1': {re.escape(key)} holds NaN"):
        merge_adapters([pair[0], replace(pair[1], mean=mean)])


def test_missing_curvature_is_named_when_asked_for(pair):
    with pytest.raises(IncompatibleAdaptersError, match="'left' has none for model.layers.0.mlp.down_proj"):
        merge_adapters(pair, curvature="kronecker", names=["left", "right"])


def test_ranks_that_differ_need_a_decision(tmp_path, pair):
    other = Posterior.from_pretrained(make_adapter(tmp_path / "c", 3, r=4))
    with pytest.raises(
        IncompatibleAdaptersError, match="'adapter 0' has r=2 and 'adapter 1' has r=4 on model.layers"
    ):
        merge_adapters([pair[0], other], method="linear", rank="keep")
    assert merge_adapters([pair[0], other], method="linear").adapter_config["r"] == 6
    assert merge_adapters([pair[0], other], method="linear", rank=3).adapter_config["r"] == 3


def test_heads_of_different_shape_and_negative_weights_on_heads(tmp_path):
    lora = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    one, two = (
        Posterior.from_pretrained(make_adapter(tmp_path / str(s), s, base=tiny_bert, **lora)) for s in (1, 2)
    )
    with pytest.raises(IncompatibleAdaptersError, match="was trained whole and .* negative weight"):
        merge_adapters([one, two], method="task_arithmetic", weights=[1.0, -0.5])
    key = "base_model.model.classifier.weight"
    wider = replace(two, mean={**two.mean, key: torch.zeros(5, 12)})
    with pytest.raises(
        IncompatibleAdaptersError, match=r"shape \(3, 12\) in 'adapter 0' and \(5, 12\).*same labels"
    ):
        merge_adapters([one, wider], method="linear")


def test_convolutions_are_refused(pair):
    key = next(k for k in pair[1].mean if "lora_A" in k)
    mean = {**pair[1].mean, key: pair[1].mean[key][..., None, None]}
    with pytest.raises(IncompatibleAdaptersError, match="with 4-dimensional factors"):
        merge_adapters([pair[0], replace(pair[1], mean=mean)])


def test_removal_is_refused_where_it_is_not_exact(pair):
    first, second = (add_posterior(p, s) for s, p in enumerate(pair, 1))
    merged = merge_adapters([first, second], rank=2)
    with pytest.raises(IncompatibleAdaptersError, match="only for adapters with one frozen A"):
        remove_adapter(merged, second)
    with pytest.raises(IncompatibleAdaptersError, match="cannot take 100 examples out of a merge of 100"):
        remove_adapter(first, second)


def test_another_architecture_under_the_same_name_is_refused(pair):
    key = next(k for k in pair[1].mean if "q_proj.lora_B" in k)
    taller = replace(pair[1], mean={**pair[1].mean, key: torch.zeros(24, pair[1].mean[key].shape[1])})
    with pytest.raises(
        IncompatibleAdaptersError,
        match="q_proj is 12 x 12 for 'adapter 0' and 24 x 12 for 'adapter 1': .*architectures",
    ):
        merge_adapters([pair[0], taller], method="linear")


@pytest.mark.parametrize(("lost", "held"), ["AB", "BA"])
def test_a_missing_factor_is_named(pair, lost, held):
    key = next(k for k in pair[1].mean if f"q_proj.lora_{lost}" in k)
    mean = {k: v for k, v in pair[1].mean.items() if k != key}
    message = rf"'adapter 1' holds .*q_proj\.lora_{held}\.weight, but its lora_{lost} is missing; the file is"
    with pytest.raises(IncompatibleAdaptersError, match=message):
        merge_adapters([pair[0], replace(pair[1], mean=mean)], method="linear")


def test_weights_that_cancel_have_no_mean(pair):
    with pytest.raises(ConfigError, match="divides by the sum of the weights, which is 0; make it positive"):
        merge_adapters(pair, method="linear", weights=[1.0, -1.0])
    assert merge_adapters(pair, method="task_arithmetic", weights=[1.0, -1.0]).mean


@pytest.mark.parametrize("ledger", ["reference", "full"])
def test_of_two_runs_into_one_folder_the_second_to_finish_is_refused(pair, tmp_path, ledger):
    for name, posterior in zip("ab", pair, strict=True):
        posterior.save_pretrained(tmp_path / name)
    values = {"adapters": [{"path": str(tmp_path / n)} for n in "ab"], "output": str(tmp_path / "out")}
    values |= {"method": "linear", "rank": "lossless", "ledger": ledger}

    def other_run(_):
        run_merge(load_config(MergeConfig, {**values, "method": "ties", "rank": "keep"}))
        return "page"

    with pytest.raises(OutputExistsError, match="already holds a result; set overwrite=true or move it"):
        run_merge(load_config(MergeConfig, values), page=other_run)
    assert json.loads((tmp_path / "out/merge_report.json").read_text())["method"] == "ties"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]
