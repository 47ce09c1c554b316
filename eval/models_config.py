"""Settings that every evaluation has: which models, how they are loaded and drawn from, and where results go."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from vlora.data.config import check_counts, check_seed
from vlora.errors import ConfigError
from vlora.posterior.draws import DrawCovariance

__all__ = ["Detection", "Ensemble", "ModelEntry", "ModelsConfig"]

Ensemble = bool | Literal["auto"] | list[str]
"""Which models make the ensemble that stands beside the others."""


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One model under a name of your choice."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """Posterior folder, plain PEFT folder, hub id of either, or ``base`` for the base model alone."""
    name: str | None = None
    """Name in tables and plots; None takes the last part of the path."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One question to uncertainty: do these groups look less certain than those?"""

    __pydantic_config__ = ConfigDict(extra="forbid")

    positive: list[str]
    """Groups that should look uncertain, such as an ``ood`` set."""
    negative: list[str]
    """Groups that should look certain."""


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Adapters of one base model, and what is the same whatever is asked of them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str | ModelEntry | list[str | ModelEntry]
    """Posterior or PEFT folder, hub id, ``base``, ``{path, name}``, or a list of these."""
    base_model: str | None = None
    """Folder or hub id of the base model; None takes the one that the first adapter names."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    ensemble: Ensemble = "auto"
    """Add an ensemble of these models as a baseline, every member at its mean as one draw. ``auto``: of all adapters
    that are no merges, where there are two or more; true: of all adapters; false: none. Of texts it is the mixture of
    whole texts."""
    num_samples: int = 8
    """Posterior draws S; 0 evaluates the mean alone. Plain adapters have no draws."""
    antithetic: bool = True
    """Take draws in mirrored pairs: same cost, less Monte Carlo error; needs an even ``num_samples``."""
    covariance: DrawCovariance = "independent"
    """Covariance of the weights that draws are made with: ``independent`` entries (h), or ``leading``: over all tensors
    at once, for posteriors that have directions.safetensors."""
    temperature: float | Literal["auto", "stored"] | None = None
    """Posterior temperature: a number (1 is Bayes, ``ess = num_examples``), ``stored`` (as fitted by calibration),
    ``auto`` (as fitted where a posterior holds a fit, else as trained), or None, as trained."""
    batch_size: int = 256
    """Most rows in a batch."""
    batch_tokens: int | None = None
    """Most tokens in a batch, padding included; None is 1024 on a CPU, whose caches like it, else 16384."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the base model; logits become float32 before every softmax."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Load the base model through bitsandbytes."""
    device: str | None = None
    """``cpu``, ``cuda:0``, …; None takes the accelerator if there is one."""
    trust_remote_code: bool = False
    """Run code that the base model's repository brings. Only for repositories you trust."""
    detect: dict[str, Detection] = field(default_factory=dict)
    """Detection questions by name; without any, every ``ood`` set is set against the test rows."""
    num_bootstrap: int = 1000
    """Bootstrap resamples of the items behind every interval."""
    seed: int = 0
    """Seed of everything random but the posterior draws, which carry their own seed in the posterior."""
    output: str
    """Folder for the results and the resolved configuration."""
    overwrite: bool = False
    """Replace a former evaluation in ``output``. A folder of anything else is never replaced."""

    def __post_init__(self) -> None:
        check_counts(self, ("batch_size", "batch_tokens", "num_bootstrap"))
        check_seed("seed", self.seed)
        if self.num_samples < 0:
            raise ConfigError(f"num_samples must be 0 or more, got {self.num_samples}")
        if self.antithetic and self.num_samples % 2:
            raise ConfigError(
                f"antithetic draws come in pairs, so num_samples must be even, got {self.num_samples}; "
                "set antithetic: false for an odd number"
            )
        if isinstance(self.temperature, (int, float)) and not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")
        if self.model == []:
            raise ConfigError("model is an empty list; name at least one adapter folder, or 'base'")

    @property
    def models(self) -> list[ModelEntry]:
        """The models as entries with distinct names, in the order given.

        Raises:
            ConfigError: Two entries were given the same name.
        """
        given = self.model if isinstance(self.model, list) else [self.model]
        entries = [ModelEntry(path=entry) if isinstance(entry, str) else entry for entry in given]
        names: list[str] = []
        for entry in entries:
            if entry.name in names:
                raise ConfigError(f"model name {entry.name!r} is given twice; names must be distinct")
            names.append(entry.name or _unused(entry.path.rstrip("/").rsplit("/", 1)[-1], names))
        return [ModelEntry(path=entry.path, name=name) for entry, name in zip(entries, names, strict=True)]


def _unused(name: str, taken: list[str]) -> str:
    """The name, or with the first number that makes it new: ``out``, ``out-2``, ``out-3``."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
