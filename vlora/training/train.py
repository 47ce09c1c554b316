"""One training run, from a configuration to a posterior folder: an unmodified ``transformers.Trainer`` with IVON.

IVON speaks the ``train()``/``eval()`` protocol that Trainer calls by itself: parameters hold a posterior draw
during a step and the mean between steps, so evaluation and checkpoints see the mean without any hook.
"""

import json
import logging
import shutil
import time
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from safetensors import SafetensorError

from vlora.config import config_sha256, to_plain
from vlora.curvature import CurvatureStream, adapted_layers, collect_curvature, gathering
from vlora.data.pieces import shuffled_batches
from vlora.errors import ConfigError, OutputError
from vlora.files import check_output_folder, output_path, strict_json
from vlora.grams import compress_grams
from vlora.posterior import Posterior, PosteriorMeta
from vlora.posterior.export import describe_base, gauge_id, saved_by_peft
from vlora.training.arguments import planned_steps, training_arguments
from vlora.training.config import TrainConfig
from vlora.training.directions import check_directions, with_directions
from vlora.training.log import train_log
from vlora.training.optimizers import build_optimizer
from vlora.training.prepare import Prepared, prepare
from vlora.training.processes import on_first_process, refuse_unsupported
from vlora.training.reference import with_reference_health
from vlora.training.work import drop_unused, open_work, require_writable, run_sha256, work_folder

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

    from vlora.training.callbacks import ProgressBar

