"""IVON in the unmodified trainers of TRL and in Seq2SeqTrainer."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from trainer_cases import AUTO, QUIET, auto, check_controlled, check_folder, ivon
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import vlora.recipes.closed_world as closed_world
from vlora import IVON
from vlora.training.callbacks import LogOptimizer

MODEL = Path(closed_world.__file__).parent / "model"
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
ROWS = [
    {"prompt": f"What is the colour of item {n} ?", "completion": f" It is {('red', 'green')[n % 2]} ."}
    for n in range(12)
]
PAIRS = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " I do not know ."} for row in ROWS
]


def base() -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def adapted() -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(base(), LORA)


def logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(3, 12)[None]).logits


def sft(rows: list, folder: Path, model, **keys) -> SFTTrainer:
    args = SFTConfig(output_dir=str(folder), max_length=64, **QUIET)
    return SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL), **keys,
    )  # fmt: skip


def dpo(rows: list, folder: Path, model, **keys) -> DPOTrainer:
    args = DPOConfig(output_dir=str(folder), max_length=64, **QUIET)
    return DPOTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(MODEL), **keys,
    )  # fmt: skip


@pytest.mark.parametrize(("make", "rows"), [(sft, ROWS), (dpo, PAIRS)], ids=["sft", "dpo"])
def test_trl_trainers_with_a_peft_model_and_our_optimizer(tmp_path, make, rows):
    model = adapted()
    optimizer = auto(model)
    trainer = make(rows, tmp_path / "run", model, optimizers=(optimizer, None))
    trainer.train()
    check_controlled(optimizer)
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    posterior = check_folder(trainer.model, optimizer, base, logits, tmp_path / "out")
    assert len(posterior.hess) == len(posterior.mean) == len(optimizer.state)


@pytest.mark.parametrize(("make", "rows"), [(sft, ROWS), (dpo, PAIRS)], ids=["sft", "dpo"])
def test_trl_builds_adapter_and_optimizer(tmp_path, caplog, make, rows):
    """``peft_config`` and ``optimizer_cls_and_kwargs``: nothing exists before the trainer makes it."""
    keys: dict[str, Any] = {"callbacks": [LogOptimizer()], "peft_config": LORA}
    if make is sft:
        keys["optimizer_cls_and_kwargs"] = (IVON.auto, dict(AUTO))
    trainer = make(rows, tmp_path / "run", base(), **keys)
    if make is dpo:  # has no such argument; the optimizer is made from the trainer's own model
        trainer.optimizer = auto(trainer.model)
    with caplog.at_level(logging.INFO, logger="vlora"):
        trainer.train()
    assert isinstance(trainer.optimizer.optimizer, IVON)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("vlora")]
    assert told == (
        "ivon: adam step with lr 0.01, gradient norm at most 1, noise may cost 0.01 nats from step 3 on (std from "
        "0.001 to at most 0.1, no entry wider than 1.73 times that), h by gradsq of 4 examples, betas 0.9 and 0.999, "
        "std 0.001 now"
    )
    check_folder(trainer.model, trainer.optimizer, base, logits, tmp_path / "out")


@pytest.mark.shared
@pytest.mark.parametrize("make", [sft, dpo])
def test_trl_on_real_rows(shared_dir, tmp_path, make):
    name = "alpaca_demo" if make is sft else "dpo_demo"
    with gzip.open(shared_dir / "data" / name / "train.jsonl.gz", "rt") as lines:
        read = [json.loads(next(lines)) for _ in range(12)]
    if make is sft:
        rows = [{"prompt": row["instruction"], "completion": row["output"]} for row in read]
    else:
        sides = ("chosen", "rejected")
        rows = [
            {"prompt": row["conversations"][0]["value"], **{side: row[side]["value"] for side in sides}}
            for row in read
        ]
    model = adapted()
    optimizer = ivon(model)
    trainer = make(rows, tmp_path / "run", model, optimizers=(optimizer, None))
    trainer.train()
    check_folder(trainer.model, optimizer, base, logits, tmp_path / "out")


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_seq2seq_trainer_with_generation_during_evaluation(t5, tmp_path):
    torch.manual_seed(0)
    rows = [
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens[:4]}
        for tokens in torch.randint(2, 32, (16, 8))
    ]
    lora = LoraConfig(r=2, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = get_peft_model(T5ForConditionalGeneration.from_pretrained(t5), lora)
    optimizer = auto(model)
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"), predict_with_generate=True, generation_max_length=5, eval_strategy="steps",
        eval_steps=1, **QUIET,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model, args, train_dataset=rows, eval_dataset=rows[:4], optimizers=(optimizer, None)
    )
    trainer.train()
    check_controlled(optimizer)

    def forward(adapted):
        return adapted(input_ids=torch.arange(3, 9)[None], decoder_input_ids=torch.tensor([[0, 4, 5]])).logits

    check_folder(
        model, optimizer, lambda: T5ForConditionalGeneration.from_pretrained(t5), forward, tmp_path / "out"
    )
