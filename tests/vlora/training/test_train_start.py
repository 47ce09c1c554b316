"""Training that goes on from an adapter: same weights, rank and layout at step 0, and a record of it."""

import json
from dataclasses import replace

import pytest
import torch

from vlora import Posterior
from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.models import load_adapter, load_base_model
from vlora.training import TrainConfig
from vlora.training.prepare import prepare
from vlora.training.train import run_training


def going_on(config, folder, *overrides, **changes):
    return load_config(
        TrainConfig,
        {**json.loads(json.dumps(_plain(config))), "start": str(folder), **changes},
        overrides,
    )


def _plain(config):
    from vlora.config import to_plain

    return to_plain(config)


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_a_run_starts_at_the_adapter_and_says_so(make_config, tmp_path, task):
    first = run_training(make_config(task))
    before = Posterior.from_pretrained(first)
    config = going_on(
        make_config(task), first, output=str(tmp_path / "second"), peft={"type": "lora"}, seed=5
    )
    run = prepare(config)
    live = before._live(run.model, "default")
    assert all(torch.equal(live[key], value) for key, value in before.mean.items())
    assert run.config.start == str(first)

    after = Posterior.from_pretrained(run_training(config))
    assert after.meta.ancestor == {
        "folder": str(first),
        "sha256": before.meta.mean_sha256,
        "included": False,
    }
    assert after.meta.prior == {"kind": "zero"}
    assert after.mean.keys() == before.mean.keys()
    for name in ("r", "lora_alpha", "target_modules", "modules_to_save"):
        one, other = before.adapter_config[name], after.adapter_config[name]
        assert (sorted(one) if isinstance(one, list) else one) == (
            sorted(other) if isinstance(other, list) else other
        )
    moved = max(
        (after.mean[k] - before.mean[k]).norm() / before.mean[k].norm() for k in before.mean if "lora_A" in k
    )
    assert 0 < moved < 0.5
    if task == "causal_lm":
        load_adapter(load_base_model(config.base_model, task=task), after_folder(config))


def after_folder(config):
    from pathlib import Path

    return Path(config.output)


def test_adamw_can_go_on_too(make_config, tmp_path):
    first = run_training(make_config("causal_lm", "optimizer.name=adamw"))
    config = going_on(make_config("causal_lm", "optimizer.name=adamw"), first, output=str(tmp_path / "two"))
    after = Posterior.from_pretrained(run_training(config))
    assert after.meta.ancestor["sha256"] == Posterior.from_pretrained(first).meta.mean_sha256


def test_what_does_not_agree_is_refused_before_training(make_config, tmp_path):
    first = run_training(make_config("causal_lm"))
    for changes, message in (
        ({"peft": {"r": 2}}, r"has r = 4, peft.r says 2; leave peft.r out"),
        ({"peft": {"lora_alpha": 4}}, "has lora_alpha = 8, peft.lora_alpha says 4"),
        ({"peft": {"use_rslora": True}}, "has use_rslora = False, peft.use_rslora says True"),
        ({"peft": {"type": "ia3"}}, "is a LORA adapter, peft.type says ia3"),
        ({"task": "sequence_classification"}, "is of task_type CAUSAL_LM, the run of SEQ_CLS"),
    ):
        config = going_on(make_config("causal_lm"), first, output=str(tmp_path / "two"), **changes)
        with pytest.raises(ConfigError, match=message):
            run_training(config)
    assert not (tmp_path / "two").exists()
    going = going_on(
        make_config("causal_lm"), first, output=str(tmp_path / "two"), peft={"r": 4, "lora_dropout": 0.0}
    )
    assert prepare(going).model.peft_config["default"].lora_dropout == 0.0


def test_another_base_or_other_classes_are_refused(make_config, tmp_path):
    first = run_training(make_config("sequence_classification"))
    config = make_config("sequence_classification")
    data = {**_plain(config)["data"], "labels": ["1", "0"]}
    with pytest.raises(ConfigError, match=r"the classes of .* are 0, 1, those of the data 1, 0"):
        run_training(going_on(config, first, output=str(tmp_path / "two"), data=data))
    posterior = Posterior.from_pretrained(first)
    other = {**posterior.meta.base_model, "fingerprint": "0" * 64, "id": "other/base"}
    replace(posterior, meta=replace(posterior.meta, base_model=other)).save_pretrained(first)
    with pytest.raises(ConfigError, match="was trained on 'other/base', base_model is"):
        run_training(going_on(config, first, output=str(tmp_path / "two")))


def test_two_runs_from_one_start_merge_by_their_sites(make_config, tmp_path):
    """IVON's posterior and a Laplace approximation of AdamW's point, both with the record of the start."""
    from vlora.laplace import PosteriorConfig
    from vlora.laplace.run import run_posterior
    from vlora.merge.in_memory import merge_with_report

    first = run_training(make_config("causal_lm"))
    ivon = run_training(going_on(make_config("causal_lm"), first, output=str(tmp_path / "ivon"), seed=1))
    config = make_config("causal_lm", "optimizer.name=adamw")
    adamw = run_training(going_on(config, first, output=str(tmp_path / "adamw"), seed=2))
    values = {
        "adapter": str(adamw), "task": "causal_lm", "data": _plain(config)["data"], "output": str(tmp_path / "laplace"),
        "loss_reduction": "token_mean", "health_examples": 0,
    }  # fmt: skip
    fitted = Posterior.from_pretrained(run_posterior(load_config(PosteriorConfig, values)))
    ancestor = Posterior.from_pretrained(first)
    assert fitted.meta.ancestor["sha256"] == ancestor.meta.mean_sha256
    merged, report = merge_with_report(
        [Posterior.from_pretrained(ivon), fitted], names=["ivon", "adamw"], ancestor=str(first)
    )
    assert merged.meta.num_examples == 3 * ancestor.meta.num_examples
    assert merged.meta.ancestor["included"] is True
    assert merged.adapter_config["r"] == ancestor.adapter_config["r"]
    assert not any("does not say" in note for note in report.notes)
    again = replace(merged, meta=replace(merged.meta, notes=[]))
    again.save_pretrained(tmp_path / "merged")
    on = going_on(
        make_config("causal_lm"), tmp_path / "merged", output=str(tmp_path / "next"), peft={"type": "lora"}
    )
    after = Posterior.from_pretrained(run_training(on))  # the next round starts from the merge
    assert after.meta.ancestor["sha256"] == Posterior.from_pretrained(tmp_path / "merged").meta.mean_sha256