__all__ = ["CONFIG_FILE", "LOG_FILE", "run_training"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "vlora_config.yaml"
LOG_FILE = "train_log.json"
TRACKED = "runs"
"""Folder in which Trainer's TensorBoard callback writes."""


def run_training(config: TrainConfig) -> Path:
    """Train an adapter and write its posterior folder (IVON) or plain PEFT folder (AdamW).

    The folder also gets the resolved configuration and the log of the run. A killed run goes on from its last
    checkpoint when called again with the same configuration; a finished one is not repeated.

    Args:
        config: The run.

    Returns:
        The output folder.

    Raises:
        ConfigError: A setting is not usable.
        DataError: The data are not usable.
        OutputExistsError: The output, or its work folder, holds something else.
        TrainingError: The loss or the weights are no longer finite; nothing is written.
    """
    output = output_path(config.output)
    work = work_folder(output)
    args = training_arguments(config, work)  # joins the other processes of the run, if there are any
    refuse_unsupported(args)
    if on_first_process(lambda: _is_done(config, output)):
        logger.info("%s already holds the result of this configuration; overwrite=true trains again", output)
        return output
    if config.curvature and str(config.peft.get("type", "lora")).lower() != "lora":
        raise ConfigError(f"curvature needs peft.type lora, got {config.peft['type']!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # among the libraries below, nothing for a user to do
        try:
            _train_into(output, work, config, args)
        finally:
            if args.process_index == 0:
                drop_unused(work)
    return output


def _train_into(output: Path, work: Path, config: TrainConfig, args: "TrainingArguments") -> None:
    """Train, and write the result."""
    started = time.perf_counter()
    run = prepare(config)
    if config.curvature:
        adapted_layers(run.model)  # refuses what the pass after training could not take
    check_directions(run)
    checkpoint = on_first_process(lambda: open_work(config, work, data_sha256=run.train.sha256()))
    gauge = gauge_id(run.model)
    optimizer, settings = build_optimizer(
        config.optimizer,
        run.model,
        num_examples=len(run.train),
        num_steps=planned_steps(args, len(run.train)),
        grad_batch_size=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        seed=config.seed,
        max_grad_norm=config.training.get("max_grad_norm"),
    )
    with _streamed(run) as stream:
        trainer = _fit(run, args, optimizer, checkpoint, stream)
    streamed = stream.result() if stream is not None else None  # on every process: their sums are added
    posterior = _posterior(run, trainer, optimizer, gauge)  # on every process: shards are gathered
    if not trainer.is_world_process_zero():
        return
    if posterior.has_hess and not (
        trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    ):  # one process cannot
        size = args.per_device_train_batch_size
        seen = trainer.state.global_step * size * args.gradient_accumulation_steps * args.world_size
        posterior = with_reference_health(posterior, run, batch_size=size, rows_seen=seen)
    if config.curvature:
        posterior = replace(posterior, curvature=streamed or _curvature(run, args))
    posterior = with_directions(posterior, run, _loader(run, args))
    log = train_log(run, trainer, settings, started=started, resumed_from=checkpoint)
    posterior.save_pretrained(
        output,
        overwrite=config.overwrite,
        extra_files={
            CONFIG_FILE: yaml.safe_dump(to_plain(run.config), sort_keys=False, allow_unicode=True),
            LOG_FILE: strict_json({**log, "run_sha256": run_sha256(config)}),
        },
    )
    if (work / TRACKED).is_dir():
        shutil.move(work / TRACKED, output / TRACKED)
    shutil.rmtree(work, ignore_errors=True)
    logger.info("wrote %s: %d steps in %.1f s", output, trainer.state.global_step, log["seconds"])


def _fit(
    run: Prepared,
    args: "TrainingArguments",
    optimizer: "torch.optim.Optimizer",
    checkpoint: Path | None,
    stream: CurvatureStream | None,
) -> "Trainer":
    """Run Trainer to its end, from a checkpoint if there is one."""
    from vlora.training.callbacks import ProgressBar

    bar = ProgressBar()
    trainer = _trainer(run, args, optimizer, bar)
    if stream is not None:
        stream.scaler = trainer.accelerator.scaler
    if checkpoint is not None:
        logger.info("resuming from %s, left by a run of the same configuration", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except KeyboardInterrupt:
        logger.warning(
            "interrupted; the same command goes on from the last checkpoint in %s", args.output_dir
        )
        raise
    except (
        OSError,
        SafetensorError,
    ) as error:  # the disk, at a checkpoint; vlora's own errors are none of these
        raise OutputError(
            f"cannot write checkpoints to {args.output_dir}: {' '.join(str(error).split())}; the last complete one "
            "stays, and the same command goes on from it"
        ) from error
    finally:
        bar.close()
    return trainer


def _trainer(
    run: Prepared, args: "TrainingArguments", optimizer: "torch.optim.Optimizer", bar: "ProgressBar"
) -> "Trainer":
    """The unmodified Trainer, with our callbacks."""
    from transformers import PrinterCallback, Trainer

    from vlora.training.callbacks import FiniteLoss, LogOptimizer, NoFinalCheckpoint

    try:
        trainer = Trainer(
            model=run.model,
            args=args,
            data_collator=run.collate,
            train_dataset=run.train,  # pyright: ignore[reportArgumentType]
            eval_dataset=run.validation,  # pyright: ignore[reportArgumentType]
            optimizers=(optimizer, None),
            callbacks=[LogOptimizer(), FiniteLoss(), NoFinalCheckpoint(), bar],
        )
    except (ImportError, RuntimeError, ValueError) as error:  # such as a tracker that is not installed
        raise ConfigError(f"training: {' '.join(str(error).split())[:300]}") from error
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, where results go
    return trainer


def _posterior(run: Prepared, trainer: "Trainer", optimizer: Any, gauge: str) -> Posterior:
    """What training learnt: mean and h of IVON, or the point of AdamW."""
    config = run.config
    causal = config.task != "sequence_classification"
    facts: dict[str, Any] = {
        "num_examples": len(run.train),
        "gauge": gauge,
        "seed": config.seed,
        "loss_reduction": "token_mean" if causal else "mean",
        "tokens_per_example": run.train.num_target_tokens / len(run.train) if causal else None,
        "config_sha256": config_sha256(config),
        "labels": config.data.labels if config.task == "sequence_classification" else None,
        "ancestor": {} if run.start is None else run.start.record(),
    }
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.optimizer.name == "ivon":
        return Posterior.from_optimizer(model, optimizer, **facts)
    mean, adapter_config = saved_by_peft(model)
    facts |= {"base_model": describe_base(model), "steps": trainer.state.global_step}
    return Posterior(mean, {}, PosteriorMeta(ess=0.0, **facts), adapter_config)


def _streamed(run: Prepared) -> AbstractContextManager[CurvatureStream | None]:
    """Gathering of Kronecker factors while training, if the configuration asks for it."""
    config = run.config
    if not (config.curvature and config.curvature_source == "training"):
        return nullcontext()
    return gathering(
        run.model,
        rank=config.curvature_rank,
        seed=config.seed,
        joined=config.curvature_joined,
        votes=config.curvature_votes,
    )


def _curvature(run: Prepared, args: "TrainingArguments") -> dict[str, "torch.Tensor"]:
    """Kronecker factors at the mean, on training rows in a seeded order."""
    config = run.config
    found = collect_curvature(
        run.model,
        _loader(run, args),
        max_examples=config.curvature_examples,
        votes=config.curvature_votes,
        joined=config.curvature_joined,
    )
    return found if config.curvature_rank is None else compress_grams(found, config.curvature_rank)


def _loader(run: Prepared, args: "TrainingArguments") -> Any:
    """Training batches in a seeded order of their own, for passes beside training."""
    size = args.per_device_train_batch_size
    return shuffled_batches(run.train, run.collate, batch_size=size, seed=run.config.seed)


def _is_done(config: TrainConfig, output: Path) -> bool:
    """Whether the output folder is the finished result of this very configuration; refused if it is something else."""
    if not config.overwrite and (output / LOG_FILE).is_file():
        with suppress(ValueError):
            log = json.loads((output / LOG_FILE).read_text(encoding="utf-8"))
            if log.get("run_sha256") == run_sha256(config):
                return True
    check_output_folder(output, "adapter_config.json", overwrite=config.overwrite)
    require_writable(output)
    return False
