"""``calibration.json`` beside an adapter: where it goes, and writing sections of it without losing the others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.eval.environment import versions
from vlora.eval.subjects import Subject
from vlora.files import atomic_write
from vlora.posterior.calibration import FORMAT, identity, kept_sections

__all__ = ["CALIBRATION", "Calibrated", "check_local", "write_calibration"]

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibrated:
    """One adapter that was calibrated: its name, the file and its content."""

    name: str
    path: Path
    content: Mapping[str, Any]


def check_local(subjects: Sequence[Subject]) -> None:
    """Refuse adapters without a folder here, before anything is scored.

    Raises:
        ConfigError: An adapter is not a folder on this machine.
    """
    for subject in subjects:
        if not Path(subject.path).expanduser().is_dir():
            raise ConfigError(
                f"{subject.path} is not a folder on this machine, so calibration.json has no place; download it first"
            )


def write_calibration(subject: Subject, sections: Mapping[str, Any], replaced: Sequence[str]) -> Calibrated:
    """Write sections into the adapter's ``calibration.json``, in one rename; foreign and still valid ones stay.

    Args:
        subject: An adapter in a local folder.
        sections: What was fitted.
        replaced: Names of the sections that this fit stands for, those it did not make included.

    Raises:
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    read = subject.as_read
    assert read is not None
    content = {
        **kept_sections(read, replaced),
        "format": FORMAT,
        "posterior_sha256": identity(read),
        "versions": versions(),
        **sections,
    }
    folder = Path(subject.path).expanduser()
    path = atomic_write(folder / CALIBRATION, json.dumps(content, indent=2) + "\n")
    return Calibrated(subject.name, path, content)
