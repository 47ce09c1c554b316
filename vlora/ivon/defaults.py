"""IVON hyper-parameters from the number of steps T, the batch size and the width of the model.

The published settings (ess 1e6 to 1e8, beta2 0.99999) assume tens of thousands of steps, and leave h at its start when
a run has a few hundred. ``auto_settings`` is what ``vlora train`` and ``IVON.auto`` use; ``short_run_defaults`` serve
the reparameterisation estimate of the paper. Relations of the latter:

    precision of the first draw   ess * (hess_init + weight_decay) = 1 / init_std^2
    precision of the prior        ess * weight_decay               = 1 / (max_std_ratio * init_std)^2
    step per entry                lr * (hess_init + weight_decay) * clip_radius <= max_step     (rescaled lr)
"""

import inspect
import math
from collections.abc import Iterable
from statistics import median
from typing import Any

from vlora.errors import ConfigError
from vlora.ivon.ranges import check_range
from vlora.ivon.settings import IvonSettings

__all__ = ["AUTO_KEYS", "auto_settings", "default_lr", "median_width", "short_run_defaults"]


NOISE_RATE = 12.0
"""Total change of log std that a run allows the controller of the noise."""


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
    _check_given(
        num_examples=num_examples, num_steps=num_steps, init_std=init_std, max_std_ratio=max_std_ratio,
        max_step=max_step, lr=lr,
    )  # fmt: skip
    _require(lr > 0, "lr must be > 0, got 0")
    ess = max(100.0 * num_examples, 1e4) if ess is None else ess
    _check_given(ess=ess, **_not_none(hess_init=hess_init, beta2=beta2, weight_decay=weight_decay))
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
        clip_radius=clip_radius, init_std=init_std, max_std_ratio=max_std_ratio,
    )  # fmt: skip


def auto_settings(
    num_steps: int, *, grad_batch_size: float, width: int, noise_cost: float | None = 0.01,
    init_std: float | None = None, max_std: float = 0.1, max_std_ratio: float = 3**0.5, lr: float | None = None,
    ess: float | None = None, hess_init: float = 1e-20, beta1: float = 0.9, beta2: float = 0.999,
    weight_decay: float | None = None, clip_radius: float = math.inf, max_grad_norm: float | None = 1.0,
) -> IvonSettings:  # fmt: skip
    """Hyper-parameters that need nothing but the shape of the run; what is given wins.

        lr           = ``default_lr``                  on AdamW's scale, as the mean moves as under AdamW
        h            = squared gradients, corrected for its start as in Adam
        beta2        = 0.999                           Adam's; a shorter memory slows the mean
        max_grad_norm = 1                              as Trainer clips for AdamW (vlora.ivon.clipping)
        ess          set during the run so that noise costs ``noise_cost`` nats (vlora.ivon.noise)
        weight_decay = mean(h) / (max_std_ratio^2 - 1) also followed during the run

    A given ``ess`` turns the control of the noise off; then ``weight_decay = 1 / (ess init_std^2)``, so that no draw is
    wider than ``init_std``.

    Source: our own study (benchmarks/posterior_quality).

    Args:
        num_steps: T, optimizer steps of the run.
        grad_batch_size: Examples averaged in one final gradient.
        width: Input width of the adapted layers.
        noise_cost: Nats by which a draw's loss may exceed the mean's; None where ``ess`` is given.
        init_std: Typical standard deviation of the first draws, in parameter units; 1e-3 if None, and 0.02 with a
            given ``ess``.
        max_std: Largest typical standard deviation.
        max_std_ratio: Widest standard deviation of an entry in units of the typical one, > 1.
        lr: Learning rate instead of the rule.
        ess: Effective sample size, fixed, instead of the control.
        hess_init: Start of h.
        beta1: Decay rate of the gradient average.
        beta2: Decay rate of h.
        weight_decay: Prior precision over ``ess``, fixed; only with ``ess``.
        clip_radius: Largest entry of a preconditioned step.
        max_grad_norm: Largest norm of the gradient where it enters the mean; 0 or None for none.

    Raises:
        ConfigError: If a number is out of range.
    """
    _check_given(
        num_steps=num_steps, grad_batch_size=grad_batch_size, max_std=max_std, max_std_ratio=max_std_ratio
    )
    _check_given(
        **_not_none(noise_cost=noise_cost, init_std=init_std, lr=lr, ess=ess, weight_decay=weight_decay)
    )
    _require(ess is not None or weight_decay is None, "weight_decay is given, so ess must be given too")
    _require(ess is not None or noise_cost is not None, "give ess, or noise_cost to set it during the run")
    if init_std is None:
        init_std = 1e-3 if ess is None else 0.02
    if ess is not None and weight_decay is None:
        weight_decay = 1 / (ess * init_std**2)
    return IvonSettings(
        lr=default_lr(width, num_steps) if lr is None else lr, ess=ess, hess_init=hess_init, beta1=beta1,
        beta2=beta2, weight_decay=weight_decay,
        clip_radius=clip_radius, hess_approx="gradsq", grad_batch_size=grad_batch_size, mean_step="adam",
        rescale_lr=False, noise_cost=noise_cost if ess is None else None, init_std=init_std, max_std=max_std,
        max_std_ratio=max_std_ratio, noise_warmup=num_steps, noise_rate=min(NOISE_RATE / num_steps, 0.5),
        max_grad_norm=max_grad_norm,
    )  # fmt: skip


def default_lr(width: int, num_steps: int) -> float:
    """Peak learning rate of LoRA on AdamW's scale, with warm-up and decay.

        lr = min( 1 / (2 width) * min(2, max(1, sqrt(200 / T))), 0.01 )

    Sources: 1 / width joins what was best here at widths 64 (8e-3), 128 (3e-3 to 5e-3) and 384 (1e-3 to 2e-3) to the
    1e-4 to 2e-4 in general use at 4096; between and above it is untested. That short runs want up to twice as much is
    our own study (benchmarks/posterior_quality, ``rates``); "LoRA Without Regret" (Schulman et al. 2025) has 1.5 times.

    Args:
        width: Input width of the adapted layers.
        num_steps: T, optimizer steps of the run.
    """
    short = min(2.0, max(1.0, math.sqrt(200 / num_steps)))
    return min(0.5 / width * short, 0.01)


AUTO_KEYS = frozenset(inspect.signature(auto_settings).parameters) - {"num_steps", "grad_batch_size", "width"}
"""Settings that ``auto_settings`` takes; ``IVON`` takes the others."""


def median_width(params: Iterable[Any]) -> int:
    """Median over trainable tensors of their longest side: the width of a model whose layers carry LoRA.

    Args:
        params: Tensors, ``(name, tensor)`` pairs or parameter groups, as an optimizer takes them.
    """
    flat: list[Any] = []
    for item in params:
        flat.extend(item["params"] if isinstance(item, dict) else [item])
    tensors = [item[1] if isinstance(item, tuple) else item for item in flat]
    return int(median([max(tensor.shape, default=1) for tensor in tensors if tensor.requires_grad] or [1]))


def _check_given(**values: Any) -> None:
    for key, value in values.items():
        check_range(key, value)


def _not_none(**values: Any) -> dict[str, Any]:
    """What was given instead of being left to a rule."""
    return {key: value for key, value in values.items() if value is not None}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"IVON defaults: {message}")
