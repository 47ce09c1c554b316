"""IVON where other code owns the loop or the model: closures, compiled models, checkpointing, groups of LoRA+."""

import logging
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from trainer_cases import AUTO, QUIET, SETTINGS, auto, check_controlled, check_folder, ivon, trainable
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerState, TrainingArguments

from vlora import IVON, Posterior
from vlora.training.callbacks import LogOptimizer

TARGETS = ["q_proj", "v_proj"]
TOKENS = torch.randint(3, 40, (6, 8), generator=torch.Generator().manual_seed(1))
ROWS = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in TOKENS]


def base(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted(folder: Path, config=None) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(
        base(folder), config or LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
    )


def logits(model) -> torch.Tensor:
    return model(input_ids=TOKENS[:2]).logits


def loop(model, optimizer: IVON, steps: int = 3, micro: int = 1) -> None:
    model.train()
    for step in range(steps):
        optimizer.train()
        for rows in TOKENS[step : step + 4].chunk(micro):
            (model(input_ids=rows, labels=rows).loss / micro).backward()
        optimizer.step()
        optimizer.zero_grad()


def means(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainable(model)]


@pytest.mark.parametrize(("made", "mc_samples"), [(ivon, 1), (ivon, 2), (auto, 1)])
def test_a_closure_loop_like_lightnings(tiny_llama, tmp_path, made, mc_samples):
    """Lightning's automatic optimization hands ``step`` a closure: zero_grad, training_step, backward, loss back."""
    model = adapted(tiny_llama)
    optimizer = made(model, mc_samples=mc_samples)
    model.train()
    for rows in TOKENS.chunk(3):

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
            return loss

        loss = optimizer.step(closure=closure)
        assert loss.ndim == 0 and loss.isfinite() and not loss.requires_grad
    if made is auto:
        check_controlled(optimizer)
    check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")


needs_compiler = pytest.mark.skipif(
    not any(which(name) for name in ("g++", "clang++")), reason="inductor writes C++: no compiler here"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", [ivon, auto])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_compiled_model_sees_every_draw_and_saves_like_any_other(tiny_llama, tmp_path, backend, made):
    """Backend ``eager`` captures the graph and guards it; ``inductor`` also generates its code."""
    shallow = tmp_path / "base"
    config = AutoConfig.from_pretrained(tiny_llama, num_hidden_layers=1)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(shallow)
    model, plain = adapted(shallow), adapted(shallow)
    optimizer, reference = made(model), made(plain)
    compiled = torch.compile(model, backend=backend, dynamic=False)
    loop(compiled, optimizer)
    loop(plain, reference)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(means(model), means(plain), strict=True))
    posterior = Posterior.from_optimizer(compiled, optimizer, num_examples=8)
    compiled.train()  # the graph that is there already; the model has no dropout
    rows = TOKENS[:4]
    with torch.no_grad():
        at_mean = model(input_ids=rows, labels=rows).loss
    with posterior.sampled(compiled, 1):
        drawn = compiled(input_ids=rows, labels=rows).loss.detach()
        assert torch.allclose(drawn, model(input_ids=rows, labels=rows).loss, atol=1e-5)
    assert (drawn - at_mean).abs() > 1e-4
    torch.compiler.reset()
    check_folder(model, optimizer, lambda: base(shallow), logits, tmp_path / "out")


@pytest.mark.parametrize("made", [ivon, auto])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_recomputes_at_the_same_draw(tiny_llama, tmp_path, reentrant, made):
    model, plain = adapted(tiny_llama), adapted(tiny_llama)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    optimizer, reference = made(model), made(plain)
    loop(model, optimizer, micro=2)
    loop(plain, reference, micro=2)
    assert all(torch.equal(a, b) for a, b in zip(means(model), means(plain), strict=True))
    check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")


def test_trainer_builds_the_optimizer_with_settings_of_the_run(tiny_llama, tmp_path):
    """``IVON.auto`` is no class: Trainer calls it as a factory, with the model."""
    model = adapted(tiny_llama)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), **QUIET)
    trainer = Trainer(model, args, train_dataset=ROWS, optimizer_cls_and_kwargs=(IVON.auto, dict(AUTO)))
    trainer.train()
    check_controlled(trainer.optimizer)
    assert trainer.optimizer.param_groups[0]["params"] == trainable(model)
    check_folder(model, trainer.optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")


def test_trainer_builds_the_optimizer_from_its_class(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), **QUIET)
    trainer = Trainer(model, args, train_dataset=ROWS, optimizer_cls_and_kwargs=(IVON, dict(SETTINGS)))
    trainer.train()
    optimizer = trainer.optimizer
    assert isinstance(optimizer.optimizer, IVON)
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {0.01}
    check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")


