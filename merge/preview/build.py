"""From adapters to the model of a preview: one pass over the modules, and another for what is to be solved in full."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlora.merge.adapters.reading import Inputs
from vlora.merge.curvature.quadratic import Metric, metric_of, product
from vlora.merge.methods.gradient_matching import choose_curvature
from vlora.merge.preview.matching import full_losses, matching_core
from vlora.merge.preview.matching_noise import matching_noise, matching_variance
from vlora.merge.preview.mixture import one_of_each
from vlora.merge.preview.model import PreviewModel, Solved
from vlora.merge.preview.noise import linear_noise, square_noise
from vlora.merge.preview.reduced import Nodes, ReducedCore, make_nodes, reduced_core
from vlora.merge.preview.spread import Spread, noise_weightings
from vlora.merge.update import LoraUpdate

__all__ = ["build_model", "solve_in_full"]

Watch = Callable[[Sequence[str]], Iterable[str]]
"""Wraps the list of modules, for a progress bar."""


def build_model(
    inputs: Inputs,
    tasks: Sequence[str],
    scale: float = 1.0,
    watch: Watch = list,
    tau: float | None = None,
    mixture: float = math.inf,
    box: tuple[float, float] = (0.0, 1.5),
    variance: bool = True,
) -> PreviewModel:
    """Add up the forms over all modules.

    Args:
        inputs: The adapters.
        tasks: Task of every adapter; adapters of one task are members of its mixture.
        scale: Factor on the whole sum.
        watch: Wraps the list of modules, for a progress bar.
        tau: Not None: gradient matching with this prior, in the modules where it would use Kronecker curvature.
        mixture: Relative temperature of the mixtures; inf averages the adapters of a task.
        box: Smallest and largest weight; gradient matching is solved for weightings from there.
        variance: Whether the variance is wanted too, which takes most of the time under gradient matching.
    """
    count = len(inputs.posteriors)
    names = list(dict.fromkeys(tasks))
    members = [[i for i, task in enumerate(tasks) if task == name] for name in names]
    mixed = not math.isinf(mixture) and len(names) < count
    stochastic = variance and all(p.has_hess for p in inputs.posteriors)
    absolute, temperatures = _absolute(inputs), _temperatures(inputs)
    sums = _Sums.empty(count, stochastic, mixed)
    matching = None if tau is None else _Matching.of(members, count, tau, scale, box, mixed, stochastic)
    for module in watch(inputs.modules):
        updates = inputs.updates(module)
        here = [i for i, u in enumerate(updates) if u.rank]
        if matching is not None and _is_matched(updates, here):
            given = [updates[i] for i in here], [absolute[i] for i in here]
            matching.add(here, *given, [temperatures[i] for i in here])
        else:
            sums.add(updates, absolute, temperatures)
    noise = (sums.linear, 0.5 * sums.square) if stochastic else (None, None)
    cores = [] if matching is None else matching.cores
    model = PreviewModel(names, members, 0.5 * sums.forms, *noise, scale, cores)
    if mixed:
        model = replace(model, plain=sums.plain, tau=1.0 if tau is None else tau, mixture=mixture)
    return model if matching is None else matching.with_spread(model)


def solve_in_full(
    inputs: Inputs, model: PreviewModel, shares: Tensor, tau: float, watch: Watch = list
) -> Solved:
    """Losses and variances in the modules of gradient matching, without any reduction.

    Args:
        inputs: The adapters.
        model: Of the same adapters; its scale, and whether there are variances, is what counts here.
        shares: Weight of every adapter in the merge. Shape ``(k, P)``.
        tau: Prior precision of the merge.
        watch: Wraps the list of modules, for a progress bar.
    """
    absolute, temperatures = _absolute(inputs), _temperatures(inputs)
    losses = torch.zeros_like(shares)
    variances = None if model.spread is None else torch.zeros_like(shares)
    for module in watch(inputs.modules):
        updates = inputs.updates(module)
        here = [i for i, u in enumerate(updates) if u.rank]
        if not _is_matched(updates, here):
            continue
        given = [updates[i] for i in here], [absolute[i] for i in here], shares[:, here], tau, model.scale
        losses[:, here] += full_losses(*given)
        if variances is not None:
            cool = [temperatures[i] for i in here]
            variances[:, here] += matching_variance(*given, temperatures=cool)
    return losses, variances


@dataclass
class _Sums:
    """What the modules that are summed add up to."""

    forms: Tensor
    linear: Tensor
    square: Tensor
    plain: Tensor
    stochastic: bool
    mixed: bool

    @classmethod
    def empty(cls, count: int, stochastic: bool, mixed: bool) -> "_Sums":
        zeros = torch.zeros(2, count, count, count, dtype=torch.float64)
        linear = torch.zeros(count, count, count, count, dtype=torch.float64)
        plain = torch.zeros(count, count, dtype=torch.float64)
        return cls(zeros[0], linear, zeros[1], plain, stochastic, mixed)

    def add(
        self, updates: Sequence[LoraUpdate], absolute: Sequence[bool], temperatures: Sequence[float]
    ) -> None:
        """One module."""
        drawn = [_at_temperature(u, t) for u, t in zip(updates, temperatures, strict=True)]
        if self.mixed:
            self.plain += _products(Metric(None, None, 1.0, "isotropic"), updates)
        for t, own in enumerate(updates):
            if not own.rank:  # nothing is known of what this module does to the task
                continue
            metric = metric_of(own, absolute[t])
            self.forms[t] += _products(metric, updates)
            if self.stochastic:
                self.linear[t] += linear_noise(metric, drawn)
                self.square[t] += square_noise(metric, drawn)


@dataclass
class _Matching:
    """Modules of gradient matching, one after the other."""

    nodes: Nodes
    weightings: Tensor
    """Where the noise is worked out, in weights. Shape ``(p, d)``."""
    shares: Tensor
    """The same per adapter. Shape ``(p, P)``."""
    further: list[list[float]]
    tau: float
    scale: float
    products: Tensor | None
    cores: list[ReducedCore] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        members: Sequence[Sequence[int]],
        count: int,
        tau: float,
        scale: float,
        box: tuple[float, float],
        mixed: bool,
        stochastic: bool,
    ) -> "_Matching":
        """Choose the weightings: one weight per task, or under mixtures one per adapter."""
        low, high = (min(0.0, box[0]), max(0.0, box[1])) if mixed else box
        spread = torch.eye(count, dtype=torch.float64)
        if not mixed:
            spread = spread.new_zeros(len(members), count)
            for task, own in enumerate(members):
                spread[task, list(own)] = 1.0 / len(own)
        further = one_of_each(members, count) if mixed else []
        nodes = make_nodes(len(spread), max(abs(low), abs(high)), further)
        weightings = noise_weightings(len(spread), low, high)
        shares, size = weightings @ spread, len(weightings)
        products = torch.zeros(count, size, size, dtype=torch.float64) if stochastic else None
        nodes = Nodes(nodes.split @ spread, nodes.whole @ spread)
        return cls(nodes, weightings, shares, further, tau, scale, products)

    def add(
        self,
        here: list[int],
        updates: Sequence[LoraUpdate],
        absolute: Sequence[bool],
        temperatures: Sequence[float],
    ) -> None:
        """One module, with the adapters that have it."""
        further = [[row[i] for i in here] for row in self.further]
        core = matching_core(updates, here, absolute, self.tau, further)
        self.cores.append(reduced_core(core, self.nodes.of(here)))
        if self.products is not None:
            given = updates, absolute, self.shares[:, here], self.tau, self.scale
            self.products[here] += matching_noise(*given, temperatures=temperatures)

    def with_spread(self, model: PreviewModel) -> PreviewModel:
        """The model with the noise of its cores."""
        if self.products is None or not self.cores:
            return model
        losses = model.matched(torch.cat([self.shares, torch.zeros_like(self.shares[:1])]))
        return replace(model, spread=Spread.of(self.weightings, self.products, losses[:-1], losses[-1]))


def _is_matched(updates: Sequence[LoraUpdate], here: Sequence[int]) -> bool:
    """Whether gradient matching would use Kronecker curvature."""
    return choose_curvature([updates[i] for i in here]) == "kronecker"


def _absolute(inputs: Inputs) -> list[bool]:
    """Whether each adapter has h everywhere, so that its losses have a scale."""
    return [
        all(inputs.update(i, m).precision_b is not None for m in layout)
        for i, layout in enumerate(inputs.layouts)
    ]


def _temperatures(inputs: Inputs) -> list[float]:
    """N / ess of every adapter: how wide its posterior is drawn; 1 where it is not one number."""
    return [posterior.meta.temperature or 1.0 for posterior in inputs.posteriors]


def _at_temperature(update: LoraUpdate, temperature: float) -> LoraUpdate:
    """The update with the precisions of its draws."""
    precisions = (update.precision_b, update.precision_a)
    b, a = (None if p is None else p / temperature for p in precisions)
    return replace(update, precision_b=b, precision_a=a)


def _products(metric: Metric, updates: Sequence[LoraUpdate]) -> Tensor:
    rows = [[product(metric, first, second) for second in updates] for first in updates]
    return torch.tensor(rows, dtype=torch.float64)
