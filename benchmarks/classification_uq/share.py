r"""The share that is left at the precision of the directions themselves: nothing of the prior enters.

    left = tr(J (F + alpha I)^-1 J^T) / tr(J J^T / alpha),      alpha = tr F^2 / (20 tr F)

``Leading.share_left`` as it is by default, of the whole Fisher matrix F = G^T G over all tensors at once, and without
its eigenvectors: with the Gram matrix K = G G^T of its gradients,

    left = 1 - tr(J G^T (K + alpha I)^-1 G J^T) / tr(J J^T),      tr F = tr K,  tr F^2 = |K|^2

``left.py`` has alpha from ``IVON.auto``, whose posterior is cold: ess, and with it ess times weight_decay, is large
where noise costs little, and there F is small, since the rows are learnt. On ``trec`` that alpha is 1.8 times
tr F^2 / tr F, on tasks of two classes a tenth of it, so that on ``trec`` hardly anything counts as known. Practice rows
chose the twentieth (seed 100; calibration rows against ``tinystories_1k``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.classification_uq.arms import distances
from benchmarks.classification_uq.leading import fisher_gradients, jacobians
from benchmarks.classification_uq.left import tested, trained
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.practice import pairs
from benchmarks.classification_uq.scores import GATE, separation
from benchmarks.classification_uq.tasks import Task
from benchmarks.posterior_quality.tasks import Rows
from vlora.posterior import Posterior

__all__ = ["MULTIPLES", "Gram", "measure_share", "practise_share"]

MULTIPLES = (0.003, 0.01, 0.03, 0.05, 0.1, 0.3, 1.0)
"""Of tr F^2 / tr F, for practice rows."""
CHOSEN = 0.05
SPLITS = ("clean", "ambiguous", "near", "far")


@dataclass(frozen=True)
class Gram:
    """The Fisher matrix by its gradients.

    Attributes:
        gradients: G, float32 ``(M, P)``.
        kernel: G G^T, float64 ``(M, M)``.
    """

    gradients: Tensor
    kernel: Tensor

    @classmethod
    def of(cls, gradients: Iterator[Mapping[str, Tensor]]) -> "Gram":
        """From gradients by key, ``(m, *tensor)`` each."""
        rows = torch.cat([_flat(chunk, 1) for chunk in gradients])
        return cls(rows, (rows @ rows.T).double())

    @property
    def typical(self) -> float:
        """Tr F^2 / tr F."""
        return float(self.kernel.square().sum() / self.kernel.trace())

    def shares(
        self,
        chunks: Iterator[Mapping[str, Tensor]],
        precisions: Sequence[float],
        *,
        centred: bool = False,
    ) -> list[Tensor]:
        """Share left of every row at every precision, each ``(N,)``.

        Args:
            chunks: Gradients ``(n, C, *tensor)`` of the logits by key.
            precisions: Prior precisions.
            centred: Whether the gradients are without the shift that all logits share already.
        """
        crossed, total = [], []
        for chunk in chunks:
            jacobian = _flat(chunk, 2)
            if not centred:
                jacobian = jacobian - jacobian.mean(1, keepdim=True)
            crossed.append((jacobian @ self.gradients.T).double())
            total.append(jacobian.square().sum((1, 2)).double())
        found, size = torch.cat(crossed), torch.cat(total)
        eye = torch.eye(len(self.kernel), dtype=torch.float64)
        out = []
        for precision in precisions:
            root = torch.linalg.cholesky(self.kernel + precision * eye)
            white = torch.linalg.solve_triangular(root, found.flatten(0, 1).T, upper=False)
            out.append(1 - white.square().sum(0).view(found.shape[:2]).sum(1) / size)
        return out


def measure_share(task: Task, seed: int, by: str) -> dict[str, Any]:
    """What the share separates on test rows; for AdamW with the distance of the same run."""
    name, network, posterior, prior = _of(task, seed, by)
    gram = Gram.of(fisher_gradients(network, posterior, task.train))
    rows = {split: task.splits[split] for split in ("validation", *SPLITS)}
    shares = _shares(gram, network, posterior, rows, [CHOSEN * gram.typical])
    own = tested({split: found[0].numpy() for split, found in shares.items()})
    found: dict[str, Any] = {
        f"{name}_leading": {"separation": {"left": separation(own)}, "declined": declined(own)}
    }
    if name == "laplace":
        away = tested({split: one.numpy() for split, one in distances(network, task.train, rows).items()})
        found["distance"] = {"separation": {"distance": separation(away)}, "declined": declined(away)}
    return {"task": task.name, "seed": seed, "facts": {name: _facts(gram, prior, task)}, "scores": found}


def declined(score: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Share of rows by split that a gate declines: above the ``GATE`` quantile of the validation rows."""
    limit = float(np.quantile(score["validation"], GATE))
    return {split: float((own > limit).mean()) for split, own in score.items() if split != "validation"}


def practise_share(task: Task, seed: int, by: str) -> dict[str, Any]:
    """The same on practice rows, at multiples of tr F^2 / tr F and at the prior precision of ``IVON.auto``."""
    name, network, posterior, prior = _of(task, seed, by)
    gram = Gram.of(fisher_gradients(network, posterior, task.train))
    rows = {split: task.splits[split] for split in ("calibration", "practice")}
    names = [f"{name}, {factor:g}" for factor in MULTIPLES] + [f"{name}, prior"]
    precisions = [*(factor * gram.typical for factor in MULTIPLES), prior]
    own, foreign = _shares(gram, network, posterior, rows, precisions).values()
    found = {text: pairs(a.numpy(), b.numpy()) for text, a, b in zip(names, own, foreign, strict=True)}
    if name == "laplace":
        away = [one.numpy() for one in distances(network, task.train, rows).values()]
        found["distance"] = pairs(*away)
    return {"task": task.name, "seed": seed, "facts": {name: _facts(gram, prior, task)}, "scores": found}


def _of(task: Task, seed: int, by: str) -> tuple[str, Network, Posterior, float]:
    """Name, network, posterior and the prior precision of IVON, of one trainer."""
    return next(one for one in trained(task, seed) if one[0] == by)


def _shares(
    gram: Gram,
    network: Network,
    posterior: Posterior,
    rows: Mapping[str, Rows],
    precisions: Sequence[float],
) -> dict[str, list[Tensor]]:
    """By split, at every precision."""
    return {
        split: gram.shares((chunk for _, chunk in jacobians(network, posterior, own)), precisions)
        for split, own in rows.items()
    }


def _facts(gram: Gram, prior: float, task: Task) -> dict[str, Any]:
    """The precisions and the trace of F, by row."""
    trace = float(gram.kernel.trace()) / len(task.train)
    return {"prior": prior, "typical": gram.typical, "trace_per_row": trace}


def _flat(gradients: Mapping[str, Tensor], start: int) -> Tensor:
    """All tensors of every gradient in one row."""
    return torch.cat([gradients[key].float().flatten(start) for key in sorted(gradients)], -1)
