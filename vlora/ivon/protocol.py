"""The protocol of an optimizer whose parameters hold a posterior draw while gradients are taken, else the mean.

``train()`` puts a draw into the parameters, ``step()`` reads the gradients taken there, updates and puts the new mean
back: what transformers' Trainer and accelerate call by themselves. ``sampled_params`` is the same as a context, for
several draws in a step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vlora.ivon.distributed import NoiseRanks
from vlora.ivon.draws import DrawAverages
from vlora.ivon.faults import PriorWatch, SkipWatch
from vlora.ivon.gradients import Entry, drawn_from, drawn_products, finite_norm, gather_entries, overflowed
from vlora.ivon.ranges import require_usable
from vlora.ivon.rounding import NoiseCheck
from vlora.ivon.sampling import advance, starts_step, take_grads, write_draw, write_mean
from vlora.ivon.shards import refuse_replaced
from vlora.ivon.turns import mean_loss, require_free_for_context, require_free_for_train

__all__ = ["DrawingOptimizer"]


class DrawingOptimizer(torch.optim.Optimizer):
    """Draws, gradients, steps; a subclass has the settings in its groups and the update in ``_update``."""

    # GradScaler then calls step() after an overflow too, which puts the mean back.
    _step_supports_amp_scaling = True

    def _update(
        self, entries: list[Entry], norm: float, scale: Tensor | None, averages: DrawAverages | None
    ) -> None:
        """Update state and parameters.

        Args:
            entries: Parameters with finite gradients.
            norm: Of all gradients together, as they are.
            scale: Loss scale that is still on the gradients; None for none.
            averages: Products of draws collected earlier; None if the parameters hold the only draw.
        """
        raise TypeError(f"{type(self).__name__} has no update")

    @property
    def holds_sample(self) -> bool:
        """Whether parameters hold a posterior draw now (True) or the mean (False)."""
        return any(group["sampled"] for group in self.param_groups)

    @property
    def skipped_steps(self) -> int:
        """Steps skipped so far because of a non-finite gradient (``skip_nonfinite=True``)."""
        return max((group["skipped_steps"] for group in self.param_groups), default=0)

    def train(self) -> None:
        """Put this step's posterior draw into the parameters; does nothing if it is there already.

        All micro-batches of one optimizer step see the same draw, and so do those after an ``eval()`` in between.

        Raises:
            TrainingError: If draws of ``sampled_params`` wait for ``step()``, ``mc_samples`` asks for several, or a
                setting that makes draws or steps NaN was written into a group, such as a ``weight_decay`` below -h.
        """
        if self._in_context:
            return
        require_free_for_train(self._averages.count, self.defaults["mc_samples"])
        self.noise_ranks.prepare(self.param_groups, self.defaults["noise"])
        self._draw("train")

    def eval(self) -> None:
        """Put the mean into the parameters, at any time; does nothing if it is there already."""
        write_mean(self.param_groups, self.state)

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        """Hold one fresh posterior draw in the parameters inside the context; what was there returns at its end.

        With ``train=True`` the gradients of the context (summed over its backward passes) enter the mean over
        contexts that the next ``step()`` uses, and ``p.grad`` is that mean afterwards, for clipping and the like.
        Gradients left over from earlier steps are dropped; ``zero_grad`` inside is harmless.

        Args:
            train: Collect the gradients for ``step()``. False for predictions with a posterior draw.

        Raises:
            TrainingError: If contexts are nested, or ``train=True`` follows ``train()`` without a ``step()``.
        """
        require_free_for_context(self._in_context, train, self.holds_sample, self.noise_ranks.per_rank)
        stream = "train" if train else "eval"
        resume, self._in_context = self.holds_sample, True
        self.eval()
        stashed = take_grads(self.param_groups) if train else {}
        try:
            self._draw(stream)
            yield
            if train:
                self._collect()
                stashed = {}
        finally:
            self.eval()
            for param, grad in stashed.items():
                param.grad = grad
            advance(self.param_groups, stream)
            self._in_context = False
            if resume:
                self._draw("train")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update momentum, h and mean from ``p.grad``; afterwards the parameters hold the new mean.

        Args:
            closure: Clears gradients, computes the loss and calls backward; run once per draw, ``mc_samples`` times.

        Returns:
            Mean loss over the draws if ``closure`` returns losses, else None.

        Raises:
            TrainingError: If no draw was made since the last step, a gradient is not finite, or ``weight_decay`` was
                lowered below ``-h``; the parameters then hold the mean, and mean, momentum and h are as before.
        """
        refuse_replaced(self.param_groups, self._given)
        loss = None if closure is None else self._run_closure(closure)
        collected = self._averages.count > 0
        if not collected and not starts_step(self.param_groups, self.state):
            return loss
        try:
            self._prior_watch.look(self.param_groups, self.state)
            averages = self._averages if collected else self.noise_ranks.reduced()
            if averages is not None:
                averages.require_grads()
            if not overflowed(self.param_groups, getattr(self, "found_inf", None)):  # from GradScaler
                scale = getattr(self, "grad_scale", None)
                entries = gather_entries(self.param_groups, self.state, averages, scale)
                norm = finite_norm(entries, self.param_groups)
                self._skip_watch.look(norm is None, drawn_from(entries))
                if norm is not None:
                    self._update(entries, norm, scale, averages)
        finally:
            if not collected:
                advance(self.param_groups, "train", self.noise_ranks.size)
            self.eval()
            self.noise_ranks.drop()
            self._averages = DrawAverages()
        return loss

    def _reset(self) -> None:
        """What copies and checkpoints do not carry."""
        self._averages, self._in_context = DrawAverages(), False
        self._noise_check, self.noise_ranks = NoiseCheck(), NoiseRanks()
        self._prior_watch, self._skip_watch = PriorWatch(), SkipWatch()
        if not hasattr(self, "_given"):  # loading a checkpoint changes no parameters
            self._given = WeakIdKeyDictionary()
            for group in getattr(self, "param_groups", []):
                self._remember(group)

    def _remember(self, group: dict[str, Any]) -> None:
        """Know the parameters of a new group again, so that an exchange behind our back is noticed."""
        self._given.update((param, None) for param in group["params"])

    def _draw(self, stream: str) -> None:
        """Put a draw into the parameters, and look whether they can hold it."""
        refuse_replaced(self.param_groups, self._given)
        require_usable(self.param_groups)
        self._prior_watch.look(self.param_groups, self.state)
        ahead = self.noise_ranks.rank if stream == "train" else 0
        write_draw(self.param_groups, self.state, stream, ahead=ahead)
        if stream == "train":
            self._noise_check.look(self.param_groups, self.state)

    @torch.no_grad()
    def _collect(self) -> None:
        """Add the gradients of the draw that the parameters hold to the averages, and show the mean gradient."""
        tally = self._averages.tally
        self._averages.add(drawn_products(gather_entries(self.param_groups, self.state), tally))
        self._averages.publish()

    def _run_closure(self, closure: Callable[[], Any]) -> Any:
        """Mean loss of ``mc_samples`` draws, their gradients collected."""
        self.eval()
        losses = []
        try:
            for _ in range(self.defaults["mc_samples"]):
                with torch.enable_grad(), self.sampled_params(train=True):
                    losses.append(closure())
        except BaseException:  # also Ctrl-C: a retry must not average over half a step
            self._averages = DrawAverages()
            raise
        return mean_loss(losses)
