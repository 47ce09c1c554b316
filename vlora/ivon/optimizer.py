"""IVON as a drop-in ``torch.optim.Optimizer``: learn a Gaussian posterior instead of a point.

Source: Shen et al. 2024, arXiv:2402.17641, Algorithm 1; the update is ``vlora.ivon.step``, the paper-to-code names
are there. Deviations: state is float32 (float64 for float64 parameters) whatever the parameter's dtype, the noise
that enters the Hessian estimate is the realised one, ``parameter - mean`` after rounding, and non-finite gradients
are refused.

Protocol, the one that transformers' Trainer and accelerate already speak: ``train()`` puts a posterior draw into the
parameters, ``step()`` takes it out again and updates the mean, so between steps the parameters hold the mean.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError, TrainingError
from vlora.ivon.draws import DrawAverages
from vlora.ivon.groups import prepare_groups, warn_if_overridden
from vlora.ivon.prior import update_priors
from vlora.ivon.sampling import advance, positions, require_drawn_grads, take_grads, write_draw, write_mean
from vlora.ivon.state import describe_posterior, restore_loaded_state
from vlora.ivon.update import all_finite, apply_update, drawn_products, gather_entries

__all__ = ["IVON"]


class IVON(torch.optim.Optimizer):
    """Improved Variational Online Newton over any trainable parameters.

    ::

        settings = short_run_defaults(num_examples=len(train_set), num_steps=500)    # vlora.ivon.defaults
        optimizer = IVON(model.parameters(), **settings.optimizer_kwargs())
        for batch in loader:
            optimizer.train()                 # parameters := mean + noise; Trainer and accelerate loops do this
            loss(model, batch).backward()     # any number of micro-batches, clipping, loss scaling
            optimizer.step()                  # parameters := new mean
            optimizer.zero_grad()

    Code written for ivon-opt runs as it is: ``sampled_params(train=True)`` around forward and backward, one context
    per draw, averaged by ``step()``. ``step(closure)`` makes ``mc_samples`` draws by itself.

    The loss must be a *mean* over examples. Every keyword below except ``mc_samples`` can differ by parameter group.

    Args:
        params: Parameters or group dicts; those without ``requires_grad`` are left alone.
        lr: Learning rate, see ``rescale_lr``.
        ess: Effective sample size lambda, in examples: the size of the training set for an untempered posterior,
            larger for a colder (narrower) one.
        hess_init: Start of h; the first draw has standard deviation ``1 / sqrt(ess * (hess_init + weight_decay))``.
        beta1: Decay rate of the gradient average.
        beta2: Decay rate of h. Choose ``1 - beta2`` of the order of a few over the number of steps.
        weight_decay: Prior precision divided by ``ess``. None means 1e-4, or what a group says.
        clip_radius: Trust region: no entry of a preconditioned step exceeds it.
        rescale_lr: Multiply ``lr`` by ``hess_init + weight_decay``.
        debias: Correct the gradient average for its start at zero.
        hess_approx: ``"price"`` (reparameterisation) or ``"gradsq"`` (squared gradients; published scale ``ess``).
        grad_batch_size: With ``"gradsq"``: examples averaged in one final gradient, over all micro-batches and
            processes. Scales the estimate by it instead of by ``ess``, which makes it unbiased for the diagonal
            Fisher, and drops the retraction term.
        mc_samples: Draws per ``step(closure)``; without closure, use as many ``sampled_params`` contexts.
        seed: Seed of the noise, independent of the global random state.
        prior_precision: ``ess * weight_decay`` given directly, in 1/parameter^2. Wins over every ``weight_decay``,
            also over the one that Trainer writes into its groups.
        skip_nonfinite: Count and skip steps with a non-finite gradient instead of raising.
        foreach: Work on many tensors at once (default) or, if False, the reference functions tensor by tensor.
        compiled: Run the update through ``torch.compile``; the first step compiles. Needs a C++ compiler on a CPU.
        prior: ``"fixed"``, or ``"empirical_bayes"`` to learn the prior precision of every tensor in closed form from
            its posterior, starting at ``weight_decay``; every tensor becomes a parameter group of its own. See
            ``vlora.ivon.prior``.
        prior_update_every: Steps between two updates of a learned prior.
        prior_pull: False leaves ``weight_decay * mean`` out of the mean's update (arXiv:2506.14280).

    Raises:
        ConfigError: If a hyper-parameter is out of range.
    """

    # GradScaler then calls step() after an overflow too, which puts the mean back.
    _step_supports_amp_scaling = True

    def __init__(
        self, params: Any, lr: float, *, ess: float, hess_init: float = 1.0, beta1: float = 0.9,
        beta2: float = 0.99999, weight_decay: float | None = None, clip_radius: float = math.inf,
        rescale_lr: bool = True, debias: bool = True, hess_approx: str = "price",
        grad_batch_size: float | None = None, mc_samples: int = 1, seed: int = 0,
        prior_precision: float | None = None, skip_nonfinite: bool = False, foreach: bool = True,
        compiled: bool = False,
        prior: str = "fixed", prior_update_every: int = 10, prior_pull: bool = True,
    ) -> None:  # fmt: skip
        if weight_decay is not None and prior_precision is not None:
            raise ConfigError("give IVON weight_decay or prior_precision = ess * weight_decay, not both")
        self._averages, self._in_context = DrawAverages(), False
        defaults = {
            "lr": lr, "ess": ess, "hess_init": hess_init, "beta1": beta1, "beta2": beta2,
            "weight_decay": 1e-4 if weight_decay is None else weight_decay, "clip_radius": clip_radius,
            "rescale_lr": rescale_lr, "debias": debias, "hess_approx": hess_approx,
            "grad_batch_size": grad_batch_size, "mc_samples": mc_samples, "seed": seed,
            "prior_precision": prior_precision, "skip_nonfinite": skip_nonfinite, "foreach": foreach,
            "compiled": compiled,
            "prior": prior, "prior_update_every": prior_update_every, "prior_pull": prior_pull,
            "draw": 0, "eval_draw": 0, "sampled": [], "skipped_steps": 0,
        }  # fmt: skip
        super().__init__(params, defaults)
        if weight_decay is not None:
            warn_if_overridden(weight_decay, self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild what copies and checkpoints do not carry, and complete groups saved by an older version."""
        super().__setstate__(state)
        self._averages, self._in_context = DrawAverages(), False
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, copy.copy(value))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group at any time; its parameters join the posterior with the next draw.

        Raises:
            ConfigError: If one of its hyper-parameters is out of range.
        """
        for group in prepare_groups(param_group, self.defaults):
            super().add_param_group(group)

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
            TrainingError: If draws of ``sampled_params`` wait for ``step()``, or ``mc_samples`` asks for several.
        """
        if self._in_context:
            return
        if self._averages.count:
            raise TrainingError(
                "train() came after sampled_params(train=True) and before step(): use one of the two for a step"
            )
        if self.defaults["mc_samples"] > 1:
            raise TrainingError(
                f"train() makes one draw per step but mc_samples={self.defaults['mc_samples']}: use step(closure), "
                "or one sampled_params(train=True) context per draw"
            )
        write_draw(self.param_groups, self.state, "train")

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
        if self._in_context:
            raise TrainingError(
                "sampled_params contexts cannot be nested: leave the first before the next draw"
            )
        if train and self.holds_sample:
            raise TrainingError(
                "sampled_params(train=True) came after train() and before step(): use one of the two"
            )
        stream = "train" if train else "eval"
        resume, self._in_context = self.holds_sample, True
        self.eval()
        stashed = take_grads(self.param_groups) if train else {}
        try:
            write_draw(self.param_groups, self.state, stream)
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
                write_draw(self.param_groups, self.state, "train")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update momentum, h and mean from ``p.grad``; afterwards the parameters hold the new mean.

        Args:
            closure: Clears gradients, computes the loss and calls backward; run once per draw, ``mc_samples`` times.

        Returns:
            Mean loss over the draws if ``closure`` returns losses, else None.

        Raises:
            TrainingError: If no draw was made since the last step, or a gradient is not finite; the parameters
                then hold the mean, and mean, momentum and h are as before.
        """
        loss = None if closure is None else self._run_closure(closure)
        averages = self._averages if self._averages.count else None
        if averages is None:
            require_drawn_grads(self.param_groups)
        try:
            if averages is not None:
                averages.require_grads()
            if not getattr(self, "found_inf", 0):  # GradScaler sets it, and grad_scale
                scale = getattr(self, "grad_scale", None)
                entries = gather_entries(self.param_groups, self.state, averages, scale)
                if all_finite(entries, self.param_groups):
                    apply_update(self.param_groups, entries, scale)
                    update_priors(self.param_groups, self.posterior_state)
        finally:
            if averages is None:
                advance(self.param_groups, "train")
            self.eval()
            self._averages = DrawAverages()
        return loss

    @torch.no_grad()
    def posterior_state(self, param: Tensor) -> dict[str, Any]:
        """What describes the posterior of one parameter, N(mean, 1 / (ess * (hess + weight_decay))).

        Args:
            param: A trained parameter of this optimizer.

        Returns:
            ``mean`` and ``hess`` (new tensors in the state's dtype; the exact mean even while a draw is held),
            ``ess``, ``weight_decay``, ``hess_init``, ``beta2`` and ``step``, the number of updates.

        Raises:
            TrainingError: If the parameter is not the optimizer's, or was never updated.
        """
        for _, group, position, candidate in positions(self.param_groups):
            if candidate is param and int(self.state.get(param, {}).get("step", 0)) > 0:
                return describe_posterior(param, self.state[param], group, position in group["sampled"])
        raise TrainingError(
            f"IVON has no posterior for this parameter of shape {tuple(param.shape)}: it is not in the optimizer, or "
            "no step() with a gradient for it was made"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint; state keeps its precision, and a draw that the parameters held then becomes the mean."""
        final: dict[str, Any] = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, loaded: final.update(loaded))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [param for *_, param in positions(self.param_groups)]
        restore_loaded_state(self.state, params, final)
        self.eval()

    @torch.no_grad()
    def _collect(self) -> None:
        """Add the gradients of the draw that the parameters hold to the averages, and show the mean gradient."""
        self._averages.add(drawn_products(gather_entries(self.param_groups, self.state)))
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
        losses = [loss.detach() if isinstance(loss, Tensor) else loss for loss in losses if loss is not None]
        return sum(losses) / len(losses) if losses else None
