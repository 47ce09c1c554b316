"""The work folder of a run: where Trainer keeps its checkpoints until the result is written.

``<output>.work/run.json`` says which configuration and data the checkpoints belong to, so that a killed run goes
on by itself and a changed one never does so by mistake.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from vlora.config import to_plain
from vlora.errors import OutputError, OutputExistsError
from vlora.files import atomic_write
from vlora.posterior import fingerprint_weights
from vlora.training.config import TrainConfig
from vlora.training.processes import world_size

__all__ = ["drop_unused", "last_checkpoint", "open_work", "require_writable", "run_sha256", "work_folder"]

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
_IDENTITY = {
    "run_sha256": "configuration",
    "data_sha256": "data",
    "base_sha256": "base model",
    "processes": "number of processes",  # which decides what rows the rest of an epoch holds
}
_NOT_IDENTITY = ("output", "overwrite", "resume")


def work_folder(output: Path) -> Path:
    """Folder of the checkpoints of a run."""
    return output.with_name(output.name + ".work")


def run_sha256(config: TrainConfig) -> str:
    """Hash of everything in the configuration that changes the result."""
    plain = {name: value for name, value in to_plain(config).items() if name not in _NOT_IDENTITY}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def require_writable(output: Path) -> None:
    """Find out before the work, not after it, that the output can be written.

    Raises:
        OutputError: The nearest folder above the output is no folder or may not be written to.
    """
    above = next(parent for parent in output.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {output}: {above} is not a folder you may write to; choose another place"
        )


def open_work(config: TrainConfig, work: Path, *, data_sha256: str) -> Path | None:
    """Make the work folder ready and find the checkpoint to go on from; for the first process of a run only.

    Returns:
        Checkpoint folder, or None to start at step 0.

    Raises:
        OutputExistsError: the folder is not a work folder, or holds the checkpoints of another run.
    """
    base = fingerprint_weights(config.base_model, config.revision)
    identity = {"run_sha256": run_sha256(config), "data_sha256": data_sha256, "base_sha256": base}
    identity["processes"] = str(world_size())
    checkpoint = last_checkpoint(work)
    if work.exists() and any(work.iterdir()):
        found = _read_identity(work)
        if found == identity and config.resume == "auto" and checkpoint is not None:
            return checkpoint
        if found != identity and checkpoint is not None and not config.overwrite:
            changed = next(words for key, words in _IDENTITY.items() if found.get(key) != identity[key])
            raise OutputExistsError(
                f"{work} holds checkpoints of a run with another {changed}; go back to it to resume, "
                "or set overwrite=true to drop them"
            )
        shutil.rmtree(work)
    atomic_write(work / RUN_FILE, json.dumps(identity, indent=2) + "\n")
    return None


def drop_unused(work: Path) -> None:
    """Remove a work folder that a run left without a checkpoint, so that a refused run leaves nothing behind."""
    if (work / RUN_FILE).is_file() and last_checkpoint(work) is None:
        shutil.rmtree(work, ignore_errors=True)


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that was written to its end; Trainer writes ``trainer_state.json`` last."""
    found = []
    for path in work.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            found.append((int(path.name.removeprefix("checkpoint-")), path))
        except (OSError, ValueError):
            logger.info("checkpoint %s is incomplete and is passed over", path)
    return max(found)[1] if found else None


def _read_identity(work: Path) -> dict[str, str]:
    """What the checkpoints in a work folder belong to."""
    try:
        return {"processes": "1"} | json.loads((work / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputExistsError(
            f"{work} exists but is not a work folder of vlora (no {RUN_FILE}); move it, or choose another output"
        ) from None
