import json
import math

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from vlora import Posterior
from vlora.config import load_config
from vlora.grams import read_gram
from vlora.models import load_adapter, load_base_model
from vlora.training import TrainConfig
from vlora.training.train import run_training


def log_of(folder):
    return json.loads((folder / "train_log.json").read_text())


def test_ivon_writes_a_posterior_that_plain_peft_loads(make_config, tiny_llama):
    config = make_config("causal_lm", "training.max_steps=60", "optimizer.lr=0.02", "training.save_steps=20")
    folder = run_training(config)
    log = log_of(folder)
    losses = [entry["loss"] for entry in log["loss"]]
    assert log["steps"] == 60
    assert sum(losses[-3:]) / 3 < 0.6 * losses[0]
    posterior = Posterior.from_pretrained(folder)
    assert posterior.has_hess
    assert set(posterior.hess) == set(posterior.mean)
    meta = posterior.meta
    assert (meta.num_examples, meta.steps, meta.loss_reduction, meta.tokens_per_example) == (
        24,
        60,
        "token_mean",
        2,
    )
    assert meta.gauge is not None and len(meta.gauge) == 64
    assert meta.base_model["id"] == str(tiny_llama)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder).eval()
    ours = load_adapter(load_base_model(str(tiny_llama), task="causal_lm"), folder)
    tokens = torch.tensor([[1, 4, 5, 6]])
    assert torch.equal(plain(input_ids=tokens).logits, ours(input_ids=tokens).logits)
    assert not folder.with_name("out.work").exists()


def test_the_log_and_resolved_configuration_tell_the_run(make_config):
    config = make_config("causal_lm", "optimizer.lr=2", data={**vars(make_config().data), "max_rows": 16})
    folder = run_training(config)
    log = log_of(folder)
    assert log["optimizer"]["name"] == "ivon"
    assert log["optimizer"]["lr"] == 2.0
    settings = log["optimizer"]
    assert (settings["hess_approx"], settings["mean_step"]) == ("gradsq", "adam")
    assert (settings["noise_cost"], settings["ess"]) == (0.01, None)  # the run finds the ess
    assert settings["noise_warmup"] == log["steps"]
    assert log["data"]["num_examples"] == 16
    assert log["data"]["num_target_tokens"] == 32  # a colour and EOS
    assert log["data"]["tokens_seen"] == round(log["data"]["num_tokens"] * log["epochs"])
    assert log["peak_memory_bytes"] > 1e8
    assert log["seconds"] > log["train_seconds"] > 0
    assert log["parameters_trained"] == sum(
        m.numel() for m in Posterior.from_pretrained(folder).mean.values()
    )
    again = load_config(TrainConfig, folder / "vlora_config.yaml")
    assert again == config
    assert Posterior.from_pretrained(folder).meta.config_sha256 is not None


def test_adamw_starts_from_the_same_adapter_and_writes_a_plain_one(make_config, tmp_path):
    ivon = run_training(make_config("causal_lm", output=str(tmp_path / "ivon"), optimizer={"name": "ivon"}))
    adamw = run_training(
        make_config("causal_lm", output=str(tmp_path / "adamw"), optimizer={"name": "adamw"})
    )
    names = {path.name for path in adamw.iterdir()}
    assert names == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "posterior.json",  # lineage only
        "train_log.json",
        "vlora_config.yaml",
    }
    first, second = log_of(ivon), log_of(adamw)
    assert second["optimizer"] == {
        "name": "adamw", "lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0,
    }  # fmt: skip
    assert first["steps"] == second["steps"]
    assert first["data"] == second["data"]
    assert first["parameters_trained"] == second["parameters_trained"]
    rates = [[e["learning_rate"] / log["optimizer"]["lr"] for e in log["loss"]] for log in (first, second)]
    assert rates[0] == pytest.approx(rates[1])  # one schedule
    ours, plain = Posterior.from_pretrained(ivon), Posterior.from_pretrained(adamw)
    assert not plain.has_hess
    assert ours.adapter_config == plain.adapter_config
    for name in ("num_examples", "steps", "gauge", "base_model", "loss_reduction", "labels"):
        assert getattr(ours.meta, name) == getattr(plain.meta, name)
    still = run_training(
        make_config(output=str(tmp_path / "still"), optimizer={"name": "adamw", "lr": 1e-30})
    )
    start = load_file(still / "adapter_model.safetensors")
    assert all(not value.abs().max() > 1e-20 for key, value in start.items() if "lora_B" in key)
    # A hardly moves in six steps: both runs started from the draw that the seed fixes.
    for key in (key for key in start if "lora_A" in key):
        assert torch.corrcoef(torch.stack([ours.mean[key].flatten(), start[key].flatten()]))[0, 1] > 0.95
        assert torch.corrcoef(torch.stack([plain.mean[key].flatten(), start[key].flatten()]))[0, 1] > 0.95


