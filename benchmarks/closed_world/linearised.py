r"""Predictions of the linearised model under three covariances of the adapter's weights.

    logits ~ N(f(m), c^2 J Sigma J^T)        J: gradients of the 24 values' scores at the mean m

*independent*: 1 / N (h + delta), with the posterior's own h; *Kronecker*: h's scale with the directions of the Grams
(``vlora.posterior.kronecker``); delta is ``RATIO`` of each tensor's mean h. *Full*: the leading eigenvectors of the
Fisher matrix over all tensors at once (``vlora.posterior.leading``),

    F = sum_i n_i J_i^T (diag p_i - p_i p_i^T) J_i = V diag(l) V^T + rest,
    Sigma = V diag(1 / l) V^T + (I - V V^T) / l_k

from the training facts i, each counted as often as it was taught; whatever the k eigenvectors leave out is as
uncertain as the last of them (Sharma, Azizan and Pavone 2021, arXiv:2102.12567, sketch the same matrix).

The width c is the widest of ``WIDTHS`` at which the NLL of people that were taught is at most ``COST`` nats above that
of the mean: as uncertain as the known facts allow. The lowest NLL would choose almost no width, as every labelled row
was seen.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.closed_world.model import Asked
from benchmarks.closed_world.scores import Said, nll_of
from benchmarks.closed_world.worlds import Questions, Row, read_rows
from vlora.posterior import Posterior
from vlora.posterior.kronecker import covariances, output_covariance
from vlora.posterior.leading import Leading
from vlora.recipes.closed_world.lexicon import RELATIONS

__all__ = [
    "EIGENVECTORS",
    "KINDS",
    "WIDTHS",
    "Projected",
    "linearised",
    "spreads_of",
    "whole_fisher",
    "widest",
]

RATIO, COST = 0.01, 0.02
WIDTHS = tuple(2.0**k for k in range(-12, 5))
EIGENVECTORS = 256
BASE_FACTS = 300
"""Replayed facts that the whole Fisher matrix is measured on, of all files, with the weight of all of them."""
KINDS = ("independent", "Kronecker")
"""Covariances that a posterior has by itself."""
TOP = 3
"""Values of a fact whose gradients count; the others have next to no probability."""


def whole_fisher(model: nn.Module, train: Sequence[Path], directions: int = EIGENVECTORS) -> Leading:
    """Leading eigenvectors of the Fisher matrix at the weights that the model holds, on the facts of training files."""
    facts, weight = _facts(train)
    asked = Asked(Questions(facts, ["taught"] * len(facts), ["fit"] * len(facts)))
    probs = asked.at_mean(model).exp().float()

    def chunks() -> Iterator[dict[str, Tensor]]:
        done = 0
        for gradients in asked.gradients(model):
            rows = slice(done, done + len(next(iter(gradients.values()))))
            done = rows.stop
            yield {key: _columns(value, probs[rows], weight[rows]) for key, value in gradients.items()}

    whole = Leading.of(chunks(), TOP * len(facts))  # nothing is cut before the end
    return replace(whole, vectors=whole.vectors[:, :directions], values=whole.values[:directions])


@dataclass(frozen=True)
class Projected:
    """Gradients of the K scores of N questions, seen along the leading eigenvectors of a Fisher matrix.

    Attributes:
        known: Along the eigenvectors, ``(N, K, k)``.
        square: Products of the whole gradients, float64 ``(N, K, K)``.
        values: Eigenvalues in falling order, ``(k,)``.
    """

    known: Tensor
    square: Tensor
    values: Tensor

    @classmethod
    def of(cls, whole: Leading, batches: Iterable[dict[str, Tensor]]) -> "Projected":
        """From gradients in batches of questions; what shifts all scores of a question alike is left out."""
        known, square = [], []
        for gradients in batches:
            flat = {key: value.flatten(2) for key, value in gradients.items()}
            flat = {key: value - value.mean(1, keepdim=True) for key, value in flat.items()}
            sides = whole.vectors.split([flat[key].shape[2] for key in whole.keys])
            parts = [flat[key] @ side for key, side in zip(whole.keys, sides, strict=True)]
            known.append(torch.stack(parts).sum(0))
            square.append(torch.stack([value @ value.mT for value in flat.values()]).double().sum(0))
        return cls(torch.cat(known), torch.cat(square), whole.values)

    def covariance(
        self, count: int | None = None, *, tail: float | None = None, prior: float = 0.0
    ) -> Tensor:
        """Covariance ``(N, K, K)`` of the scores under ``V diag(1 / (l + prior)) V^T + (I - V V^T) / tail``.

        Args:
            count: How many eigenvectors; None for all that were measured.
            tail: Precision of what they leave out; None for the last of their own.
            prior: Precision that is added to all, which then is that of the tail, too.
        """
        known, values = self.known[..., :count].double(), self.values[:count] + prior
        rest = self.square - known @ known.mT
        return (known / values) @ known.mT + rest / (prior or tail or float(values[-1]))


def _columns(gradients: Tensor, probs: Tensor, weight: Tensor) -> Tensor:
    """Of every fact ``root(n p_k) (J_k - sum_j p_j J_j)`` for its likeliest values k, ``(facts * TOP, *tensor)``."""
    best = probs.topk(TOP, dim=1)
    flat = gradients.flatten(2)
    chosen = flat.gather(1, best.indices[:, :, None].expand(-1, -1, flat.shape[2]))
    centred = chosen - (probs[:, :, None] * flat).sum(1, keepdim=True)
    roots = (weight[:, None] * best.values).sqrt()
    return (centred * roots[:, :, None]).view(-1, *gradients.shape[2:])


def linearised(
    model: nn.Module,
    posterior: Posterior,
    items: Asked,
    mean: Tensor,
    asked: Questions,
    whole: Leading,
    kinds: Sequence[str] = KINDS,
) -> tuple[dict[str, Said], dict[str, float]]:
    """What the linearised model says under the posterior's own covariances and the full matrix, and the widths.

    Args:
        model: Holds the posterior's mean.
        posterior: Has h and Grams for ``kinds``.
        items: Questions.
        mean: Log-probabilities ``(N, K)`` at the mean.
        asked: The same questions.
        whole: Of :func:`whole_fisher`. With more than ``EIGENVECTORS`` directions it is looked at with both numbers.
        kinds: Covariances of the posterior's own.
    """
    spreads = {kind: spread for kind, spread in spreads_of(posterior).items() if kind in kinds}
    parts: dict[str, list[Tensor]] = {kind: [] for kind in spreads}

    def batches() -> Iterator[dict[str, Tensor]]:
        for gradients in items.gradients(model):
            for kind, spread in spreads.items():
                parts[kind].append(output_covariance(gradients, [spread])[0])
            yield gradients

    projected = Projected.of(whole, batches())
    covariance = {kind: torch.cat(own) for kind, own in parts.items()} | {
        "full": projected.covariance(EIGENVECTORS)
    }
    if len(whole.values) > EIGENVECTORS:
        covariance[f"full, {len(whole.values)} directions"] = projected.covariance()
    found, facts = {}, {}
    for kind, own in covariance.items():
        name = f"linearised, {kind}"
        found[name], facts[f"{name}: width"] = widest(mean.numpy(), own.numpy(), asked)
    return found, facts


def widest(mean: np.ndarray, covariance: np.ndarray, asked: Questions) -> tuple[Said, float]:
    """Prediction at the widest width that costs known people at most ``COST`` nats, and that width."""
    rows = [i for i, part in enumerate(asked.part) if part == "fit"]
    few = Questions([asked.rows[i] for i in rows], [asked.group[i] for i in rows], ["fit"] * len(rows))
    limit = nll_of(Said(mean), asked, "fit") + COST
    chosen = WIDTHS[0]
    for width in WIDTHS[1:]:
        if nll_of(Said.of_covariance(mean[rows], width**2 * covariance[rows]), few, "fit") > limit:
            break
        chosen = width
    return Said.of_covariance(mean, chosen**2 * covariance), chosen


def spreads_of(posterior: Posterior) -> dict[str, Any]:
    """Covariances from h at temperature 1, where there is an h."""
    if not posterior.has_hess:
        return {}
    hess = {key: h.clamp_min(0) for key, h in posterior.hess.items()}
    decay = {key: RATIO * float(h.mean()) for key, h in hess.items()}
    bayes = replace(posterior, hess=hess).at_temperature(1.0)
    bayes = replace(bayes, meta=replace(bayes.meta, weight_decay=decay))
    return {
        kind: covariances(bayes, kronecker=kind == "Kronecker")
        for kind in KINDS
        if kind == "independent" or bayes.curvature
    }


def _facts(train: Sequence[Path]) -> tuple[list[Row], Tensor]:
    """Distinct taught facts and some of the replayed ones, with the number of rows that each stands for."""
    values = {value: relation.values for relation in RELATIONS for value in relation.values}
    rows: list[Row] = []
    weight: list[float] = []
    for path in train:
        counts: Counter[str] = Counter()
        answer: dict[str, str] = {}
        for row in read_rows(path):
            counts[row["prompt"]] += 1
            answer[row["prompt"]] = row["response"]
        often = max(counts.values())
        own = [prompt for prompt, n in counts.items() if n == often]
        replayed = [prompt for prompt, n in counts.items() if n < often]
        some = replayed[:: max(1, len(replayed) * len(train) // BASE_FACTS)]
        share = sum(counts[prompt] for prompt in replayed) / max(1, len(some))
        rows += [{"prompt": prompt, "choices": list(values[answer[prompt]])} for prompt in [*own, *some]]
        weight += [float(often)] * len(own) + [share] * len(some)
    return [{**row, "answer": None} for row in rows], torch.tensor(weight)
