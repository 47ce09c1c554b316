r"""How much of what the prior left open about an answer have the taught facts settled?

    left = tr(J Sigma J^T) / tr(J J^T / alpha),      Sigma = (F + alpha I)^-1

of the 24 values' scores without the shift that all share: 0 settled, 1 untouched. F is the Fisher matrix of
``linearised.py`` over all tensors at once (256 eigenvectors; 1,024 for a merge). Unlike the variance, it does not
know how long a question's gradient is, and unlike information not how sure the answer is. alpha is a twentieth of
tr F^2 / tr F, as in the package (``left, own``), or one of ``ALPHAS``. On the same gradients beside it: the information
under the covariance and the width of the other parts. ``_base``: times the entropy of the base model.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.closed_world import arms
from benchmarks.closed_world.groups import Group
from benchmarks.closed_world.linearised import EIGENVECTORS, Projected, whole_fisher, widest
from benchmarks.closed_world.model import Asked, wearing
from benchmarks.closed_world.scores import detection
from benchmarks.closed_world.ways import METHODS
from vlora.eval.metrics.uncertainty import entropy
from vlora.posterior import Posterior

__all__ = ["ALPHAS", "units"]

ALPHAS = tuple(10.0**k for k in range(-1, 6))
"""Prior precisions that were tried on the tuning world; none makes it a score for strangers."""
DIRECTIONS = {"a": EIGENVECTORS, "ab": 4 * EIGENVECTORS}


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """One unit for AdamW's adapter alone, one for IVON's, one for the merge of AdamW's two."""
    group = Group(seed, "ab", optimizers, work)
    return {
        "left_adamw": partial(_unit, group, "adamw", "a"),
        "left_ivon": partial(_unit, group, "ivon", "a"),
        "left_merged": partial(_unit, group, "adamw", "ab"),
    }


def _unit(group: Group, source: str, adapters: str) -> dict[str, Any]:
    setting = group.setting(adapters)
    asked, posterior = setting.asked, _posterior(group, source, adapters)
    items = Asked(asked)
    with wearing(posterior) as model:
        mean = items.scores(model).log_softmax(-1).numpy()
        whole = whole_fisher(model, setting.train, DIRECTIONS[adapters])
        projected = Projected.of(whole, items.gradients(model))
    said, width = widest(mean, projected.covariance().numpy(), asked)
    base = entropy(_base(setting))
    scores = {"entropy": entropy(mean), "information": said.uncertainty()["mutual_information"]}
    alphas = {"own": whole.share_precision} | {f"{alpha:g}": alpha for alpha in ALPHAS}
    scores |= {f"left, {name}": _left(projected, alpha) for name, alpha in alphas.items()}
    scores |= {f"{name}_base": value * base for name, value in scores.items()}
    values = whole.values[[0, len(whole.values) // 2, -1]].tolist()
    found = {"auroc": detection(scores, asked), "width": width, "eigenvalues": values, "own": alphas["own"]}
    return {"world": group.seed, "source": source, "adapters": adapters, **found}


def _left(projected: Projected, alpha: float) -> np.ndarray:
    """The share, ``(N,)``."""
    after = projected.covariance(prior=alpha).diagonal(dim1=1, dim2=2).sum(1)
    before = projected.square.diagonal(dim1=1, dim2=2).sum(1) / alpha
    return (after / before).numpy()


def _posterior(group: Group, source: str, adapters: str) -> Posterior:
    return group.inputs(source)[0] if adapters == "a" else group.merged(source, METHODS["equal_votes"])


def _base(setting: Any) -> np.ndarray:
    """What the model says without an adapter, log-probabilities ``(N, K)``."""
    return arms.said("base", setting)["mean"].log_probs
