"""``vlora calibrate``: fit the width of posteriors and decisions on validation rows, kept beside each adapter.

The rows are scored with the same numbered draws at every width (:mod:`vlora.eval.metrics.posterior_scale`). Beside the
width, the logit temperature is fitted: of the mean, of the draws as trained, and of the draws at the fitted width.
Prediction sets and the threshold for "don't know" (:mod:`vlora.eval.decide`) are fitted on another part of the
validation rows, at that width and temperature, and verified on the test rows and every out-of-distribution set.
Only ``calibration.json`` is written, in one rename.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from vlora.errors import ConfigError
from vlora.eval.calibrate_decisions import fit_and_verify
from vlora.eval.calibrate_parts import Parts
from vlora.eval.config import EvalConfig
from vlora.eval.environment import versions
from vlora.eval.forward import Draws
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.posterior_scale import ScaleFit, fit_std_scale
from vlora.eval.metrics.proper_scores import negative_log_likelihood
from vlora.eval.metrics.temperature import fit_temperature
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.prepare import Evaluation, prepare
from vlora.eval.score_lm import TextScorer
from vlora.eval.splits import describe_split
from vlora.eval.subjects import Subject
from vlora.files import atomic_write
from vlora.posterior import Posterior
from vlora.posterior.calibration import DECISIONS, FORMAT, KEY, identity

__all__ = ["CALIBRATION", "Calibrated", "run_calibration"]

logger = logging.getLogger(__name__)

CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Calibrated:
    """One adapter that was calibrated: its name, the file and its content."""

    name: str
    path: Path
    content: Mapping[str, Any]


def run_calibration(config: EvalConfig) -> list[Calibrated]:
    """Fit every adapter of an evaluation on ``data.validation`` and write its ``calibration.json``.

    Args:
        config: The configuration of the evaluation. ``temperature`` plays no part.

    Returns:
        One entry per posterior, and per plain adapter where decisions are fitted; the base model is passed over.

    Raises:
        ConfigError: No validation rows, no draws, no local folder, or the test rows are the same.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read or scored.
        OutputError: A file cannot be written.
    """
    _check(config)
    evaluation = prepare(replace(config, temperature=None, detect={}))
    decides = config.task != "causal_lm" and config.calibration.threshold_share > 0
    kinds = ("posterior", "adapter") if decides else ("posterior",)
    subjects = [subject for subject in evaluation.subjects if subject.kind in kinds]
    if not subjects:
        raise ConfigError("no model of this configuration has a posterior, so there is no width to fit")
    if config.num_samples < 2 and any(subject.kind == "posterior" for subject in subjects):
        raise ConfigError(
            f"num_samples must be at least 2 to fit a posterior's width, got {config.num_samples}"
        )
    folders = {subject.name: _local_folder(subject) for subject in subjects}
    parts = Parts.of(evaluation, decides)
    done = []
    with tqdm(total=parts.rows(subjects), unit="row", desc="calibrate", disable=None) as bar:
        for subject in subjects:
            bar.set_postfix_str(subject.name)
            content = _calibrate(parts, subject, bar.update)
            path = atomic_write(folders[subject.name] / CALIBRATION, json.dumps(content, indent=2) + "\n")
            done.append(Calibrated(subject.name, path, content))
    return done


@dataclass
class _Trials:
    """NLL of one posterior on the held-out rows at any width; keeps the mixtures for the logit temperature."""

    evaluation: Evaluation
    model: nn.Module
    posterior: Posterior
    tick: Callable[[int], object]
    mixtures: dict[float, Array] = field(default_factory=dict)

    @property
    def label(self) -> list[int | None]:
        """Right answers."""
        return [item.example.label for item in self.evaluation.items]

    def nll(self, std_scale: float) -> float:
        """Mean NLL of the mixture of draws, per item, or per token for texts; in nats."""
        config, scorer = self.evaluation.config, self.evaluation.scorer
        scaled, count = self.posterior.scaled(std_scale), config.num_samples
        draws = Draws(self.model, scaled, num_samples=count, antithetic=config.antithetic)
        if isinstance(scorer, TextScorer):
            return _per_token(scorer.score(draws, self.tick), "nll_samples")
        passes = []
        for draw in range(count):
            with draws.at(draw):
                passes.append(scorer.score(self.model, self.tick))
        self.mixtures[std_scale] = mixture_log_probs(torch.stack(passes).numpy())
        return negative_log_likelihood(self.mixtures[std_scale], self.label).mean

    def at_mean(self) -> tuple[float, Array | None]:
        """NLL of the mean, and its log-probabilities where there are choices."""
        scorer = self.evaluation.scorer
        if isinstance(scorer, TextScorer):
            return _per_token(scorer.score(Draws(self.model), self.tick), "nll"), None
        log_probs = scorer.score(self.model, self.tick).numpy()
        return negative_log_likelihood(log_probs, self.label).mean, log_probs


def _calibrate(parts: Parts, subject: Subject, tick: Callable[[int], object]) -> dict[str, Any]:
    """Content of ``calibration.json`` for one adapter."""
    evaluation, posterior = parts.fit, subject.posterior
    assert posterior is not None
    with evaluation.host.wearing(posterior) as model:
        trials = _Trials(evaluation, model, posterior, tick)
        sections = _fit_width(parts, trials, subject) if subject.kind == "posterior" else _fit_mean(trials)
        if parts.others is not None:
            scale = sections[KEY]["std_scale"] if KEY in sections else None
            used = posterior if scale is None else posterior.scaled(scale)
            name = "mean" if scale is None else "samples_fitted"
            temperature = sections["logit_temperature"][name]["temperature"]
            sections[DECISIONS] = fit_and_verify(
                parts.others, len(parts.threshold), model, used, temperature, subject.name, tick
            )
    replaced = ("logit_temperature", KEY, DECISIONS)
    kept = {k: v for k, v in (posterior.calibration or {}).items() if k not in replaced}
    return {
        **kept,
        "format": FORMAT,
        "posterior_sha256": identity(posterior),
        "versions": versions(),
        **sections,
    }


def _fit_width(parts: Parts, trials: "_Trials", subject: Subject) -> dict[str, Any]:
    """Sections of the width and of the logit temperatures."""
    evaluation, config, posterior = parts.fit, parts.fit.config, trials.posterior
    nll_mean, at_mean = trials.at_mean()
    fit = fit_std_scale(trials.nll, config.calibration.ladder, refine=config.calibration.refine)
    if fit.at_bound:
        logger.warning(
            "%s: the best width x %g is the end of calibration.ladder; %s",
            subject.name,
            fit.std_scale,
            "the mean predicts as well" if fit.std_scale < 1 else "a longer ladder may find a better one",
        )
    section = {
        **_width(fit, posterior, nll_mean),
        "rows": len(evaluation.items),
        "num_samples": config.num_samples,
        "antithetic": config.antithetic,
        "task": config.task,
        "dtype": config.dtype,
        "quantization": config.quantization,
        "split": describe_split(parts.validation),
    }
    logit = {} if at_mean is None else {"logit_temperature": _logit_temperatures(trials, at_mean, fit)}
    return {KEY: section, **logit}


def _fit_mean(trials: "_Trials") -> dict[str, Any]:
    """Section of the logit temperature of a plain adapter."""
    _, at_mean = trials.at_mean()
    assert at_mean is not None  # plain adapters are calibrated for their decisions alone
    found = fit_temperature(at_mean, trials.label)
    entry = {"temperature": found.temperature, "nll": found.nll, "at_bound": found.at_bound}
    return {"logit_temperature": {"mean": entry}}


def _width(fit: ScaleFit, posterior: Posterior, nll_mean: float) -> dict[str, Any]:
    """The fit in the terms of ``calibration.json``."""
    return {
        "std_scale": fit.std_scale,
        "temperature": posterior.scaled(fit.std_scale).temperature,
        "at_bound": fit.at_bound,
        "nll": {"mean": nll_mean, "as_trained": dict(fit.evaluated)[1.0], "fitted": fit.nll},
        "evaluated": [list(pair) for pair in fit.evaluated],
    }


def _logit_temperatures(trials: _Trials, at_mean: Array, fit: ScaleFit) -> dict[str, Any]:
    """Temperature scaling of the mean and of the draws on the same rows; a baseline, and what may be added on top."""
    predictors = {
        "mean": at_mean,
        "samples": trials.mixtures[1.0],
        "samples_fitted": trials.mixtures[fit.std_scale],
    }
    fits = {name: fit_temperature(log_probs, trials.label) for name, log_probs in predictors.items()}
    return {
        name: {"temperature": found.temperature, "nll": found.nll, "at_bound": found.at_bound}
        for name, found in fits.items()
    }


def _per_token(texts: list[dict[str, Any]], name: str) -> float:
    return float(np.sum([text[name] for text in texts]) / np.sum([text["num_tokens"] for text in texts]))


def _check(config: EvalConfig) -> None:
    if config.data.validation is None:
        raise ConfigError(
            "data.validation is needed: a posterior's width is fitted on rows apart from the test rows"
        )


def _local_folder(subject: Subject) -> Path:
    folder = Path(subject.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{subject.path} is not a folder on this machine, so calibration.json has no place; download it first"
        )
    return folder
