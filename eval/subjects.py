"""The models of an evaluation: the base model alone, plain adapters, posteriors."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlora.errors import ConfigError
from vlora.eval.linearised_prior import LinearisedPrior
from vlora.eval.models_config import ModelsConfig
from vlora.eval.store import content_key
from vlora.posterior import Posterior
from vlora.posterior.calibration import calibrated, fitted_scale
from vlora.posterior.draws import check_draws
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.kinds import source_identity

__all__ = ["Subject", "base_model_of", "load_subjects"]

logger = logging.getLogger(__name__)

BASE = "base"
"""What to write in place of a path for the base model without an adapter."""


@dataclass(frozen=True)
class Subject:
    """One model to evaluate, read but not yet on its base."""

    name: str
    path: str
    posterior: Posterior | None
    """The adapter; None for the base model."""
    fitted: Mapping[str, Any] | None = None
    """What ``vlora calibrate`` fitted, when the posterior was put at that width."""
    as_read: Posterior | None = None
    """The posterior as its folder has it, at the width of training."""
    prior: LinearisedPrior | None = None
    """Prior of the linearised predictive; None: its posterior is that of the draws."""

    @property
    def kind(self) -> str:
        """``base``, ``adapter`` (no variances) or ``posterior``."""
        if self.posterior is None:
            return "base"
        return "posterior" if self.posterior.has_hess else "adapter"

    def describe(self) -> dict[str, Any]:
        """The model's entry in ``results.json``."""
        posterior = self.posterior
        sampled = posterior is not None and posterior.has_hess
        return {
            "name": self.name,
            "path": self.path,
            "kind": self.kind,
            "ess": posterior.meta.ess if posterior is not None and sampled else None,
            "temperature": posterior.temperature if posterior is not None and sampled else None,
            "std_scale": self.fitted["std_scale"] if self.fitted is not None else None,
            "linearised_prior": self.prior.precision if self.prior is not None else None,
            "sources": posterior.meta.sources if posterior is not None else [],
            "summary": {**self._applied(), **(posterior.summary() if posterior is not None else {})},
        }

    def _applied(self) -> dict[str, str]:
        """What was fitted and applied, in words."""
        found = {}
        if self.fitted is not None:
            rows = (self.fitted.get("split") or {}).get("rows", "?")
            found["posterior_temperature"] = (
                f"std x {self.fitted['std_scale']:.4g}, fitted on {rows} held-out rows"
            )
        if self.posterior is not None and self.posterior.covariance != "independent":
            found["covariance of the draws"] = f"{self.posterior.covariance} directions over all tensors"
        if self.prior is not None:
            found["linearised_prior"] = self.prior.describe()
        return found

    def content(self) -> dict[str, Any]:
        """Everything about the model that its scores depend on, as JSON-able content."""
        if self.posterior is None:
            return {"kind": self.kind}
        meta, covariance = self.posterior.meta, self.posterior.covariance
        drawn = {} if covariance == "independent" else source_identity(self.posterior, covariance)
        return {
            "mean": tensors_sha256(self.posterior.mean),
            "hess": tensors_sha256(self.posterior.hess),
            "adapter_config": content_key(dict(self.posterior.adapter_config)),
            "meta": [meta.ess, meta.weight_decay, meta.seed, meta.fixed_zeros],
            **drawn,
        }


def load_subjects(config: ModelsConfig) -> list[Subject]:
    """Read every model's folder, at the temperature that the configuration asks for.

    Raises:
        PosteriorFormatError: A folder is damaged, foreign or newer than this version.
        ConfigError: A temperature is set but a posterior does not know its number of examples, a fitted width is asked
            for and a posterior has none, or it has no draws with the covariance asked for.
    """
    subjects = []
    for entry in config.models:
        posterior = None if entry.path == BASE else Posterior.from_pretrained(entry.path)
        as_read, fitted = posterior, None
        if posterior is not None and posterior.has_hess:
            drawing = posterior.drawing(config.covariance)
            posterior, fitted = _at_temperature(drawing, entry.path, config.temperature)
            check_draws(posterior, entry.name)
        elif posterior is not None:
            logger.warning("%s has no posterior: it is evaluated at its weights, without draws", entry.path)
        subjects.append(Subject(str(entry.name), entry.path, posterior, fitted, as_read))
    return subjects


def _at_temperature(
    posterior: Posterior, path: str, temperature: float | str | None
) -> tuple[Posterior, Mapping[str, Any] | None]:
    """The posterior at the configured temperature, and the fit that was applied, if one was."""
    if temperature is None:
        return posterior, None
    if isinstance(temperature, str):
        fitted = fitted_scale(posterior)
        if fitted is None and temperature == "stored":
            raise ConfigError(
                f"temperature is 'stored' but {path} holds no fitted width in its calibration.json for draws with "
                f"covariance: {posterior.covariance}; run vlora calibrate first, or set temperature: auto"
            )
        return calibrated(posterior), fitted
    if posterior.meta.num_examples < 1:
        raise ConfigError(
            f"temperature is set but {path} records no num_examples, so its ess is unknown; "
            "leave temperature out to take the posterior as trained"
        )
    return posterior.at_temperature(temperature), None


def base_model_of(subjects: Sequence[Subject], config: ModelsConfig) -> str:
    """Base model to load: as configured, else the one that the first adapter names.

    Raises:
        ConfigError: Nobody names one.
    """
    if config.base_model is not None:
        return config.base_model
    for subject in subjects:
        if subject.posterior is not None:
            name = subject.posterior.adapter_config.get("base_model_name_or_path")
            if name or (name := subject.posterior.meta.base_model.get("id")):
                return str(name)
    raise ConfigError("base_model is needed: no adapter in this evaluation names its base model")
