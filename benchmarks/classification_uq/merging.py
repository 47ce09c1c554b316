"""What merging does to what every method says: two review domains under one frozen head, each adapter alone and merged.

As merge_quality's domains: the head is a linear probe fitted on the plain rows of ``sst2``, the adapters have starts of
their own, and a merge is not cut to a rank. Every fourth row is marked and has a drawn label, as in every task here:
the head does not know the mark, an adapter can learn it.

IVON's and AdamW's posteriors are merged alike. A merged posterior has the precision that the merge gives it and the
mean of the adapters' Grams; its temperature, prior precisions and widths are fitted as a single one's are, on the
validation rows of both domains. A threshold is fitted on the calibration rows of the domain that it is for. A merged
ensemble is the mixture of four merges. The share that is left takes the training rows of both domains.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.classification_uq.after import Heard, hear
from benchmarks.classification_uq.arms import train_ivon
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.scores import score_task
from benchmarks.classification_uq.tasks import Task, load_domain, load_task
from benchmarks.merge_quality.tasks import joined
from benchmarks.merge_quality.training import fit_head
from benchmarks.posterior_quality.arms import fit
from benchmarks.posterior_quality.health import squared_gradients
from benchmarks.posterior_quality.linearised import plain_posterior
from benchmarks.posterior_quality.tasks import Rows
from benchmarks.posterior_quality.units import NOISE_COST
from vlora import Posterior
from vlora.merge import merge_adapters

__all__ = ["GRADIENT", "MERGES", "OWN", "PAIRS", "measure_merge"]

PAIRS = (
    ("fdu_books", "fdu_kitchen_housewares"),
    ("fdu_dvd", "fdu_electronics"),
    ("fdu_music", "fdu_camera_photo"),
    ("fdu_health_personal_care", "fdu_sports_outdoors"),
)
"""No domain twice; all have 1540 training rows."""
OWN, GRADIENT = "own adapter", "gradient matching, Kronecker"
MERGES: dict[str, dict[str, Any]] = {
    GRADIENT: {"method": "gradient_matching", "curvature": "kronecker"},
    "sum": {"method": "task_arithmetic"},
    "mean": {"method": "linear"},
}
LEARNING_RATE = 1e-3
"""As merge_quality has it for these domains, for both optimizers."""
MEMBERS = (10, 11, 12)
"""Seeds of the further members of ensembles, as before merging."""
OWN_SPLITS = ("calibration", "clean", "ambiguous")
SPLITS = ("validation", *OWN_SPLITS, "near", "far")
Domains = Mapping[str, Task]


@dataclass(frozen=True)
class Place:
    """Weights and the domains that they serve."""

    name: str
    serves: dict[str, Task]
    posterior: Posterior

    @property
    def whole(self) -> bool:
        """Whether every method is asked, ensembles among them."""
        return self.name in (OWN, GRADIENT)

    def asked(self, by: str) -> tuple[str, ...]:
        """What is asked beside the mean: of the mean of adapters IVON's linearised posterior, of their sum nothing."""
        if self.whole:
            return ("linearised", "more")
        return ("linearised",) if (self.name, by) == ("mean", "ivon") else ()

    @property
    def key(self) -> str:
        """Name of its predictions on disk."""
        return "_".join([self.name.replace(" ", "_"), *self.serves])