def test_a_classifier_learns_and_records_its_classes(make_config, write_rows, tiny_bert):
    rows = [{"text": f"{w} book {n}", "label": w} for n in range(8) for w in ("good", "bad")]
    source = write_rows(rows, "named.jsonl")
    config = make_config(
        "sequence_classification",
        data={"train": source, "validation": source},
        optimizer={"name": "ivon", "lr": 0.01},
        training={"num_train_epochs": 40, "per_device_train_batch_size": 8, "eval_strategy": "epoch"},
    )
    folder = run_training(config)
    log = log_of(folder)
    assert log["steps"] == 80
    assert len(log["validation"]) == 40
    assert log["validation"][-1]["eval_loss"] < 0.8 * math.log(2)
    posterior = Posterior.from_pretrained(folder)
    assert (posterior.meta.loss_reduction, posterior.meta.tokens_per_example) == ("mean", None)
    saved = load_config(TrainConfig, folder / "vlora_config.yaml")
    assert saved.data.labels == posterior.meta.labels == ["bad", "good"]
    assert any("classifier" in key for key in posterior.hess)


@pytest.mark.parametrize(
    ("dtype", "quantization"), [("bfloat16", "none"), ("float32", "8bit"), ("bfloat16", "4bit")]
)
def test_low_precision_bases_train_a_float32_posterior(make_config, dtype, quantization):
    config = make_config(
        "multiple_choice", dtype=dtype, quantization=quantization, curvature=True, curvature_source="training"
    )
    posterior = Posterior.from_pretrained(run_training(config))
    assert {value.dtype for value in posterior.mean.values()} == {torch.float32}
    assert posterior.meta.steps == 6
    assert all(sd.isfinite().all() for sd in posterior.std().values())
    assert posterior.curvature is not None
    for key in {key.partition("_gram")[0] + "_gram" for key in posterior.curvature}:
        gram = read_gram(posterior.curvature, key)
        assert gram is not None
        assert gram.dtype == torch.float32
        values = torch.linalg.eigvalsh(gram.double())
        assert values.min() > -1e-5 * values.max(), key


def test_adapter_types_pass_through(make_config):
    config = make_config(
        "causal_lm",
        peft={"type": "lora", "use_rslora": True, "use_dora": True, "target_modules": "all-linear"},
    )
    posterior = Posterior.from_pretrained(run_training(config))
    assert posterior.adapter_config["use_rslora"]
    assert any("down_proj.lora_A" in key for key in posterior.hess)
    assert any("down_proj.lora_magnitude_vector" in key for key in posterior.hess)
    ia3 = make_config("causal_lm", peft={"type": "ia3"}, overwrite=True)
    assert Posterior.from_pretrained(run_training(ia3)).adapter_config["peft_type"] == "IA3"


@pytest.mark.parametrize(
    ("settings", "trains", "fixed"),
    [
        ({"type": "prompt_tuning", "num_virtual_tokens": 3}, "prompt_embeddings", None),
        ({"type": "prefix_tuning", "num_virtual_tokens": 3}, "prompt_embeddings", None),
        ({"type": "vera", "target_modules": ["q_proj"]}, "vera_lambda_b", "base_model.vera_A"),
        ({"type": "shira", "r": 2, "target_modules": ["q_proj"]}, "shira_weight", "shira_indices"),
        ({"type": "trainable_tokens", "token_indices": [3, 4]}, "trainable_tokens_delta", None),
    ],
)
def test_adapters_with_saved_keys_of_their_own_pass_through(make_config, settings, trains, fixed):
    config = make_config(
        "causal_lm", peft=settings, training={"max_steps": 2, "per_device_train_batch_size": 4}
    )
    posterior = Posterior.from_pretrained(run_training(config))
    assert any(trains in key for key in posterior.hess)
    assert {trains in key for key in posterior.mean} == ({True} if fixed is None else {True, False})
    assert not any(fixed in key for key in posterior.hess) if fixed else True
    assert posterior.meta.steps == 2


@pytest.mark.parametrize(
    ("source", "rank", "tensors"),
    [("pass", None, 8), ("training", None, 8), ("training", 1, 24)],  # two grams of two modules in two layers
)
def test_plain_text_with_accumulation_checkpointing_and_curvature(
    make_config, write_rows, source, rank, tensors
):
    text = write_rows([{"text": f"the colour of item {n} is red ; " * 3} for n in range(12)], "text.jsonl")
    config = make_config(
        "causal_lm",
        data={"train": text, "packing": True, "max_length": 32},
        training={
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
        },
        curvature=True,
        curvature_examples=4,
        curvature_source=source,
        curvature_rank=rank,
    )
    posterior = Posterior.from_pretrained(run_training(config))
    assert posterior.curvature is not None
    assert len(posterior.curvature) == tensors
    grams = {key.partition("_gram")[0] + "_gram" for key in posterior.curvature}
    for key in grams:
        gram = read_gram(posterior.curvature, key)
        assert gram.trace().item() == pytest.approx(len(gram), rel=1e-4)


@pytest.mark.shared
def test_a_real_llama_learns_stories_in_8bit(shared_dir, tmp_path):
    config = load_config(
        TrainConfig,
        {
            "base_model": str(shared_dir / "models/stories260K"),
            "task": "causal_lm",
            "quantization": "8bit",
            "data": {
                "train": str(shared_dir / "data/tinystories_1k/ascii.jsonl.gz"),
                "max_rows": 32,
                "max_length": 64,
            },
            "training": {"num_train_epochs": 2, "per_device_train_batch_size": 8},
            "output": str(tmp_path / "out"),
        },
    )
    log = log_of(run_training(config))
    assert log["steps"] == 8
    assert log["loss"][-1]["loss"] < 2.2
