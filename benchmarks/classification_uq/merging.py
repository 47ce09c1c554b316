"""What merging does to a posterior: two review domains under one frozen head, each adapter alone and merged.

As merge_quality's domains: the head is a linear probe fitted on ``sst2``, the adapters have starts of their own, and a
merge is not cut to a rank. A merged posterior has the precision that the merge gives it and the mean of the adapters'
Grams; its prior precision is fitted as a single posterior's is, on the validation rows of both domains.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.classification_uq.arms import Predictions, linearised, train_ivon
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.scores import Said, of_mean, of_moments, quality, separation, variance
from benchmarks.classification_uq.tasks import Task, load_domain
from benchmarks.merge_quality.tasks import joined
from benchmarks.merge_quality.training import fit_head
from benchmarks.posterior_quality.linearised import KINDS
from benchmarks.posterior_quality.units import NOISE_COST
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
    single = {name: measured(posteriors[name], domains, [name]) for name in pair}
    scores = {
        name: {"own adapter": single[name][name], "the other's adapter": single[other][name]}
        for name, other in (pair, pair[::-1])
    }
    for merge, options in MERGES.items():
        merged = merge_adapters(list(posteriors.values()), rank="lossless", **options)
        for name, found in measured(merged, domains, pair).items():
            scores[name][merge] = found
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


def measured(
    posterior: Posterior, domains: Mapping[str, Task], fitted_on: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The mean, with a fitted temperature, and the linearised model, on the test rows of every domain.

    Args:
        posterior: Single or merged.
        domains: By name; their foreign rows are the same.
        fitted_on: Whose validation rows choose the prior and the temperature: those that the posterior knows.
    """
    first = next(iter(domains.values()))
    validation = joined([domains[name].validation for name in fitted_on])
    rows = {"validation": validation, "near": first.splits["near"], "far": first.splits["far"]}
    rows |= {name: domain.splits["clean"] for name, domain in domains.items()}
    network, out = Network.of(posterior, first.num_classes), Predictions()
    linearised(network, posterior, rows, "of", out)
    mean = {split: network.log_probs(own).double().numpy() for split, own in rows.items()}
    temperature = float(fit_temperature(mean["validation"], validation.label.numpy()).temperature)
    said = {
        "mean": {split: of_mean(own) for split, own in mean.items()},
        "tempered": {split: of_mean(temper(own, temperature)) for split, own in mean.items()},
        **_posterior(out.tensors, rows),
    }
    facts = {**out.facts, "temperature": temperature}
    return {
        name: {
            "predictors": {p: _numbers(own, name, rows[name].label.numpy()) for p, own in said.items()},
            "facts": facts,
        }
        for name in domains
    }


def _posterior(tensors: Mapping[str, Tensor], splits: Iterable[str]) -> dict[str, dict[str, Said]]:
    """What the linearised model says by kind and split; leverage is a score of the kind with Kronecker factors."""
    arrays = {name: value.double().numpy() for name, value in tensors.items()}
    said = {
        kind: {s: of_moments(arrays[f"of_{kind}.{s}"], arrays[f"of_{kind}.{s}.covariance"]) for s in splits}
        for kind in KINDS
    }
    for split, own in said["kronecker"].items():
        own.scores["leverage"] = variance(arrays[f"of_leverage.{split}.covariance"])
    return said


def _numbers(said: Mapping[str, Said], domain: str, label: np.ndarray) -> dict[str, Any]:
    """Quality on the domain's rows, and what separates foreign rows from them."""
    splits = {"clean": domain, "near": "near", "far": "far"}
    scores = {
        name: separation({split: said[own].scores[name] for split, own in splits.items()})
        for name in said[domain].scores
    }
    return {"quality": quality(said[domain].log_probs, label), "separation": scores}