def test_loraplus_groups_move_b_further_and_export_one_posterior(tiny_llama, tmp_path):
    """Every step is at the trust region here, so that a B moves by its learning rate over A's as far as A."""
    model = adapted(tiny_llama)
    settings = {name: value for name, value in SETTINGS.items() if name not in ("lr", "weight_decay")}
    optimizer = create_loraplus_optimizer(
        model,
        IVON,
        lr=0.5,
        loraplus_lr_ratio=8.0,
        loraplus_weight_decay=0.01,
        **{**settings, "clip_radius": 1e-3},
    )
    assert [group["lr"] for group in optimizer.param_groups if group["params"]] == [0.5, 4.0]
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    loop(model, optimizer)
    moved = {
        name: (p.detach() - start[name]).abs().max() for name, p in model.named_parameters() if name in start
    }
    for name in moved:
        if "lora_A" in name:
            other = moved[name.replace("lora_A", "lora_B")]
            assert other / moved[name] == pytest.approx(8.0, rel=0.3)
    posterior = check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")
    assert posterior.meta.weight_decay == 0.01
    assert len(posterior.hess) == len(posterior.mean)


def test_loraplus_groups_share_one_cost_of_noise(tiny_llama, tmp_path):
    """``IVON.auto`` through PEFT's own factory; a step of Adam moves B by its own learning rate."""
    model = adapted(tiny_llama)
    made: Any = IVON.auto
    optimizer = create_loraplus_optimizer(
        model, made, lr=1e-3, loraplus_lr_ratio=8.0, num_steps=3, grad_batch_size=4
    )
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    loop(model, optimizer)
    costs = {group["cost_average"] for group in optimizer.param_groups if group["params"]}
    assert len(costs) == 1 and costs != {0.0}
    moved = {
        name: (p.detach() - start[name]).abs().max() for name, p in model.named_parameters() if name in start
    }
    for name in moved:
        if "lora_B" in name:
            assert 8e-3 <= moved[name] <= 1.2 * 3 * 8e-3
            assert 1e-3 <= moved[name.replace("lora_B", "lora_A")] <= 1.2 * 3 * 1e-3
    posterior = check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")
    assert len(posterior.hess) == len(posterior.mean)


VARIANTS = {
    "dora": LoraConfig(r=2, target_modules=TARGETS, use_dora=True),
    "rslora": LoraConfig(r=2, target_modules=TARGETS, use_rslora=True),
    "modules_to_save": LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["lm_head"]),
    "trainable_tokens": LoraConfig(
        r=2, target_modules=TARGETS, trainable_token_indices={"embed_tokens": [3, 4]}
    ),
    "ia3": IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "vera": VeraConfig(r=4, target_modules=TARGETS),
}


@pytest.mark.parametrize(("name", "how"), [*((name, "auto") for name in VARIANTS), ("rslora", "price")])
def test_variants_in_an_unmodified_trainer(tiny_llama, tmp_path, name, how):
    """Under the settings of ``vlora train``; by reparameterisation the other types are in test_posterior_peft_types."""
    model = adapted(tiny_llama, VARIANTS[name])
    optimizer = auto(model, grad_batch_size=8) if how == "auto" else ivon(model)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), gradient_accumulation_steps=2, **QUIET)
    Trainer(model, args, train_dataset=ROWS, optimizers=(optimizer, None)).train()
    if how == "auto":
        check_controlled(optimizer)
    posterior = check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")
    assert len(posterior.hess) == len(trainable(model))


@pytest.mark.parametrize("controlled", [False, True])
def test_two_adapters_in_one_training_are_two_posteriors(tiny_llama, tmp_path, controlled):
    """Switching the active adapter between steps: each one's tensors have their own steps, mean and h."""
    model = adapted(tiny_llama)
    model.add_adapter("other", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    both = [p for name, p in model.named_parameters() if "lora_" in name]
    optimizer = IVON.auto(both, **{**AUTO, "num_steps": 8}) if controlled else IVON(both, **SETTINGS)
    for name, steps in (("default", 3), ("other", 4), ("default", 1)):
        model.set_adapter(name)
        loop(model, optimizer, steps)
    first = check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "a")
    model.set_adapter("other")
    second = check_folder(
        model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "b", adapter_name="other"
    )
    assert (first.meta.steps, second.meta.steps) == (4, 4)
    assert {key for key in second.hess if "v_proj" in key} == set()
    assert Posterior.from_pretrained(tmp_path / "b").adapter_config["r"] == 4


def test_other_optimizers_have_nothing_to_log(caplog):
    state, optimizer = (
        TrainerState(is_world_process_zero=True),
        torch.optim.SGD(torch.nn.Linear(1, 1).parameters()),
    )
    other: Any = None
    with caplog.at_level(logging.INFO, logger="vlora"):
        LogOptimizer().on_train_begin(other, state, other, optimizer=optimizer)
        LogOptimizer().on_train_begin(
            other,
            TrainerState(is_world_process_zero=False),
            other,
            optimizer=IVON([torch.nn.Parameter(torch.zeros(1))], lr=1.0, ess=1.0),
        )
    assert caplog.messages == []


def test_the_adapter_that_is_not_active_keeps_its_weights(tiny_llama, tmp_path):
    model = adapted(tiny_llama)
    model.add_adapter("frozen", LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".frozen." in name}
    model.set_adapter("default")
    optimizer = ivon(model)
    loop(model, optimizer)
    posterior = check_folder(model, optimizer, lambda: base(tiny_llama), logits, tmp_path / "out")
    with posterior.sampled(model, 3):
        held = dict(model.named_parameters())
        assert all(torch.equal(held[name], value) for name, value in before.items())
