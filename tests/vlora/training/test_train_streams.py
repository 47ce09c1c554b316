"""Data without a length: a stream, ``max_steps``, and a posterior that is told the rows of the run."""

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import IterableDataset
from trainer_cases import QUIET, auto, check_controlled, check_folder, ivon
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from vlora import Posterior
from vlora.errors import TrainingError

TOKENS = torch.randint(3, 40, (6, 8), generator=torch.Generator().manual_seed(1))


class Stream(IterableDataset):
    """Rows without end and without ``len``; counts what was read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            row = TOKENS[self.read % len(TOKENS)]
            self.read += 1
            yield {"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)}


@pytest.mark.parametrize("made", [ivon, auto])
def test_a_stream_with_max_steps_trains_a_posterior_that_loads(tiny_llama, tmp_path, made):
    def base():
        return AutoModelForCausalLM.from_pretrained(tiny_llama).eval()

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model, stream = get_peft_model(base(), config), Stream()
    optimizer = made(model)
    args = TrainingArguments(output_dir=str(tmp_path / "run"), **QUIET)
    trainer = Trainer(model, args, train_dataset=stream, optimizers=(optimizer, None))
    trainer.train()
    assert not hasattr(stream, "__len__") and trainer.state.global_step == 3
    assert stream.read >= 3 * 4
    if made is auto:
        check_controlled(optimizer)
    unknown: list = [stream, None, 0]  # N must be said: a stream does not tell it
    for wrong in unknown:
        with pytest.raises(TrainingError, match="num_examples"):
            Posterior.from_optimizer(model, optimizer, num_examples=wrong)
    found = check_folder(model, optimizer, base, lambda m: m(input_ids=TOKENS[:2]).logits, tmp_path / "out")
    assert found.meta.num_examples == 8
