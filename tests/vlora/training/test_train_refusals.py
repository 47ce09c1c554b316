import json
import os
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlora.errors import ConfigError, DataError, OutputError, OutputExistsError, TrainingError
from vlora.training.adapters import peft_config
from vlora.training.arguments import planned_steps, training_arguments
from vlora.training.train import run_training


def refused(config, error, message):
    """The run is refused in one line and leaves nothing behind."""
    output = Path(config.output)
    with pytest.raises(error, match=message) as caught:
        run_training(config)
    assert "\n" not in str(caught.value)
    assert not output.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learn_rate=1", "in optimizer: unknown key 'learn_rate'; .*keys here: name, lr"),
        ("data.trian=x", "in data: unknown key 'trian'; did you mean 'train'"),
        ("seed=-1", r"seed must be from 0 to 2\*\*32 - 1, got -1"),
        ("data.seed=-1", r"data\.seed must be from 0"),
        ("data=3", "data: expected a section with keys of .*train.*; got 3"),
        ("optimizer.name=sgd", r"optimizer\.name: Input should be 'ivon' or 'adamw'"),
        ("optimizer.lr=-1", r"optimizer\.lr must be > 0, got -1"),
        ("optimizer.beta2=1", r"optimizer\.beta2 must be in \[0, 1\), got 1"),
        ("quantization=3bit", "quantization: Input should be 'none', '8bit' or '4bit'"),
        ("task=translation", "task: Input should be"),
    ],
)
def test_configuration_mistakes_are_named(override, message, make_config):
    with pytest.raises(ConfigError, match=message):
        make_config("causal_lm", override)


def test_contradicting_widths_are_refused(make_config):
    with pytest.raises(ConfigError, match="give init_std or hess_init, not both"):
        make_config(
            "causal_lm", "optimizer.hess_approx=price", "optimizer.init_std=0.1", "optimizer.hess_init=1"
        )


@pytest.mark.parametrize("fixed", ["ess=1e5", "weight_decay=0.1"])
def test_a_controlled_and_a_fixed_width_exclude_each_other(make_config, fixed):
    with pytest.raises(ConfigError, match="noise_cost sets ess and weight_decay during the run"):
        make_config("causal_lm", "optimizer.noise_cost=0.1", f"optimizer.{fixed}")


def test_the_reparameterisation_estimate_has_no_control(make_config):
    with pytest.raises(ConfigError, match="noise_cost needs hess_approx gradsq"):
        make_config("causal_lm", "optimizer.hess_approx=price", "optimizer.noise_cost=0.1")


def test_a_learned_prior_needs_a_fixed_width(make_config):
    with pytest.raises(ConfigError, match="empirical_bayes needs a fixed ess; give optimizer.ess"):
        make_config("causal_lm", "optimizer.prior=empirical_bayes")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"num_epochs": 3}, "in training: unknown key 'num_epochs'; did you mean 'num_train_epochs'"),
        ({"learning_rate": 1}, r"training\.learning_rate has its place elsewhere: use optimizer\.lr"),
        ({"output_dir": "x"}, "use output$"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be a number above 0, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be a number above 0, got 0"),
        ({"num_train_epochs": "many"}, "num_train_epochs must be a number above 0, got 'many'"),
        ({"max_steps": 0}, "max_steps must be a whole number of 1 or more, or -1 for none, got 0"),
        ({"lr_scheduler_type": "zigzag"}, "training: '?zigzag'? is not a valid SchedulerType"),
        ({"eval_strategy": "epoch"}, r"eval_strategy needs data\.validation"),
    ],
)
def test_training_arguments_are_checked(training, message, make_config):
    refused(make_config(training=training), ConfigError, message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "lara"}, "peft.type: unknown key 'lara'; did you mean 'lora'"),
        ({"rank": 4}, "in peft: unknown key 'rank'"),
        ({"lora_alhpa": 4}, "did you mean 'lora_alpha'"),
        ({"task_type": "SEQ_CLS"}, r"peft\.task_type is set by vlora"),
        ({"target_modules": ["nothing"]}, "peft: .*nothing"),
        ({"r": 0}, "peft: .*r"),
        ({"r": "four"}, "peft: a value is of the wrong type: .*'str' and 'int'"),
        ({"type": "poly"}, "peft.type poly wants the task of every row .task_ids."),
        (
            {"type": "p_tuning", "num_virtual_tokens": 3},
            "optimizer ivon: no posterior over .* use prompt_tuning; or take",
        ),
    ],
)
def test_adapter_settings_are_checked(settings, message, make_config):
    refused(make_config(peft=settings), ConfigError, message)


