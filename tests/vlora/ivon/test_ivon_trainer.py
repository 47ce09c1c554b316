"""vlora.IVON in an unmodified transformers Trainer on a PEFT model, in an accelerate loop, and in a bare loop."""

import copy
import warnings

import ivon
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from vlora import IVON

SETTINGS = {
    "lr": 1.0,
    "ess": 1e4,
    "hess_init": 0.25,
    "beta2": 0.95,
    "weight_decay": 0.01,
    "clip_radius": 0.02,
}


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(LlamaForCausalLM(config), lora)


def rows(count=64, length=8):
    tokens = torch.randint(32, (count, length), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tokens]


def trainables(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def arguments(folder, **kwargs):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**{**settings, **kwargs})


def train(folder, callbacks=(), resume=None, **kwargs):
    """Train with ``optimizers=(IVON, None)`` and return (model, optimizer, trainer)."""
    model = tiny_model()
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **SETTINGS)
    trainer = Trainer(
        model, arguments(folder, **kwargs), train_dataset=rows(), eval_dataset=rows(16), optimizers=(optimizer, None),
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return model, optimizer, trainer


class HoldsTheMean(TrainerCallback):
    """Asserts that parameters equal the optimizer's mean wherever user code runs."""

    def __init__(self):
        self.seen = []

    def check(self, name, optimizer):
        ivon_optimizer = getattr(optimizer, "optimizer", optimizer)
        assert not ivon_optimizer.holds_sample
        assert ivon_optimizer.state
        assert all(torch.equal(p.detach(), s["mean"]) for p, s in ivon_optimizer.state.items())
        self.seen.append(name)

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        self.check("step", optimizer)

    def on_evaluate(self, args, state, control, optimizer=None, **kwargs):
        self.check("evaluate", optimizer)

    def on_save(self, args, state, control, optimizer=None, **kwargs):
        self.check("save", optimizer)


class TestTrainer:
    def test_accumulation_equals_one_batch(self, tmp_path):
        one = trainables(train(tmp_path / "a", gradient_accumulation_steps=1)[0])
        four = trainables(
            train(tmp_path / "b", gradient_accumulation_steps=4, per_device_train_batch_size=2)[0]
        )
        start = trainables(tiny_model())
        for name in one:
            torch.testing.assert_close(four[name], one[name], rtol=1e-4, atol=1e-6)
        assert max((one[n] - start[n]).abs().max() for n in one) > 0.01

    def test_clipping_has_an_effect(self, tmp_path):
        free = trainables(train(tmp_path / "a", max_grad_norm=1e9)[0])
        clipped = trainables(train(tmp_path / "b", max_grad_norm=1e-4)[0])
        assert max((free[n] - clipped[n]).abs().max() for n in free) > 1e-3

    def test_evaluation_callbacks_and_checkpoints_see_the_mean(self, tmp_path):
        watcher = HoldsTheMean()
        model, _, trainer = train(
            tmp_path,
            callbacks=[watcher],
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=3,
        )
        assert watcher.seen.count("step") == 6
        assert watcher.seen.count("evaluate") == 3 and watcher.seen.count("save") == 2
        with torch.no_grad():
            batch = {k: torch.stack([r[k] for r in rows(16)]) for k in rows(1)[0]}
            by_hand = model.eval()(**batch).loss.item()
        logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert logged[-1] == pytest.approx(by_hand, rel=1e-5)
        assert trainer.evaluate()["eval_loss"] == logged[-1]

    def test_resumed_run_is_bit_equal(self, tmp_path):
        model, optimizer, _ = train(tmp_path / "whole", save_strategy="steps", save_steps=3)
        resumed, other, _ = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
        whole, again = trainables(model), trainables(resumed)
        assert all(torch.equal(whole[n], again[n]) for n in whole)
        for p, q in zip(optimizer.state, other.state, strict=True):
            assert all(torch.equal(optimizer.state[p][k], other.state[q][k]) for k in optimizer.state[p])

    def test_bf16_on_cpu_learns_what_float32_learns(self, tmp_path):
        """Autocast around the forward pass: state stays float32 and updates are close. (fp16 does nothing on a CPU.)"""
        full = trainables(train(tmp_path / "full")[0])
        model, optimizer, _ = train(tmp_path / "mixed", bf16=True)
        mixed, start = trainables(model), trainables(tiny_model())
        assert {v.dtype for s in optimizer.state.values() for k, v in s.items() if k != "step"} == {
            torch.float32
        }
        assert all(int(s["step"]) == 6 for s in optimizer.state.values())
        moved = torch.cat([(full[n] - start[n]).flatten() for n in full])
        apart = torch.cat([(mixed[n] - full[n]).flatten() for n in full])
        assert 0 < apart.norm() < 0.1 * moved.norm()

    def test_row_4_and_5_trainer_builds_the_groups(self, tmp_path):
        """ivon-opt crashes in Trainer with PEFT (empty group) and takes Trainer's weight_decay for its prior."""

        def run(cls, **kwargs):
            settings = {k: v for k, v in SETTINGS.items() if k != "weight_decay"}
            trainer = Trainer(
                tiny_model(), arguments(tmp_path), train_dataset=rows(),
                optimizer_cls_and_kwargs=(cls, {**settings, **kwargs}),
            )  # fmt: skip
            trainer.create_optimizer()
            return trainer

        groups = run(ivon.IVON, weight_decay=0.01).optimizer.param_groups
        assert [len(g["params"]) for g in groups] == [4, 0] and groups[0]["weight_decay"] == 0.0
        with pytest.warns(UserWarning, match="weight_decay=0.01 has no effect"):
            run(IVON, weight_decay=0.01)
        trainer = run(IVON, prior_precision=100.0)
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.01, 0.01]
        assert all(int(s["step"]) == 6 for s in optimizer.state.values())
        same_by_hand = trainables(train(tmp_path / "b")[0])
        assert all(torch.equal(same_by_hand[n], v) for n, v in trainables(trainer.model).items())


