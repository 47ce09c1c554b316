"""What watches a run: its settings in the log, a progress bar on stderr, the end of one whose loss is no number."""

import logging
import math
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlora.errors import TrainingError
from vlora.ivon.optimizer import IVON

__all__ = ["FiniteLoss", "LogOptimizer", "NoFinalCheckpoint", "ProgressBar"]

logger = logging.getLogger(__name__)


class FiniteLoss(TrainerCallback):
    """Stop at the first logged loss that is NaN or infinite."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check every loss among the logged values."""
        for name, value in (logs or {}).items():
            if name.endswith("loss") and isinstance(value, float) and not math.isfinite(value):
                raise TrainingError(
                    f"{name} is {value} at step {state.global_step}, expected a finite number; lower optimizer.lr, "
                    "or check the data and the base weights (nothing was written)"
                )


class LogOptimizer(TrainerCallback):
    """Log in one line, when training begins, which settings IVON has: those that ``IVON.auto`` chose.

    For any Trainer, also one that builds the optimizer itself; ``vlora train`` uses it. The line is of level INFO.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log ``IVON.describe``, one line for each kind of parameter group; nothing for other optimizers."""
        optimizer = kwargs.get("optimizer")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # out of accelerate's wrapper
        if state.is_world_process_zero and isinstance(optimizer, IVON):
            for line in optimizer.describe().splitlines():
                logger.info(line)


class NoFinalCheckpoint(TrainerCallback):
    """Do not save at the last step: the result is about to be written.

    Trainer resumed from a checkpoint of the last step would take one step too many.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take back the save that Trainer asks for at the end."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same for ``save_strategy: epoch``."""
        self.on_step_end(args, state, control)


class ProgressBar(TrainerCallback):
    """One bar for the run on stderr, with the latest losses and learning rate."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar, at the resumed step if there is one."""
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest values."""
        names = {"loss": "loss", "eval_loss": "validation", "learning_rate": "lr"}
        found = {names[k]: f"{v:.3g}" for k, v in (logs or {}).items() if k in names and isinstance(v, float)}
        self._shown |= found
        if self._bar is not None and found:
            self._bar.set_postfix(self._shown, refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, also after a run that did not get to its end."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