def test_every_peft_type_has_its_class():
    assert isinstance(peft_config({"type": "IA3"}, task="causal_lm", model_type="llama"), peft.IA3Config)
    config = peft_config({}, task="sequence_classification", model_type="brand_new")
    assert (config.target_modules, config.task_type) == ("all-linear", "SEQ_CLS")
    assert peft_config({}, task="causal_lm", model_type="llama").target_modules is None  # PEFT's own choice


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (
            "causal_lm",
            {"prompt": "{query}"},
            "train row 0: no column 'query'; the columns are question, answer",
        ),
        (
            "sequence_classification",
            {"label": "stars"},
            "no label column 'stars'; the columns are text, label",
        ),
        ("sequence_classification", {"text": "label"}, "column 'label' must be a string"),
        ("sequence_classification", {"labels": ["only", "one more"], "label": "wrong"}, "no column 'wrong'"),
        ("causal_lm", {"train": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_data_mistakes_are_named(task, data, message, make_config):
    base = vars(make_config(task).data)
    refused(make_config(task, data={**base, **data}), DataError, message)


def test_a_label_unknown_to_training_is_refused_in_validation(make_config, write_rows):
    path = write_rows([{"text": "good film", "label": 2}], "other.jsonl")
    config = make_config("sequence_classification")
    config = make_config("sequence_classification", data={**vars(config.data), "validation": path})
    refused(config, DataError, r"validation row 0: 'label' is 2, outside the 2 classes")


def test_an_empty_data_set_is_refused(make_config, write_rows):
    refused(make_config("causal_lm", data={"train": write_rows([], "none.jsonl")}), DataError, "has no rows")


@pytest.mark.parametrize("name", ["ivon", "adamw"])
def test_nan_in_the_base_weights_ends_the_run(name, make_config, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = make_config(base_model=str(folder), optimizer={"name": name})
    refused(config, TrainingError, "(?i)(nan|not finite|non-finite)")


def test_a_diverging_run_writes_nothing(make_config):
    config = make_config(
        optimizer={"name": "adamw", "lr": 1.0, "weight_decay": 1e38},
        training={"max_steps": 6, "max_grad_norm": 0},
    )
    refused(
        config, TrainingError, r"loss is (nan|inf) at step \d+, expected a finite number; lower optimizer\.lr"
    )


def test_a_folder_of_something_else_is_left_alone(make_config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"holds something else \(thesis\.txt\)"):
        run_training(make_config(overwrite=True))
    (tmp_path / "out" / "thesis.txt").unlink()
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not a work folder of vlora"):
        run_training(make_config(overwrite=True))
    assert (work / "notes.txt").read_text() == "mine"


def test_curvature_is_refused_early_where_it_cannot_be(make_config):
    refused(make_config(curvature=True, peft={"type": "ia3"}), ConfigError, "curvature needs peft.type lora")


@pytest.mark.parametrize(
    ("training", "rows", "steps"),
    [
        ({"num_train_epochs": 3}, 33, 9),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 33, 4),
        ({"num_train_epochs": 1.5, "per_device_train_batch_size": 4}, 10, 5),
        ({"num_train_epochs": 2, "dataloader_drop_last": True}, 33, 4),
        ({"max_steps": 7}, 1000, 7),
    ],
)
def test_steps_are_planned_as_trainer_counts_them(training, rows, steps, make_config, tmp_path):
    args = training_arguments(make_config(training=training), tmp_path / "work")
    assert planned_steps(args, rows) == steps
    from torch.utils.data import TensorDataset
    from transformers import Trainer

    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=TensorDataset(torch.zeros(rows, 1)))
    assert trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1] == steps


def test_yaml_no_is_a_strategy(make_config, tmp_path):
    args = training_arguments(make_config("causal_lm", "training.save_strategy=no"), tmp_path / "work")
    assert args.save_strategy == "no"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(make_config, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    refused(
        make_config(output=str(tmp_path / "file" / "out")), OutputError, "file is not a folder you may write"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(make_config(), OutputError, "is not a folder you may write to; choose another place")


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(make_config, monkeypatch):
    from transformers import Trainer

    config = make_config(training={"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 8})
    save = Trainer._save_checkpoint

    def full(self, model, trial):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(self, model, trial)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_checkpoint", full)
        refused(
            config, OutputError, r"cannot write checkpoints to .*No space left on device; the last complete"
        )
    log = json.loads((run_training(config) / "train_log.json").read_text())
    assert log["resumed_from_step"] == 2
