"""``vlora posterior``: from an adapter folder and its training data to a posterior folder with the same mean."""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vlora.config import config_sha256, to_plain
from vlora.curvature import collect_curvature
from vlora.files import check_output_folder, output_path, strict_json
from vlora.fisher import LabelKind, SquaredGradients, leading_fisher
from vlora.fisher.health import reference_health
from vlora.fisher.leading import check_linear
from vlora.laplace.config import Fisher, PosteriorConfig
from vlora.laplace.fit import EvidencePrior, evidence_prior, laplace_posterior, stochastic_parameters
from vlora.laplace.held_out import HeldOut, best_factor, mean_nll, sampled_nll
from vlora.laplace.prepare import Prepared, prepare
from vlora.posterior import Posterior
from vlora.posterior.export import describe_base
from vlora.posterior.leading import Leading
from vlora.posterior.spacing import spacing_health
from vlora.training.work import require_writable

__all__ = ["CONFIG_FILE", "LOG_FILE", "run_posterior"]

logger = logging.getLogger(__name__)

CONFIG_FILE = "laplace_config.yaml"
LOG_FILE = "laplace_log.json"
_KINDS: dict[Fisher, LabelKind] = {"expected": "expected", "sampled": "sampled", "empirical": "given"}


def run_posterior(config: PosteriorConfig) -> Path:
    """Measure the curvature at an adapter's weights, choose the prior precision, write a posterior folder.

    Args:
        config: The run.

    Returns:
        The output folder.

    Raises:
        ConfigError: A setting is not usable, or the adapter is no LoRA.
        DataError: The data are not usable.
        PosteriorFormatError: The adapter folder is damaged or does not fit its base model.
        OutputExistsError: The output holds something else, or a result and ``overwrite`` is false.
        TrainingError: A loss or gradient is not finite.
    """
    started = time.perf_counter()
    output = output_path(config.output)
    check_output_folder(output, "adapter_config.json", overwrite=config.overwrite)
    require_writable(output)
    run = prepare(config)
    if config.directions is not None:  # refuses what the pass after the fit could not take
        check_linear(run.model, stochastic_parameters(run.model, run.adapter, config.deterministic))
    fitted, gradients = _fit(run)
    posterior, log = _with_chosen_prior(run, fitted, gradients)
    posterior = _finished(run, posterior)
    log = {"format": 1, **log, "seconds": round(time.perf_counter() - started, 3)}
    posterior.save_pretrained(
        output,
        overwrite=config.overwrite,
        extra_files={
            CONFIG_FILE: yaml.safe_dump(to_plain(run.config), sort_keys=False, allow_unicode=True),
            LOG_FILE: strict_json(log),
        },
    )
    logger.info("wrote %s in %.1f s: %s", output, log["seconds"], posterior.summary()["verdict"])
    return output


def _fit(run: Prepared) -> tuple[Posterior, SquaredGradients]:
    """The posterior under a flat prior."""
    config = run.config
    return laplace_posterior(
        run.model,
        run.adapter,
        run.batches(run.train),
        num_examples=len(run.train),
        labels=_KINDS[run.fisher],
        reduction=config.loss_reduction,
        temperature=config.temperature,
        max_examples=None if config.max_examples is None else min(config.max_examples, len(run.train)),
        deterministic=config.deterministic,
        seed=config.seed,
    )


def _with_chosen_prior(
    run: Prepared, fitted: Posterior, gradients: SquaredGradients
) -> tuple[Posterior, dict[str, Any]]:
    """The posterior under the prior precision that the configuration asks for, and the record of the choice."""
    config = run.config
    log: dict[str, Any] = {
        "fisher": run.fisher,
        "fisher_examples": gradients.num_examples,
        "fisher_method": gradients.method,
        "train_loss": gradients.mean_loss,
    }
    if not isinstance(config.prior_precision, str):
        posterior = fitted.with_prior(config.prior_precision)
        return posterior, log | {"prior": {"kind": "given"}} | _checked(run, posterior)
    prior = evidence_prior(fitted, mean_loss=gradients.mean_loss, scope=config.prior_scope)
    log["prior"] = _record(config.prior_precision, prior)
    if config.prior_precision == "marginal_likelihood":
        posterior = fitted.with_prior(prior.precision)
        return posterior, log | _checked(run, posterior)
    found = _searched(run, fitted, prior)
    posterior = fitted.with_prior({key: found.factor * value for key, value in prior.precision.items()})
    nll = {f"{factor:g}": value if math.isfinite(value) else None for factor, value in found.nll.items()}
    return posterior, log | {
        "held_out": {
            "factor": found.factor,
            "nll": nll,
            "nll_mean": found.mean_nll,
            "num_samples": config.num_samples,
        }
    }


