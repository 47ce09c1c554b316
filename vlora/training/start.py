"""The adapter that a run goes on from: read, compared with what the run asks for, and written into the model."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlora.data.config import Task
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.posterior import Posterior
from vlora.posterior.hashing import fingerprint_weights, tensors_sha256
from vlora.posterior.lora_layout import BASE_CHANGING
from vlora.training.adapters import peft_config

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

__all__ = ["Start", "read_start"]

logger = logging.getLogger(__name__)

_FREE = ("lora_dropout",)
"""What a run may set anew: it is no property of the adapter."""

_HEADS = ("classifier", "score")


@dataclass(frozen=True)
class Start:
    """An adapter and where it came from."""

    posterior: Posterior
    folder: str
    config: "PeftConfig"
    """PEFT's configuration, for training."""

    def record(self) -> dict[str, Any]:
        """Field ``ancestor`` of ``posterior.json``; the h of a run that goes on counts the run's own data alone."""
        sha = self.posterior.meta.mean_sha256 or tensors_sha256(self.posterior.mean)
        return {"folder": self.folder, "sha256": sha, "included": False}

    def check_data(self, base_model: str, revision: str | None, labels: list[str] | None) -> None:
        """Refuse another base model, or other class names in the head.

        Raises:
            ConfigError: What differs, and the cure.
        """
        known = self.posterior.meta.base_model
        trained = known.get("id") or self.posterior.adapter_config.get("base_model_name_or_path")
        prints = known.get("fingerprint"), fingerprint_weights(base_model, revision)
        same = prints[0] == prints[1] if all(prints) else str(trained or base_model) == base_model
        if not same:
            raise ConfigError(
                f"start: {self.folder} was trained on {trained!r}, base_model is {base_model!r}; go on with the model "
                "that the adapter belongs to"
            )
        if labels and self.posterior.meta.labels and labels != self.posterior.meta.labels:
            raise ConfigError(
                f"start: the classes of {self.folder} are {', '.join(self.posterior.meta.labels)}, those of the data "
                f"{', '.join(labels)}; give data.labels in that order, or leave start out"
            )

    def load_into(self, model: "PeftModel") -> None:
        """Write the adapter's weights into the model, before the first step.

        Raises:
            ConfigError: They do not fit.
        """
        try:
            self.posterior.load_into(model)
        except (PosteriorFormatError, KeyError) as error:
            raise ConfigError(f"start: {self.folder} does not fit the model: {error}") from error
        logger.info("going on from %s", self.folder)


def read_start(folder: str, settings: Mapping[str, Any], *, task: Task) -> Start:
    """Read an adapter to go on from.

    Args:
        folder: Folder or hub id.
        settings: The run's ``peft:`` block, which may repeat what the adapter says but not change it.
        task: The run's task; fixes PEFT's ``task_type``.

    Raises:
        ConfigError: The adapter is of another type, rank or task than asked for, or changes its base weights.
        PosteriorFormatError: It is no adapter, or damaged.
    """
    posterior = Posterior.from_pretrained(folder)
    known = dict(posterior.adapter_config)
    asked = {"type": "lora", **settings}
    if str(known["peft_type"]).lower() != str(asked.pop("type")).lower():
        raise ConfigError(
            f"start: {folder} is a {known['peft_type']} adapter, peft.type says {settings.get('type', 'lora')}; make "
            "them agree"
        )
    initial = str(known.get("init_lora_weights", True)).lower()
    if initial.startswith(BASE_CHANGING):
        raise ConfigError(
            f"start: {folder} was initialised with {initial}, which also changes the base weights; convert it first "
            "with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    wanted = peft_config({"type": known["peft_type"], **asked}, task=task, model_type="")
    if known.get("task_type") not in (None, wanted.task_type):
        raise ConfigError(
            f"start: {folder} is of task_type {known['task_type']}, the run of {wanted.task_type}"
        )
    for key, value in asked.items():
        if key not in _FREE and _plain(value) != _plain(known.get(key)):
            raise ConfigError(
                f"start: {folder} has {key} = {known.get(key)!r}, peft.{key} says {value!r}; leave peft.{key} out: the "
                "adapter goes on as it is"
            )
    free = {key: value for key, value in asked.items() if key in _FREE}
    fields = {key: value for key, value in known.items() if key in _arguments(wanted)} | free
    if wanted.task_type == "SEQ_CLS" and fields.get("modules_to_save"):  # PEFT names the heads again
        fields["modules_to_save"] = [name for name in fields["modules_to_save"] if name not in _HEADS] or None
    return Start(
        posterior, folder, type(wanted)(**{**fields, "inference_mode": False, "task_type": wanted.task_type})
    )


def _arguments(config: "PeftConfig") -> set[str]:
    """What a configuration of this class is made from; files of other PEFT versions may say more."""
    owned = ("peft_type", "auto_mapping", "task_type", "inference_mode")
    return {field.name for field in dataclasses.fields(config) if field.init} - set(owned)


def _plain(value: Any) -> Any:
    """Lists of names in any order are one set to PEFT."""
    return sorted(value) if isinstance(value, (list, tuple, set)) else value
