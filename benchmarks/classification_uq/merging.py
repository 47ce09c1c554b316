"""What merging does to a posterior: two review domains under one frozen head, each adapter alone and merged.

As merge_quality's domains: the head is a linear probe fitted on ``sst2``, the adapters have starts of their own, and a
merge is not cut to a rank. A merged posterior has the precision that the merge gives it and the mean of the adapters'
Grams; its prior precision is fitted as a single posterior's is, on the validation rows of both domains.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classification_uq.arms import Predictions, linearised, train_ivon
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.scores import Said, of_mean, of_moments, quality, separation
from benchmarks.classification_uq.tasks import Task, load_domain
from benchmarks.merge_quality.tasks import joined
from benchmarks.merge_quality.training import fit_head
from benchmarks.posterior_quality.run import NOISE_COST
from vlora import Posterior
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.merge import merge_adapters

__all__ = ["MERGES", "PAIRS", "measure_merge"]

PAIRS = (("fdu_books", "fdu_kitchen_housewares"), ("fdu_dvd", "fdu_electronics"))
MERGES: dict[str, dict[str, Any]] = {
    "gradient matching, Kronecker": {"method": "gradient_matching", "curvature": "kronecker"},
    "sum": {"method": "task_arithmetic"},
    "mean": {"method": "linear"},
}
LEARNING_RATE = 1e-3
"""As merge_quality has it for these domains."""


def measure_merge(pair: tuple[str, str], seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Scores on each domain under its own adapter, under the other's, and under every merge."""
    domains = {name: load_domain(name, data, work / "features") for name in pair}
    posteriors = dict(zip(pair, trained(list(domains.values()), seed, data, work), strict=True))
    scores: dict[str, dict[str, Any]] = {}
    for name, other in (pair, pair[::-1]):
        scores[name] = {
            "own adapter": one(posteriors[name], domains[name], [domains[name]]),
            "the other's adapter": one(posteriors[other], domains[name], [domains[other]]),
        }
    for merge, options in MERGES.items():
        merged = merge_adapters(list(posteriors.values()), rank="lossless", **options)
        for name in pair:
            scores[name][merge] = one(merged, domains[name], list(domains.values()))
    return {"pair": list(pair), "seed": seed, "scores": scores}


def trained(domains: list[Task], seed: int, data: Path, work: Path) -> list[Posterior]:
    """Posterior of one adapter per domain."""
    source = load_domain("sst2", data, work / "features")
    head = fit_head(Network(2, 0).states(source.train), source.train.label, source.num_classes)
    given = {"noise_cost": NOISE_COST, "lr": LEARNING_RATE}
    return [
        train_ivon(Network(2, 1000 * seed + i, head), domain.train, 1000 * seed + i, given)[0]
        for i, domain in enumerate(domains)
    ]


def one(posterior: Posterior, domain: Task, fitted_on: list[Task]) -> dict[str, Any]:
    """The mean, with a fitted temperature, and the linearised model, on the test rows of a domain.

    Args:
        posterior: Single or merged.
        domain: Whose test and foreign rows.
        fitted_on: Tasks whose validation rows choose the prior and the temperature: those the posterior knows.
    """
    validation = joined([task.validation for task in fitted_on])
    rows = {"validation": validation, **{split: domain.splits[split] for split in ("clean", "near", "far")}}
    network, out = Network.of(posterior, domain.num_classes), Predictions()
    linearised(network, posterior, rows, "of", out)
    tensors = {name: value.double().numpy() for name, value in out.tensors.items()}
    mean = {split: network.log_probs(own).double().numpy() for split, own in rows.items()}
    temperature = float(fit_temperature(mean["validation"], validation.label.numpy()).temperature)
    label = domain.splits["clean"].label.numpy()
    found = {
        "mean": measured({split: of_mean(own) for split, own in mean.items()}, label),
        "tempered": measured(
            {split: of_mean(temper(own, temperature)) for split, own in mean.items()}, label
        ),
    }
    for kind in ("linearised", "kronecker"):
        said = {s: of_moments(tensors[f"of_{kind}.{s}"], tensors[f"of_{kind}.{s}.covariance"]) for s in rows}
        found[kind] = measured(said, label)
    return {"predictors": found, "facts": {**out.facts, "temperature": temperature}}


def measured(said: Mapping[str, Said], label: np.ndarray) -> dict[str, Any]:
    """Quality on the domain's rows, and what separates foreign rows from them."""
    scores = {name: {split: own.scores[name] for split, own in said.items()} for name in said["clean"].scores}
    return {
        "quality": quality(said["clean"].log_probs, label),
        "separation": {name: separation(score) for name, score in scores.items()},
    }
