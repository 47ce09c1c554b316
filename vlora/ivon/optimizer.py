"""IVON as a drop-in ``torch.optim.Optimizer``: learn a Gaussian posterior instead of a point.

Source: Shen et al. 2024, arXiv:2402.17641, Algorithm 1; the update is ``vlora.ivon.step``, the paper-to-code names
are there. Deviations: state is float32 (float64 for float64 parameters) whatever the parameter's dtype, the noise
that enters the Hessian estimate is the realised one, ``parameter - mean`` after rounding, with the variance it then
has (``vlora.ivon.rounding``), and non-finite gradients are refused.

Protocol, the one that transformers' Trainer and accelerate already speak: ``train()`` puts a posterior draw into the
parameters, ``step()`` takes it out again and updates the mean, so between steps the parameters hold the mean.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError, TrainingError
from vlora.ivon.clipping import NormWatch, set_clip
from vlora.ivon.defaults import AUTO_KEYS, auto_settings, median_width
from vlora.ivon.draws import DrawAverages
from vlora.ivon.gradients import Entry
from vlora.ivon.groups import prepare_groups, warn_if_overridden
from vlora.ivon.loading import require_fitting
from vlora.ivon.low_precision import restore_storage, storage_settings
from vlora.ivon.noise import NoiseTally, controlled, update_noise
from vlora.ivon.prior import update_priors
from vlora.ivon.protocol import DrawingOptimizer
from vlora.ivon.sampling import positions
from vlora.ivon.settings import describe_groups
from vlora.ivon.state import describe_posterior, restore_loaded_state
from vlora.ivon.update import apply_update

__all__ = ["IVON"]


class IVON(DrawingOptimizer):
    """Improved Variational Online Newton over any trainable parameters.

    ::

        optimizer = IVON.auto(model.parameters(), num_steps=500, grad_batch_size=16)
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
            larger for a colder (narrower) one. None if ``noise_cost`` sets it.
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
        mean_step: ``"newton"``, the paper's natural-gradient step, or ``"adam"``, Adam's step with h as the second
            moment: ``lr`` is then that of AdamW, and never rescaled. Needs ``grad_batch_size``.
        noise_cost: Nats by which the loss of a draw may exceed that of the mean; sets ``ess`` and ``weight_decay``
            during the run (``vlora.ivon.noise``). Needs ``grad_batch_size``.
        noise_warmup: Steps over which the noise is let in, quadratically: best the steps of the run.
        noise_rate: Largest relative change of the noise in one step.
        init_std: Typical standard deviation of the first draws where ``noise_cost`` is given.
        max_std: Largest typical standard deviation that it may lead to.
        max_std_ratio: Widest standard deviation of an entry, in units of the typical one.
        mc_samples: Draws per ``step(closure)``; without closure, use as many ``sampled_params`` contexts.
        seed: Seed of the noise, independent of the global random state.
        prior_precision: ``ess * weight_decay`` given directly, in 1/parameter^2. Wins over every ``weight_decay``,
            also over the one that Trainer writes into its groups.
        skip_nonfinite: Count and skip steps with a non-finite gradient instead of raising.
        noise: On several processes under DDP: ``"shared"``, every rank has the same draw; ``"per_rank"``, every rank
            has its own, with ``vlora.ivon.distributed.use_per_rank_noise(model, optimizer)``.
        foreach: Work on many tensors at once (default) or, if False, the reference functions tensor by tensor.
        compiled: Run the update through ``torch.compile``; the first step compiles. Needs a C++ compiler on a CPU.
        state_bits: 8 keeps momentum and h as 8-bit codes, see ``vlora.ivon.low_precision``; 32 does not. The
            optimizer's own value stays when a checkpoint of the other kind is loaded, and its state is converted.
        min_8bit_size: With ``state_bits=8``: entries below which a parameter's state stays float32.
        stochastic_rounding: Round draws at random, not to nearest, where a parameter is bfloat16 or float16.
        prior: ``"fixed"``, or ``"empirical_bayes"`` to learn the prior precision of every tensor in closed form from
            its posterior, starting at ``weight_decay``; every tensor becomes a parameter group of its own. See
            ``vlora.ivon.prior``.
        prior_update_every: Steps between two updates of a learned prior.
        prior_pull: False leaves ``weight_decay * mean`` out of the mean's update (arXiv:2506.14280).
        max_grad_norm: Largest norm of the gradient over all parameters where it enters the mean; needs
            ``mean_step="adam"``. h and the cost of noise see it whole (``vlora.ivon.clipping``): leave clipping by
            others off then. None or 0: no limit.

    Raises:
        ConfigError: If a hyper-parameter is out of range.
    """

    def __init__(
        self, params: Any, lr: float, *, ess: float | None = None, hess_init: float = 1.0, beta1: float = 0.9,
        beta2: float = 0.99999, weight_decay: float | None = None, clip_radius: float = math.inf,
        rescale_lr: bool = True, debias: bool = True, hess_approx: str = "price",
        grad_batch_size: float | None = None, mean_step: str = "newton", noise_cost: float | None = None,
        noise_warmup: int = 0, noise_rate: float = 0.05, init_std: float = 1e-3, max_std: float = 0.1,
        max_std_ratio: float = 3**0.5, mc_samples: int = 1, seed: int = 0,
        prior_precision: float | None = None, skip_nonfinite: bool = False, noise: str = "shared",
        foreach: bool = True, compiled: bool = False,
        state_bits: int = 32, min_8bit_size: int = 4096, stochastic_rounding: bool = False,
        prior: str = "fixed", prior_update_every: int = 10, prior_pull: bool = True,
        max_grad_norm: float | None = None,
    ) -> None:  # fmt: skip
        if weight_decay is not None and prior_precision is not None:
            raise ConfigError("give IVON weight_decay or prior_precision = ess * weight_decay, not both")
        self._reset()
        defaults = {
            "lr": lr, "ess": ess, "hess_init": hess_init, "beta1": beta1, "beta2": beta2,
            "weight_decay": 1e-4 if weight_decay is None else weight_decay, "clip_radius": clip_radius,
            "rescale_lr": rescale_lr, "debias": debias, "hess_approx": hess_approx,
            "grad_batch_size": grad_batch_size, "mean_step": mean_step, "noise_cost": noise_cost,
            "noise_warmup": noise_warmup, "noise_rate": noise_rate, "init_std": init_std, "max_std": max_std,
            "max_std_ratio": max_std_ratio, "mc_samples": mc_samples, "seed": seed,
            "prior_precision": prior_precision, "skip_nonfinite": skip_nonfinite, "noise": noise, "foreach": foreach,
            "compiled": compiled,
            "state_bits": state_bits, "min_8bit_size": min_8bit_size, "stochastic_rounding": stochastic_rounding,
            "prior": prior, "prior_update_every": prior_update_every, "prior_pull": prior_pull,
            "max_grad_norm": max_grad_norm, "clip": 1.0, "clip_weight": 1.0, "weight_before": 1.0, "clip_steps": 0,
            "draw": 0, "eval_draw": 0, "sampled": [], "skipped_steps": 0,
        }  # fmt: skip
        super().__init__(params, defaults)
        if weight_decay is not None:
            warn_if_overridden(weight_decay, self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild what copies and checkpoints do not carry, and complete groups saved by an older version."""
        super().__setstate__(state)
        self._reset()
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, copy.copy(value))

    @classmethod
    def auto(
        cls,
        params: Any = None,
        *,
        num_steps: Any = None,
        grad_batch_size: Any = None,
        seed: int = 0,
        **given: Any,
    ) -> "IVON":
        """IVON with every setting that is not given derived from the shape of the run; see ``docs/concepts.md``.

        A Trainer that builds the optimizer itself takes ``optimizer_cls_and_kwargs=(IVON.auto, {...})``.

        Args:
            params: Parameters, group dicts, or a model, whose trainable parameters are taken. Left out, this method
                itself is returned: so transformers calls what is no class, ``auto()(model, **kwargs)``.
            num_steps: T, optimizer steps of the run; ``max_steps`` where the data have no length.
            grad_batch_size: Examples averaged in one final gradient, over micro-batches and processes.
            seed: Seed of the noise.
            **given: Settings that win over the rules: those of ``vlora.ivon.defaults.auto_settings``, or any of IVON.

        Raises:
            ConfigError: A setting is out of range.
        """
        if params is None:
            return cls.auto  # pyright: ignore[reportReturnType]
        if isinstance(params, torch.nn.Module):
            params = [param for param in params.parameters() if param.requires_grad]
        groups = list(params)
        known = {key: value for key, value in given.items() if key in AUTO_KEYS}
        settings = auto_settings(
            num_steps, grad_batch_size=grad_batch_size, width=median_width(groups), **known
        )
        rest = {key: value for key, value in given.items() if key not in AUTO_KEYS}
        return cls(groups, seed=seed, **{**settings.optimizer_kwargs(), **rest})

    def describe(self) -> str:
        """The settings in one line, or one for each kind of group, to print or log; IVON itself logs nothing.

        ``vlora train`` logs it. In any Trainer ``vlora.training.callbacks.LogOptimizer`` does.
        """
        return describe_groups(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group at any time; its parameters join the posterior with the next draw.

        Raises:
            ConfigError: If one of its hyper-parameters is out of range.
        """
        for group in prepare_groups(param_group, self.defaults):
            super().add_param_group(group)
            self._remember(group)

    @torch.no_grad()
    def posterior_state(self, param: Tensor) -> dict[str, Any]:
        """What describes the posterior of one parameter, N(mean, 1 / (ess * (hess + weight_decay))).

        Args:
            param: A trained parameter of this optimizer; a sharded one is gathered, so all processes must ask.

        Returns:
            ``mean`` and ``hess`` (new tensors in the state's dtype; the exact mean even while a draw is held),
            ``ess``, ``weight_decay``, ``hess_init``, ``beta2``, ``step``, the number of updates, and ``start_weight``,
            the weight of ``hess_init`` in h.

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
        """Load a checkpoint; state keeps its precision, and a draw that the parameters held then becomes the mean.

        Raises:
            TrainingError: The checkpoint is not IVON's, is of other parameters, or of a run that had failed; the
                optimizer is then as before.
        """
        final: dict[str, Any] = {}
        storage = storage_settings(self.param_groups)

        def look(
            _: Any, loaded: dict[str, Any]
        ) -> None:  # after the hooks of others, before anything is replaced
            require_fitting(self.param_groups, loaded)
            final.update(loaded)

        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        params = [param for *_, param in positions(self.param_groups)]
        restore_loaded_state(self.state, params, final)
        restore_storage(self.param_groups, self.state, storage)
        self.eval()

    def _reset(self) -> None:
        super()._reset()
        self._norm_watch = NormWatch()

    def _update(
        self, entries: list[Entry], norm: float, scale: Tensor | None, averages: DrawAverages | None
    ) -> None:
        """Update the state, then the width of the next draws or the prior where they are not fixed."""
        norm = norm if scale is None else norm / float(scale)
        for group in self.param_groups:
            if any(entry.group is group for entry in entries):
                set_clip(group, norm)
        tally = NoiseTally() if averages is None else averages.tally
        tally.draws = 1 if averages is None else averages.count
        apply_update(self.param_groups, entries, scale, tally)
        if any(controlled(group) for group in self.param_groups):
            self._norm_watch.look(norm)
            own = [entry.owner for entry in entries if controlled(entry.group)]
            update_noise(self.param_groups, tally.measured(self.param_groups, own))
        update_priors(self.param_groups, self.posterior_state)