def _record(kind: str, prior: EvidencePrior) -> dict[str, Any]:
    return {
        "kind": kind,
        "log_evidence": prior.log_evidence,
        "effective_parameters": prior.effective_parameters,
        "precision": prior.precision,
        "undetermined": prior.undetermined,
    }


def _searched(run: Prepared, fitted: Posterior, prior: EvidencePrior) -> HeldOut:
    """The best factor on the validation rows, with a word when it is at the end of the grid."""
    config = run.config
    assert run.validation is not None
    found = best_factor(
        run.model,
        fitted,
        prior.precision,
        list(run.batches(run.validation)),
        factors=config.prior_grid,
        num_samples=config.num_samples,
    )
    if found.factor == max(config.prior_grid):
        logger.warning(
            "the narrowest prior of the grid (factor %g) is best on the validation rows: draws do not help here, or "
            "prior_grid should go on; NLL %.4f with draws, %.4f at the mean",
            *(found.factor, found.nll[found.factor], found.mean_nll),
        )
    return found


def _checked(run: Prepared, posterior: Posterior) -> dict[str, Any]:
    """Loss with and without draws on the validation rows, if there are any; a warning where draws do harm."""
    if run.validation is None:
        return {}
    batches, count = list(run.batches(run.validation)), run.config.num_samples
    at_mean = mean_nll(run.model, batches)
    drawn = sampled_nll(run.model, posterior, batches, num_samples=count)
    if drawn > at_mean:
        logger.warning(
            "posterior draws are worse than the mean on the validation rows: NLL %.4f against %.4f; "
            "prior_precision: held_out finds a narrower prior",
            *(drawn, at_mean),
        )
    nll = drawn if math.isfinite(drawn) else None
    return {"validation": {"nll": nll, "nll_mean": at_mean, "num_samples": count}}


def _finished(run: Prepared, posterior: Posterior) -> Posterior:
    """The posterior with lineage, health and, if asked for, Kronecker factors and leading directions."""
    config = run.config
    health: dict[str, Any] = dict(spacing_health(posterior.mean, posterior.std()))
    if run.validation is not None and config.health_examples:
        batches = run.batches(run.validation)
        health |= reference_health(
            posterior, run.model, batches, max_examples=config.health_examples, held_out=True
        )
    known = run.adapter.meta.base_model
    meta = replace(
        posterior.meta,
        base_model=known if known.get("fingerprint") else describe_base(run.model),
        labels=config.data.labels if config.task == "sequence_classification" else None,
        health=health,
        notes=[
            *run.adapter.meta.notes,
            f"Laplace approximation ({run.fisher} Fisher) of the adapter {config.adapter}.",
        ],
        config_sha256=config_sha256(config),
    )
    curvature = run.adapter.curvature
    if config.curvature:
        curvature = collect_curvature(
            run.model,
            run.batches(run.train),
            max_examples=config.curvature_examples,
            votes=config.curvature_votes,
            joined=config.curvature_joined,
        )
    directions = None if config.directions is None else _directions(run, posterior, config.directions)
    return replace(posterior, meta=meta, curvature=curvature, directions=directions)


def _directions(run: Prepared, posterior: Posterior, count: int) -> Leading:
    """Leading directions at the adapter's weights, on training rows, with the labels of h."""
    return leading_fisher(
        run.model,
        run.batches(run.train),
        parameters=stochastic_parameters(run.model, run.adapter, run.config.deterministic),
        num_examples=posterior.meta.num_examples,
        directions=count,
        labels=_KINDS[run.fisher],
        max_examples=run.config.directions_examples,
        seed=run.config.seed,
    )
