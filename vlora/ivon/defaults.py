"""IVON hyper-parameters for short fine-tuning runs, from the number of examples N and of steps T, and a probe.

Provisional: the published settings (ess 1e6 to 1e8, beta2 0.99999) assume tens of thousands of steps, and leave h at
its start when a run has a few hundred. The values here are what one small study of LoRA fine-tuning found to work;
they are written in quantities without units of the loss, so that they carry over, and no run should rely on them
without looking at the posterior's health. Relations (paper notation in ``vlora.ivon.step``):

    precision of the first draw   ess * (hess_init + weight_decay) = 1 / init_std^2
    precision of the prior        ess * weight_decay               = 1 / (max_std_ratio * init_std)^2
    step per entry                lr * (hess_init + weight_decay) * clip_radius <= max_step     (rescaled lr)
"""

import math
from dataclasses import dataclass
from typing import Any

from vlora.errors import ConfigError

__all__ = ["IvonSettings", "probed_defaults", "short_run_defaults"]


@dataclass(frozen=True, kw_only=True)
class IvonSettings:
    """Hyper-parameters that ``vlora.IVON`` takes; the learning rate is the rescaled one (``rescale_lr=True``)."""

    lr: float
    """Learning rate, multiplied by ``hess_init + weight_decay`` inside IVON."""
    ess: float
    """Effective sample size, in examples."""
    hess_init: float
    """Start value of h, the diagonal Hessian of the mean loss."""
    beta1: float
    """Decay rate of the gradient average."""
    beta2: float
    """Decay rate of h."""
    weight_decay: float
    """Prior precision divided by ``ess``."""
    clip_radius: float
    """Largest entry of a preconditioned step."""
    hess_approx: str = "price"
    """Estimate of h that the other numbers are meant for."""
    grad_batch_size: float | None = None
    """Examples averaged in one gradient, for ``gradsq``."""

    @property
    def init_std(self) -> float:
        """Standard deviation of the first posterior draw, in parameter units."""
        return 1 / math.sqrt(self.ess * (self.hess_init + self.weight_decay))

    @property
    def max_std(self) -> float:
        """Standard deviation of the prior, where directions without data drift to; inf without weight decay."""
        return 1 / math.sqrt(self.ess * self.weight_decay) if self.weight_decay else math.inf

    @property
    def max_step(self) -> float:
        """Largest move of one entry of the mean in one step, in parameter units."""
        return self.lr * (self.hess_init + self.weight_decay) * self.clip_radius

    def optimizer_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of ``vlora.IVON``.

        The prior is passed as ``prior_precision``, so that Trainer's own ``weight_decay`` does not replace it.
        """
        return {
            "lr": self.lr, "ess": self.ess, "hess_init": self.hess_init, "beta1": self.beta1, "beta2": self.beta2,
            "prior_precision": self.ess * self.weight_decay, "clip_radius": self.clip_radius, "rescale_lr": True,
            "hess_approx": self.hess_approx, "grad_batch_size": self.grad_batch_size,
        }  # fmt: skip


def short_run_defaults(
    num_examples: int, num_steps: int, *, init_std: float = 0.02, max_std_ratio: float = 5.0, max_step: float = 5e-3,
    lr: float = 5.0, ess: float | None = None, hess_init: float | None = None, beta1: float = 0.9,
    beta2: float | None = None, weight_decay: float | None = None, clip_radius: float | None = None,
) -> IvonSettings:  # fmt: skip
    """Hyper-parameters for ``num_steps`` steps on ``num_examples`` examples; what is given wins, the rest follows.

        ess          = max(100 N, 1e4)
        weight_decay = 1 / (ess (max_std_ratio init_std)^2)
        hess_init    = 1 / (ess init_std^2) - weight_decay
        beta2        = max(1 - 5 / T, 0.5)
        clip_radius  = max_step / (lr (hess_init + weight_decay))

    Source: our own short-run study, see the module's caveat. Deviation from the paper: it sets ``hess_init`` and
    ``ess`` by hand; here the width of the first draw is the knob, since it is what short runs are sensitive to.

    Args:
        num_examples: N, rows in the training set.
        num_steps: T, optimizer steps of the run.
        init_std: Standard deviation of the first draw, in parameter units (ignored where ``hess_init`` is given).
        max_std_ratio: Standard deviation of the prior in units of ``init_std``, > 1.
        max_step: Largest move of one entry in one step, in parameter units.
        lr: Rescaled learning rate.
        ess: Effective sample size instead of the rule.
        hess_init: Start of h instead of the rule.
        beta1: Decay rate of the gradient average.
        beta2: Decay rate of h instead of the rule.
        weight_decay: Prior precision over ``ess`` instead of the rule.
        clip_radius: Trust region instead of the rule.

    Returns:
        A consistent set of hyper-parameters.

    Raises:
        ConfigError: If a number is out of range, or the prior is narrower than the first draw.
    """
    _require(num_examples >= 1, f"num_examples must be >= 1, got {num_examples}")
    _require(num_steps >= 1, f"num_steps must be >= 1, got {num_steps}")
    _require(
        init_std > 0 and max_step > 0, f"init_std and max_step must be > 0, got {init_std} and {max_step}"
    )
    _require(max_std_ratio > 1, f"max_std_ratio must be > 1, got {max_std_ratio}")
    ess = max(100.0 * num_examples, 1e4) if ess is None else ess
    _require(ess > 0 and lr > 0, f"ess and lr must be > 0, got {ess} and {lr}")
    if weight_decay is None:
        weight_decay = 1 / (ess * (max_std_ratio * init_std) ** 2)
    if hess_init is None:
        hess_init = 1 / (ess * init_std**2) - weight_decay
        _require(
            hess_init > 0,
            f"weight_decay={weight_decay:g} with ess={ess:g} makes a prior narrower than init_std={init_std:g}: lower "
            "weight_decay or init_std, or give hess_init",
        )
    if beta2 is None:
        beta2 = max(1 - 5 / num_steps, 0.5)
    if clip_radius is None:
        clip_radius = max_step / (lr * (hess_init + weight_decay))
    return IvonSettings(
        lr=lr, ess=ess, hess_init=hess_init, beta1=beta1, beta2=beta2, weight_decay=weight_decay,
        clip_radius=clip_radius,
    )  # fmt: skip


def probed_defaults(
    num_steps: int,
    *,
    second_moment: float,
    grad_batch_size: float,
    init_std: float = 0.02,
    max_std_ratio: float = 3**0.5,
    max_step: float = 2e-3,
    lr: float | None = None,
    ess: float | None = None,
    hess_init: float | None = None,
    beta1: float = 0.9,
    beta2: float | None = None,
    weight_decay: float | None = None,
    clip_radius: float | None = None,
) -> IvonSettings:
    """Hyper-parameters on the scale of the loss at hand, for the squared-gradient estimate of h.

        hess_init    = second_moment                              the mean of h when training starts
        weight_decay = hess_init / (max_std_ratio^2 - 1)          so that no draw is wider than max_std_ratio init_std
        ess          = 1 / (init_std^2 (hess_init + weight_decay))
        lr           = max_step / g,   g = 0.25 sqrt(second_moment / grad_batch_size)
        clip_radius  = max_step / (lr (hess_init + weight_decay))

    An entry whose averaged gradient reaches a quarter of the typical mini-batch gradient moves by ``max_step``, if its
    h is average. Source: our own short-run study, see the module's caveat.

    Args:
        num_steps: T, optimizer steps of the run.
        second_moment: Mean over entries of the squared per-example gradient, measured on a few real batches at the
            start plus noise of ``init_std`` (without the noise, LoRA's zero B makes the gradient of A zero).
        grad_batch_size: Examples averaged in one final gradient.
        init_std: Standard deviation of the first draw, in parameter units.
        max_std_ratio: Widest standard deviation in units of ``init_std``, > 1.
        max_step: Largest move of one entry in one step, in parameter units.
        lr: Rescaled learning rate instead of the rule.
        ess: Effective sample size instead of the rule.
        hess_init: Start of h instead of the probe.
        beta1: Decay rate of the gradient average.
        beta2: Decay rate of h instead of ``max(1 - 5 / T, 0.5)``.
        weight_decay: Prior precision over ``ess`` instead of the rule.
        clip_radius: Trust region instead of the rule.

    Raises:
        ConfigError: If a number is out of range.
    """
    _require(num_steps >= 1, f"num_steps must be >= 1, got {num_steps}")
    _require(
        0 < second_moment < math.inf,
        f"the probe measured a mean squared gradient of {second_moment:g}, expected a positive number; "
        "is any parameter connected to the loss?",
    )
    _require(
        init_std > 0 and max_step > 0, f"init_std and max_step must be > 0, got {init_std} and {max_step}"
    )
    _require(max_std_ratio > 1, f"max_std_ratio must be > 1, got {max_std_ratio}")
    hess_init = second_moment if hess_init is None else hess_init
    weight_decay = hess_init / (max_std_ratio**2 - 1) if weight_decay is None else weight_decay
    precision = hess_init + weight_decay
    ess = 1 / (init_std**2 * precision) if ess is None else ess
    lr = max_step / (0.25 * math.sqrt(second_moment / grad_batch_size)) if lr is None else lr
    return IvonSettings(
        lr=lr,
        ess=ess,
        hess_init=hess_init,
        beta1=beta1,
        beta2=max(1 - 5 / num_steps, 0.5) if beta2 is None else beta2,
        weight_decay=weight_decay,
        clip_radius=max_step / (lr * precision) if clip_radius is None else clip_radius,
        hess_approx="gradsq",
        grad_batch_size=grad_batch_size,
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"IVON defaults: {message}")
