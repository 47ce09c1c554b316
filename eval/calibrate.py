"""``vlora calibrate``: fit widths, priors and decisions on validation rows, kept beside each adapter.

The rows are scored with the same numbered draws at every width (:mod:`vlora.eval.metrics.posterior_scale`), and under
every prior of the linearised predictive (:mod:`vlora.eval.metrics.prior_precision`). Beside them, logit temperatures
are fitted: of the mean, of the draws as trained and at the fitted width, of the linearised predictive.
Prediction sets and the threshold for "don't know" (:mod:`vlora.eval.decide`) are fitted on another part of the
validation rows, to the predictor that ``calibration.predictor`` names, and verified on the test rows and every
out-of-distribution set. Only ``calibration.json`` is written, in one rename.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from tqdm import tqdm

from vlora.errors import ConfigError
from vlora.eval.calibrate_decisions import BaseEntropies, base_entropies, fit_and_verify
from vlora.eval.calibrate_parts import Parts
from vlora.eval.calibrate_prior import FittedPriors, fit_priors
from vlora.eval.calibrate_width import Trials, fit_width, logit_temperatures, scored_on, token_temperatures
from vlora.eval.calibration_file import CALIBRATION, Calibrated, check_local, write_calibration
from vlora.eval.config import EvalConfig
from vlora.eval.decision_scores import check_scores
from vlora.eval.metrics.arrays import Array
from vlora.eval.prepare import prepare
from vlora.eval.subjects import Subject
from vlora.posterior import Posterior
from vlora.posterior.calibration import DECISIONS, KEY, LOGIT, PRIOR, under_prior
from vlora.posterior.decisions import LINEARISED

__all__ = ["CALIBRATION", "Calibrated", "run_calibration"]

_REPLACED = (LOGIT, KEY, PRIOR, DECISIONS)


def run_calibration(config: EvalConfig) -> list[Calibrated]:
    """Fit every adapter of an evaluation on ``data.validation`` and write its ``calibration.json``.

    Args:
        config: The configuration of the evaluation. ``temperature`` and ``linearised`` play no part.

    Returns:
        One entry per posterior, and per plain adapter where decisions are fitted; the base model is passed over.

    Raises:
        ConfigError: No validation rows, no draws, no local folder, or the test rows are the same.
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read or scored.
        OutputError: A file cannot be written.
    """
    if config.data.validation is None:
        raise ConfigError("data.validation is needed: calibration fits on rows apart from the test rows")
    evaluation = prepare(replace(config, temperature=None, linearised=False, detect={}))
    decides = config.task != "causal_lm" and config.calibration.threshold_share > 0
    kinds = ("posterior", "adapter") if decides else ("posterior",)
    subjects = [subject for subject in evaluation.subjects if subject.kind in kinds]
    if not subjects:
        raise ConfigError("no model of this configuration has a posterior, so there is no width to fit")
    needs_draws = config.task == "causal_lm" or config.calibration.predictor == "samples"
    if needs_draws and config.num_samples < 2 and any(subject.kind == "posterior" for subject in subjects):
        raise ConfigError(
            f"num_samples must be at least 2 to fit a posterior's width, got {config.num_samples}; without draws, set "
            "calibration.predictor to linearised or mean"
        )
    check_local(subjects)
    for subject in subjects if decides else ():
        check_scores(
            config.calibration.rule_scores, _predictor(config, subject), config.task, config.num_samples
        )
    parts = Parts.of(evaluation, decides)
    parts.say_truncated()
    done = []
    with tqdm(total=parts.rows(subjects), unit="row", desc="calibrate", disable=None) as bar:
        base = base_entropies(parts, bar.update)
        for subject in subjects:
            bar.set_postfix_str(subject.name)
            content = _calibrate(parts, subject, base, bar.update)
            done.append(write_calibration(subject, content, _REPLACED))
    return done


def _predictor(config: EvalConfig, subject: Subject) -> str:
    """Whose probabilities decide: as configured, of a plain adapter the mean."""
    return config.calibration.predictor if subject.kind == "posterior" else "mean"


def _calibrate(
    parts: Parts, subject: Subject, base: BaseEntropies, tick: Callable[[int], object]
) -> dict[str, Any]:
    """Sections of ``calibration.json`` for one adapter."""
    posterior = subject.posterior
    assert posterior is not None
    with parts.fit.host.wearing(posterior) as model:
        sections = _fit(parts, subject, model, posterior, tick)
        if parts.others is not None:
            sections[DECISIONS] = _decide(parts, subject, model, posterior, sections, base, tick)
    return sections


def _fit(
    parts: Parts, subject: Subject, model: nn.Module, posterior: Posterior, tick: Callable[[int], object]
) -> dict[str, Any]:
    """Sections of the width, of the prior and of the logit temperatures."""
    sections: dict[str, Any] = {}
    trials = Trials(parts.fit, model, posterior, tick)
    nll_mean, at_mean = trials.at_mean()
    predictors: dict[str, Array] = {} if at_mean is None else {"mean": at_mean}
    priors = FittedPriors()
    if subject.kind == "posterior" and at_mean is not None:
        priors = fit_priors(parts, model, posterior, at_mean, subject.name, tick)
    if subject.kind == "posterior" and parts.fit.config.num_samples >= 2:
        best = priors.precision.get("leading")
        fit, sections[KEY] = fit_width(parts, trials, subject.name, nll_mean, best)
        if at_mean is not None:
            mixtures = {"samples": trials.mixtures[1.0], "samples_fitted": trials.mixtures[fit.std_scale]}
            predictors |= mixtures
        else:
            sections[LOGIT] = token_temperatures(trials, fit.std_scale)
    if priors.section is not None:
        sections[PRIOR] = {**priors.section, "nll_mean": nll_mean, **scored_on(parts)}
        predictors |= priors.log_probs
    if predictors:
        sections[LOGIT] = logit_temperatures(predictors, trials.label)
    return sections


def _decide(
    parts: Parts,
    subject: Subject,
    model: nn.Module,
    posterior: Posterior,
    sections: Mapping[str, Any],
    base: BaseEntropies,
    tick: Callable[[int], object],
) -> dict[str, Any]:
    """The ``decisions`` section, fitted to the predictor that the configuration names."""
    predictor = _predictor(parts.fit.config, subject)
    fitted, used = predictor, posterior
    if predictor == "samples":
        fitted, used = "samples_fitted", posterior.scaled(sections[KEY]["std_scale"])
    elif predictor in LINEARISED:
        used = under_prior(posterior, sections[PRIOR][LINEARISED[predictor]]["prior_precision"])
    return fit_and_verify(
        parts,
        model,
        used,
        predictor=predictor,
        temperature=sections[LOGIT][fitted]["temperature"],
        base=base,
        name=subject.name,
        tick=tick,
    )