def measure_merge(pair: tuple[str, str], seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Scores on each domain under its own adapter and under every merge, of every method."""
    domains = {name: load_task(name, data, work / "features") for name in pair}
    head = probe(data, work)
    others = members(domains, head, work / "predictions" / f"merge_{'__'.join(pair)}.safetensors")
    scores: dict[str, dict[str, Any]] = {name: {} for name in pair}
    facts: dict[str, Any] = {}
    adamw = {place.key: place for place in places(domains, "adamw", seed, head)}
    for place in places(domains, "ivon", seed, head):
        rows, heard = rows_of(place.serves), Heard()
        train = joined([task.train for task in place.serves.values()])
        for by, own in (("ivon", place), ("adamw", adamw[place.key])):
            hear(by, own.posterior, rows, train, seed, heard, place.asked(by))
        if place.whole:
            ensemble(heard, {split: others[f"{place.key}.{split}"] for split in rows})
        facts[place.key] = heard.facts
        for name in place.serves:
            scores[name][place.name] = score_task(
                of_domain(heard, name, rows), SPLITS, tempered=("adamw", "ivon")
            )
    return {"pair": list(pair), "seed": seed, "scores": scores, "facts": facts}


def probe(data: Path, work: Path) -> Tensor:
    """The frozen head."""
    source = load_domain("sst2", data, work / "features")
    return fit_head(Network(2, 0).states(source.train), source.train.label, source.num_classes)


def places(domains: Domains, by: str, seed: int, head: Tensor) -> Iterator[Place]:
    """Each domain's own adapter, then the merges."""
    made = {name: trained(by, one, 1000 * seed + i, head) for i, (name, one) in enumerate(domains.items())}
    for name, posterior in made.items():
        yield Place(OWN, {name: domains[name]}, posterior)
    for merge, options in MERGES.items():
        yield Place(merge, dict(domains), merge_adapters(list(made.values()), rank="lossless", **options))


def trained(by: str, task: Task, seed: int, head: Tensor) -> Posterior:
    """Posterior of one adapter; AdamW's has h from 256 rows and Grams gathered on the way."""
    network = Network(task.num_classes, seed, head)
    if by == "ivon":
        given = {"noise_cost": NOISE_COST, "lr": LEARNING_RATE}
        return train_ivon(network, task.train, seed, given)[0]
    optimizer = torch.optim.AdamW(network.trained(), lr=LEARNING_RATE, weight_decay=0.0)
    curvature = fit(network, task.train, optimizer, seed)[1]
    hess = squared_gradients(network, task.train, 256)
    return plain_posterior(network, hess, len(task.train), curvature)


def members(domains: Domains, head: Tensor, path: Path) -> dict[str, Tensor]:
    """Log-probabilities ``(3, N, C)`` of the further AdamW runs, by place and split; made once a pair."""
    if path.exists():
        return load_file(path)
    found: dict[str, list[Tensor]] = {}
    for seed in MEMBERS:
        for place in (one for one in places(domains, "adamw", seed, head) if one.whole):
            network = Network.of(place.posterior, 2)
            for split, rows in rows_of(place.serves).items():
                found.setdefault(f"{place.key}.{split}", []).append(network.log_probs(rows))
    tensors = {name: torch.stack(runs) for name, runs in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)
    return tensors


def ensemble(heard: Heard, others: Mapping[str, Tensor]) -> None:
    """The seed's own AdamW run and the further ones."""
    heard.add("ensemble", {s: torch.cat([heard.tensors[f"adamw.{s}"][None], o]) for s, o in others.items()})


def rows_of(domains: Domains) -> dict[str, Rows]:
    """``validation`` of all together, the foreign rows, and ``<domain>_<split>``."""
    first = next(iter(domains.values()))
    rows = {"validation": joined([task.validation for task in domains.values()])}
    rows |= {split: first.splits[split] for split in ("near", "far")}
    return rows | {f"{n}_{split}": task.splits[split] for n, task in domains.items() for split in OWN_SPLITS}


def of_domain(heard: Heard, name: str, rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    """What was said about one domain, by the names that ``score_task`` has, with the labels."""
    found = {}
    for split in SPLITS:
        source = f"{name}_{split}" if split in OWN_SPLITS else split
        found[f"label.{split}"] = rows[source].label
        for key, value in heard.tensors.items():
            stem, own, *end = key.split(".")
            if own == source:
                found[".".join([stem, split, *end])] = value
    return found
