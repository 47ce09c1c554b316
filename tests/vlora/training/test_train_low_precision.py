"""``vlora train`` with 8-bit states, coarse adapters and quantised bases."""

import json

import pytest
import torch
from transformers import Trainer

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.training.train import run_training

STATES = ("optimizer.state_bits=8", "optimizer.min_8bit_size=1")


@pytest.mark.parametrize(
    ("quantization", "adapter_dtype"),
    [
        ("none", "float32"),
        ("8bit", "float32"),
        ("8bit", "bfloat16"),
        ("4bit", "float32"),
        ("4bit", "bfloat16"),
    ],
)
def test_eight_bit_states_learn_on_every_base(make_config, quantization, adapter_dtype):
    config = make_config(
        "causal_lm", *STATES, "training.max_steps=40", "optimizer.lr=0.02", "optimizer.stochastic_rounding=true",
        quantization=quantization, adapter_dtype=adapter_dtype,
    )  # fmt: skip
    folder = run_training(config)
    log = json.loads((folder / "train_log.json").read_text())
    losses = [entry["loss"] for entry in log["loss"]]
    assert sum(losses[-3:]) / 3 < 0.85 * losses[0]
    assert (log["optimizer"]["state_bits"], log["optimizer"]["stochastic_rounding"]) == (8, True)
    per_parameter = log["optimizer_state_bytes"] / log["parameters_trained"]
    assert 6.0 < per_parameter < 6.3  # tensors of 64 to 256 entries still have one whole scale
    posterior = Posterior.from_pretrained(folder)
    assert {value.dtype for value in (*posterior.mean.values(), *posterior.hess.values())} == {torch.float32}
    moved = torch.cat(
        [(h / log["optimizer"]["hess_init"] - 1).abs().flatten() for h in posterior.hess.values()]
    )
    assert (moved > 0.1).float().mean() > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bfloat16_adapter_beside_a_float32_head(make_config, dtype, monkeypatch):
    seen = {}
    original = Trainer.train

    def spy(trainer, *args, **kwargs):
        seen.update({name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad})
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", spy)
    posterior = Posterior.from_pretrained(
        run_training(make_config("sequence_classification", dtype=dtype, adapter_dtype="bfloat16"))
    )
    heads = {seen[name] for name in seen if "modules_to_save" in name}
    assert heads == {torch.float32}
    assert {seen[name] for name in seen if "lora_" in name} == {torch.bfloat16}
    means = [value for key, value in posterior.mean.items() if "lora_" in key]
    assert any(
        not torch.equal(mean, mean.bfloat16().float()) for mean in means
    )  # the float32 mean is what is saved


def test_resumed_run_with_eight_bit_states_is_the_same(make_config, monkeypatch):
    """Stop after step 3 of 6 by an error that leaves the checkpoint, then go on."""
    config = make_config("causal_lm", *STATES, "training.save_steps=3", "peft.lora_dropout=0")
    whole = Posterior.from_pretrained(run_training(config))
    again = make_config(
        "causal_lm", *STATES, "training.save_steps=3", "peft.lora_dropout=0", output=config.output + "2"
    )
    original, calls = Trainer.training_step, []

    def interrupted(trainer, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_training(again)
    monkeypatch.undo()
    resumed = Posterior.from_pretrained(run_training(again))
    for tensors, others in ((whole.mean, resumed.mean), (whole.hess, resumed.hess)):
        assert all(torch.equal(tensors[key], others[key]) for key in tensors)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.state_bits=16", "optimizer.state_bits: Input should be 8 or 32"),
        ("optimizer.min_8bit_size=0", "optimizer.min_8bit_size must be > 0, got 0"),
        ("adapter_dtype=float16", "adapter_dtype: Input should be 'float32' or 'bfloat16'"),
    ],
)
def test_refusals(make_config, override, message):
    with pytest.raises(ConfigError, match=message):
        make_config("causal_lm", override)