class TestAccelerate:
    def loop(self, steps=3, micro=2):
        model = tiny_model()
        accelerator = Accelerator(gradient_accumulation_steps=micro, cpu=True)
        optimizer = IVON([p for p in model.parameters() if p.requires_grad], **SETTINGS)
        loader = torch.utils.data.DataLoader(rows(steps * 8), batch_size=8 // micro)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for batch in loader:
            with accelerator.accumulate(model):
                optimizer.train()
                accelerator.backward(model(**batch).loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        return accelerator, model, optimizer

    def test_row_3_prepared_optimizer_needs_no_method_of_its_own(self):
        """ivon-opt's ``sampled_params`` is hidden by ``Accelerator.prepare``; train() and eval() are forwarded."""
        accelerator, model, optimizer = self.loop()
        assert not hasattr(optimizer, "sampled_params")
        assert all(int(s["step"]) == 3 for s in optimizer.state.values())
        _, whole, _ = self.loop(micro=1)
        for a, b in zip(trainables(model).values(), trainables(whole).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        mean = trainables(model)
        optimizer.train()
        assert any(not torch.equal(mean[n], v) for n, v in trainables(model).items())
        optimizer.eval()
        assert all(torch.equal(mean[n], v) for n, v in trainables(model).items())

    def test_save_and_load_state(self, tmp_path):
        accelerator, model, optimizer = self.loop()
        accelerator.save_state(str(tmp_path))
        kept = copy.deepcopy(optimizer.state_dict())
        mean = trainables(model)
        optimizer.train()
        model(**{k: v[None] for k, v in rows(1)[0].items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        accelerator.load_state(str(tmp_path))
        assert all(torch.equal(mean[n], v) for n, v in trainables(model).items())
        again = optimizer.state_dict()
        assert again["param_groups"] == kept["param_groups"]
        for number, state in kept["state"].items():
            assert all(torch.equal(state[k], again["state"][number][k]) for k in state)


def test_bare_loop_agrees_with_trainer(tmp_path):
    """Same data order, schedule and clipping by hand: Trainer adds nothing of its own."""
    order = []

    class Recorder(Trainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            order.append({k: v.clone() for k, v in inputs.items()})
            return super().training_step(model, inputs, num_items_in_batch)

    model = tiny_model()
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **SETTINGS)
    Recorder(model, arguments(tmp_path), train_dataset=rows(), optimizers=(optimizer, None)).train()

    bare = tiny_model().train()
    bare_optimizer = IVON([p for p in bare.parameters() if p.requires_grad], **SETTINGS)
    schedule = torch.optim.lr_scheduler.LambdaLR(bare_optimizer, lambda step: 1 - step / 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in order:
            bare_optimizer.zero_grad()
            bare_optimizer.train()
            bare(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in bare.parameters() if p.requires_grad], 1.0)
            bare_optimizer.step()
            schedule.step()
    for a, b in zip(trainables(model).values(), trainables(bare).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
