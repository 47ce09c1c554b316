"""What is known about a posterior besides its tensors: the content of ``posterior.json``."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlora.errors import PosteriorFormatError

__all__ = ["FORMAT", "PosteriorMeta"]

FORMAT = 1
"""Version of the folder format that this vlora writes, and the newest one it reads."""

_FAMILIES = ("diagonal_gaussian",)


@dataclass(frozen=True, kw_only=True)
class PosteriorMeta:
    """Settings, lineage and health of a posterior.

    ``ess``, ``num_examples`` and ``weight_decay`` are kept apart and never folded into one variance:
    sampling needs ``ess * (h + weight_decay)``, merging needs the untempered ``num_examples * h``.
    """

    num_examples: int
    """N, training examples seen by the loss whose mean was minimised."""
    ess: float | dict[str, float]
    """Effective sample size, one number or one per key; the posterior is colder than Bayes when above N."""
    weight_decay: float | dict[str, float] = 0.0
    """Prior precision divided by ``ess``, one number or one per key."""
    prior: dict[str, Any] = field(default_factory=lambda: {"kind": "zero"})
    """``{"kind": "zero"}``, or ``{"kind": "posterior", "folder": …, "sha256": …}`` for a run that was trained under
    another posterior (its mean's hash). ``N (h + weight_decay)`` then holds that posterior's precision too."""
    ancestor: dict[str, Any] = field(default_factory=dict)
    """Adapter that a run went on from: ``folder``, ``sha256`` of its mean, and ``included``, whether h counts the
    ancestor's data too (a merge of such runs) or the run's own alone. Empty for a run with a start of its own."""
    loss_reduction: str = "mean"
    """How the training loss was averaged: ``mean`` over examples or ``token_mean`` over target tokens."""
    tokens_per_example: float | None = None
    """Mean number of target tokens an example has, for ``token_mean``."""
    base_model: dict[str, Any] = field(default_factory=dict)
    """``id``, ``revision`` and weights ``fingerprint`` of the frozen model."""
    gauge: str | None = None
    """Hash of the LoRA A matrices before training; adapters of one gauge share their starting point."""
    steps: int | None = None
    """Optimizer steps taken."""
    beta2: float | None = None
    """Decay of the Hessian average."""
    hess_init: float | dict[str, float] | None = None
    """Value that the entries of h started from, one number or one per key."""
    fixed_zeros: list[str] = field(default_factory=list)
    """Keys of pruned tensors: entries whose mean is exactly 0 are 0 in every draw; their h is kept for merging."""
    method: str | None = None
    """How h was found if not by training or merging: ``laplace``."""
    labels: list[str] | None = None
    """Class names in index order, for a classifier."""
    seed: int = 0
    """Seed of the numbered posterior draws."""
    health: dict[str, Any] = field(default_factory=dict)
    """How far h has left its start; see ``vlora.posterior.health``."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Inputs of a merge: path, hash and weight each."""
    notes: list[str] = field(default_factory=list)
    """Sentences a reader should see, such as an approximation that a merge made."""
    config_sha256: str | None = None
    """Hash of the resolved configuration of the run."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of vlora, torch and peft that wrote the folder."""
    mean_sha256: str | None = None
    """Content hash of the mean; an adapter file edited later no longer matches."""
    hess_sha256: str | None = None
    """Content hash of h."""
    format: int = FORMAT
    family: str = "diagonal_gaussian"

    def of(self, name: str, key: str) -> float:
        """Value of ``ess`` or ``weight_decay`` for one tensor."""
        value = getattr(self, name)
        return float(value[key] if isinstance(value, Mapping) else value)

    @property
    def temperature(self) -> float | None:
        """N / ess: 1 is Bayes, below 1 is colder (more certain); None if ess differs between tensors."""
        if isinstance(self.ess, Mapping) or not self.ess:
            return None
        return self.num_examples / self.ess

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``posterior.json``."""
        return {**dataclasses.asdict(self), "temperature": self.temperature}

    @classmethod
    def from_json(cls, values: Any, where: str) -> "PosteriorMeta":
        """Check and read the content of ``posterior.json``.

        Raises:
            PosteriorFormatError: Foreign, damaged or newer content.
        """
        _check_head(values, where)
        missing = {"num_examples", "ess", "mean_sha256", "hess_sha256"} - values.keys()
        if missing:
            raise PosteriorFormatError(f"{where} lacks {', '.join(sorted(missing))}; the file is incomplete")
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            return TypeAdapter(cls).validate_python({k: v for k, v in values.items() if k in known})
        except ValidationError as error:
            first = error.errors()[0]
            raise PosteriorFormatError(
                f"{where} is damaged: {first['loc'][0]}: {first['msg']}, got {first['input']!r:.40}; copy it again"
            ) from None


def _check_head(values: Any, where: str) -> None:
    """Refuse what is no ``posterior.json``, or one that this version cannot know."""
    number = values.get("format") if isinstance(values, dict) else None
    if not isinstance(number, int) or number < 1 or "family" not in values:
        raise PosteriorFormatError(
            f"{where} is not a vlora posterior description; was it written by another program?"
        )
    if number > FORMAT:
        versions = values.get("versions")
        needed = versions.get("vlora") if isinstance(versions, dict) else None
        release = f"variational-lora >= {needed}" if needed else "a newer variational-lora"
        raise PosteriorFormatError(
            f"{where} has format {number}, this vlora reads up to {FORMAT}; install {release}"
        )
    if values["family"] not in _FAMILIES:
        raise PosteriorFormatError(
            f"{where}: unknown family {values['family']!r}, expected one of {_FAMILIES}"
        )
