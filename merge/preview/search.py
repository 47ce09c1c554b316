"""Which weighting to merge: predicted loss of thousands of scaled sums, before one of them is built.

``task_arithmetic``: X(w) = scale sum_g w_g W_g, one weight per task (of several seeds of a task the mean); ``linear``
divides by the sum of the weights. ``gradient_matching`` has a reduced model (:mod:`vlora.merge.preview.reduced`) in the
modules where it uses Kronecker curvature; the weightings with a name are solved in full, and what that changed is told.
Where it has sites or h alone, the sum stands in for it, and a note says where. The rank is taken as lossless. With
``mixture`` several seeds of a task are not averaged: each task is a mixture posterior, and its adapters count by their
responsibilities (:mod:`vlora.merge.preview.mode`).

``increase`` is relative: 0 keeps a task as good as its own adapter, 1 makes it as bad as without any adapter; in
between it grows by a power of the quadratic form of :mod:`vlora.merge.preview.model`
(:mod:`vlora.merge.preview.weightings`). Lower is better. What 1 is in nats per training example is told by h, or known
if it is given (``worth``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.adapters.reading import Inputs, read_inputs
from vlora.merge.config import MergeConfig
from vlora.merge.methods.gradient_matching import DEFAULT_TAU
from vlora.merge.preview.build import build_model, solve_in_full
from vlora.merge.preview.model import PreviewModel
from vlora.merge.preview.notes import count_examples, preview_notes
from vlora.merge.preview.result import Preview, short
from vlora.merge.preview.weightings import Family, pareto_front, special_weightings
from vlora.posterior import Posterior

__all__ = ["METHODS", "Preview", "preview"]

METHODS = ("task_arithmetic", "linear", "gradient_matching")
"""Methods whose configurations can be previewed."""
_SEARCH = (40, 128)
_SHORT_SEARCH = (
    20,
    48,
)  # rounds and tries, where every weighting takes a solution of a reduced model per module
_SHORTER_SEARCH = (10, 24)  # where it takes one per start and step


def preview(
    config: MergeConfig,
    inputs: Sequence[Posterior],
    *,
    count: int = 4096,
    low: float = 0.0,
    high: float = 1.5,
    seed: int = 0,
    mixture: float | None = None,
    variance: bool = True,
    worth: Mapping[str, float] | None = None,
    watch: Callable[[Sequence[str]], Any] = list,
) -> Preview:
    """Predict the loss of every task for many weightings of a merge.

    Args:
        config: The merge. Its method says whether weights are normalised; adapters of one ``group`` are one task.
        inputs: The adapters of the configuration, in its order.
        count: How many weightings.
        low: Smallest weight.
        high: Largest weight.
        seed: Of the weightings.
        mixture: Temperature > 0 of mixture posteriors, relative to what a task's adapters are worth: every weighting is
            then merged at the mode of the mixture of each task's adapters (:mod:`vlora.merge.preview.mode`), and the
            weight of each adapter is told. None averages the adapters of a task, as ``vlora merge`` does.
        variance: Whether standard deviations are wanted where all adapters have posteriors; under gradient matching
            they take most of the time.
        worth: Per task, the nats per example by which its loss is lower with its own adapter than without, measured on
            rows like its training rows. It is what an increase of 1 stands for, and what a task counts in the average;
            without it all tasks count alike, and nats are by h, which may be off by a factor.
        watch: Wraps the list of modules while the model is built, for a progress bar.

    Raises:
        ConfigError: The method is no weighted sum, there is one task only, or the box is empty.
        IncompatibleAdaptersError: The adapters do not belong together.
    """
    _check(config, count, low, high, mixture)
    names = config.names()
    for posterior, name in zip(inputs, names, strict=True):
        check_adapter(posterior, name)
    check_together(inputs, names, config.base_model)
    read = read_inputs(inputs, names)
    tasks = [source.group or name for source, name in zip(config.adapters, names, strict=True)]
    tau = _tau(config)
    scale = 1.0 if config.scale is None else config.scale
    warmth = math.inf if mixture is None else mixture
    model = build_model(read, tasks, scale, watch, tau, warmth, (low, high), variance)
    mixed = model.plain is not None
    rounds, tries = _SEARCH if tau is None else _SHORTER_SEARCH if mixed else _SHORT_SEARCH
    shares = _checked_worth(worth, model.tasks)
    family = Family(model, config.method == "linear", low, high, rounds, tries, worth=shares)
    empty = [task for task, base in zip(model.tasks, model.without().tolist(), strict=True) if not base > 0]
    if empty:
        raise ConfigError(
            f"{empty[0]!r} loses nothing without its adapter by its own curvature; leave it out"
        )
    given = _given(config, tasks, model.tasks)
    weights = torch.cat([given[None], special_weightings(len(model.tasks)), family.sobol(count, seed)])
    named = {"given": 0}
    for name, objective in (("best average", family.average), ("best worst task", _worst)):
        weights = torch.cat([weights, family.refine(weights, objective, seed)[None]])
        named[name] = len(weights) - 1
    increase, std = family.relative(weights)
    check = (
        {} if tau is None or not model.cores else _correct(family, read, weights, named, increase, std, tau)
    )
    members = {task: [names[i] for i in own] for task, own in zip(model.tasks, model.members, strict=True)}
    return Preview(
        model.tasks,
        members,
        family.normalised(weights),
        increase,
        std,
        model.without(),
        count_examples(read, model),
        pareto_front(increase),
        named,
        preview_notes(config, read, model, check, worth is not None),
        _shares(model, family.normalised(weights)) if mixed else None,
        check,
        shares,
    )


def _correct(
    family: Family,
    inputs: Inputs,
    weights: Tensor,
    named: Mapping[str, int],
    increase: Tensor,
    std: Tensor | None,
    tau: float,
) -> dict[str, float]:
    """Solve the named weightings and two more in full, put that in place, and say how far off the reduction was."""
    places = [*named.values(), len(weights) // 3, len(weights) // 2]
    shares = family.model.coefficients(family.normalised(weights[places]))
    solved = solve_in_full(inputs, family.model, shares, tau)
    better, deviations = family.relative(weights[places], solved)
    check = {"solved": float(len(places)), "increase": _furthest(increase[places], better)}
    increase[places] = better
    if std is not None and deviations is not None:
        check["std"] = _furthest(std[places], deviations)
        std[places] = deviations
    return check


def _worst(increase: Tensor) -> Tensor:
    return increase.amax(-1)


def _checked_worth(worth: Mapping[str, float] | None, tasks: Sequence[str]) -> Tensor | None:
    if worth is None:
        return None
    unlike = sorted(set(worth) ^ set(tasks))
    if unlike:
        raise ConfigError(
            f"worth: expected one number for each of {', '.join(tasks)}; {unlike[0]!r} is "
            + ("missing" if unlike[0] in tasks else "no task")
        )
    wrong = next((task for task in tasks if not 0 < worth[task] < math.inf), None)
    if wrong is not None:
        raise ConfigError(
            f"worth: {wrong!r} is worth {worth[wrong]:g} nats, expected more than 0; an adapter that its own task is "
            "no better with has nothing to lose, leave it out"
        )
    return torch.tensor([worth[task] for task in tasks], dtype=torch.float64)


def _furthest(first: Tensor, second: Tensor) -> float:
    return short((first - second).abs().max().item())


def _shares(model: PreviewModel, weights: Tensor) -> Tensor:
    """Weight of every adapter, task by task."""
    return model.coefficients(weights)[:, [i for own in model.members for i in own]]


def _check(config: MergeConfig, count: int, low: float, high: float, mixture: float | None) -> None:
    if config.method not in METHODS:
        raise ConfigError(
            f"a preview is of weighted sums ({', '.join(METHODS)}), and {config.method} is none; preview with "
            "method=task_arithmetic"
        )
    tasks = {source.group or i for i, source in enumerate(config.adapters)}
    if len(tasks) < 2:
        raise ConfigError("a preview weighs tasks against each other; give adapters of at least two")
    if config.module_options or any(source.module_weights for source in config.adapters):
        raise ConfigError(
            "a preview gives every task one weight; leave module_weights and module_options out"
        )
    if config.ancestor is not None:
        raise ConfigError(
            "a preview is of updates of the base model, not of sums relative to an ancestor; leave ancestor out"
        )
    if config.prior is not None:
        raise ConfigError("a preview knows the isotropic prior only; leave prior out")
    if config.keeps:
        raise ConfigError("a preview does not know what keep holds at the base model; leave keep out")
    if count < 1 or not -math.inf < low < high < math.inf:
        raise ConfigError(
            f"expected count >= 1 and finite low < high, got count {count}, low {low:g}, high {high:g}"
        )
    if mixture is not None and not mixture > 0:
        raise ConfigError(
            f"mixture is a temperature > 0 (.01: within 1 % of what an adapter is worth), got {mixture:g}"
        )
    if mixture is not None and len(tasks) == len(config.adapters):
        raise ConfigError(
            "mixture is for several adapters of one task; give them one group, or leave mixture out"
        )
    if config.method == "linear" and low < 0:
        raise ConfigError(f"linear divides by the sum of the weights; give low >= 0, got {low:g}")


def _tau(config: MergeConfig) -> float | None:
    """Prior of gradient matching where the preview can solve it; None for sums."""
    solved = config.method == "gradient_matching" and config.curvature in (None, "auto", "kronecker")
    if not solved or config.negative == "remove":
        return None
    return DEFAULT_TAU if config.tau is None else config.tau


def _given(config: MergeConfig, tasks: Sequence[str], distinct: Sequence[str]) -> Tensor:
    """The configuration's own weights per task; of a group, the mean over its members."""
    own = [[s.weight for s, t in zip(config.adapters, tasks, strict=True) if t == task] for task in distinct]
    return torch.tensor([sum(w) / len(w) for w in own], dtype=torch.float64)
