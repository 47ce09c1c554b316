"""Health of a posterior from an unmodified Trainer or a callback: stored, shown, the same numbers."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trainer_cases import QUIET, auto, ivon
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from vlora import Posterior
from vlora.errors import ConfigError, DataError, PosteriorFormatError
from vlora.fisher import squared_gradients, with_health
from vlora.posterior.health import compare_with_reference
from vlora.posterior.keys import adapter_tensors

TOKENS = torch.randint(3, 40, (12, 8), generator=torch.Generator().manual_seed(1))
ROWS = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in TOKENS]


def adapted(folder, r=2):
    torch.manual_seed(0)
    config = LoraConfig(r=r, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def train(folder, out, make=auto, callbacks=(), **arguments):
    """An unmodified Trainer over ROWS[:8]; the other rows are held out."""
    model = adapted(folder)
    optimizer = make(model)
    trainer = Trainer(
        model, TrainingArguments(output_dir=str(out), **{**QUIET, **arguments}), train_dataset=ROWS[:8],
        eval_dataset=ROWS[8:], optimizers=(optimizer, None), callbacks=list(callbacks),
    )  # fmt: skip
    trainer.train()
    return model, optimizer, trainer


def test_a_trainer_run_has_the_health_of_vlora_train(tiny_llama, tmp_path):
    model, optimizer, trainer = train(tiny_llama, tmp_path / "run")
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=8, loss_reduction="token_mean")
    assert {"effective_memory", "share_negative"} <= posterior.meta.health.keys()  # without being asked
    optimizer.train()  # a draw in the model must not count
    held = [p.detach().clone() for p in model.parameters()]
    batches = trainer.get_eval_dataloader()
    healthy = with_health(posterior, model, batches, held_out=True)
    assert model.training and all(torch.equal(p, h) for p, h in zip(model.parameters(), held, strict=True))
    optimizer.eval()
    tensors = adapter_tensors(model, posterior.hess)
    found = squared_gradients(model, batches, parameters=tensors, reduction="token_mean", progress=False)
    want = compare_with_reference(posterior.hess, found.values)
    assert {key: healthy.meta.health[key] for key in want} == want and 0 < want["rank_correlation"] <= 1
    assert (
        healthy.meta.health["reference_examples"] == 4 and healthy.meta.health["reference_held_out"] is True
    )
    healthy.save_pretrained(tmp_path / "out")
    back = Posterior.from_pretrained(tmp_path / "out").summary()
    assert back["rank_correlation"] == want["rank_correlation"]
    assert f"(rank correlation {want['rank_correlation']:.2f})" in back["verdict"]
    assert "squared gradients of 4 held-out examples" in (tmp_path / "out" / "README.md").read_text()


class SaveAtTheEnd(TrainerCallback):
    """What people write: a folder from inside the run."""

    def __init__(self, out):
        self.out = out

    def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        Posterior.from_optimizer(model, optimizer, num_examples=8).save_pretrained(self.out)


def test_a_posterior_saved_by_a_callback_says_that_it_is_its_prior(tiny_llama, tmp_path):
    out = tmp_path / "out"

    def published(model):
        return ivon(model, beta2=0.99999, ess=1e7, lr=0.03, rescale_lr=False)

    train(tiny_llama, tmp_path / "run", published, [SaveAtTheEnd(out)])
    summary = Posterior.from_pretrained(out).summary()
    assert summary["effective_memory"] == pytest.approx(1 - 0.99999**3) and summary["share_moved"] < 0.1
    assert "this posterior is still its prior" in (out / "README.md").read_text()
    assert {"noise_to_weight", "share_below_spacing", "share_below_spacing_bfloat16"} <= summary.keys()


def test_what_with_health_refuses(tiny_llama, tmp_path):
    model, optimizer, trainer = train(tiny_llama, tmp_path / "run", max_steps=1)
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=8)
    batches = trainer.get_eval_dataloader()
    with pytest.raises(PosteriorFormatError, match="rank"):
        with_health(posterior, adapted(tiny_llama, r=4), batches, held_out=True)
    with pytest.raises(DataError, match="got none"):
        with_health(posterior, model, [], held_out=True)
    plain = Posterior(posterior.mean, {}, posterior.meta, posterior.adapter_config)
    with pytest.raises(ConfigError, match="plain PEFT adapter without one; train it with IVON"):
        with_health(plain, model, batches, held_out=True)
    next(model.parameters()).device_mesh = None  # the mark of a DTensor
    with pytest.raises(
        ConfigError, match=r"got DTensors \(FSDP2\): save the posterior, load it on one process"
    ):
        with_health(posterior, model, batches, held_out=True)
