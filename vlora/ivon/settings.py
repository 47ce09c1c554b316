"""A consistent set of IVON's hyper-parameters, and the line that tells a person what was chosen."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["IvonSettings", "describe_groups"]


@dataclass(frozen=True, kw_only=True)
class IvonSettings:
    """Hyper-parameters that ``vlora.IVON`` takes, under its names."""

    lr: float
    ess: float | None
    hess_init: float
    beta1: float
    beta2: float
    weight_decay: float | None
    clip_radius: float
    rescale_lr: bool = True
    hess_approx: str = "price"
    grad_batch_size: float | None = None
    mean_step: str = "newton"
    noise_cost: float | None = None
    init_std: float = 1e-3
    max_std: float = 0.1
    max_std_ratio: float = 3**0.5
    noise_warmup: int = 0
    noise_rate: float = 0.05
    max_grad_norm: float | None = None

    @property
    def first_std(self) -> float:
        """Standard deviation of the first posterior draw, in parameter units."""
        if self.ess is None:
            return min(self.init_std, self.max_std)
        return 1 / math.sqrt(self.ess * (self.hess_init + (self.weight_decay or 0.0)))

    def optimizer_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of ``vlora.IVON``.

        A fixed prior is passed as ``prior_precision``, so that Trainer's own ``weight_decay`` does not replace it.
        """
        kwargs = dataclasses.asdict(self)
        weight_decay = kwargs.pop("weight_decay")
        if self.ess is not None and weight_decay is not None:
            kwargs["prior_precision"] = self.ess * weight_decay
        return kwargs

    def describe(self) -> str:
        """One line for the log: every number; where they come from is in ``docs/concepts.md``."""
        scale = "" if self.grad_batch_size is None else f" of {self.grad_batch_size:g} examples"
        cut = f", gradient norm at most {self.max_grad_norm:g}" if self.max_grad_norm else ""
        cut += f", clip_radius {self.clip_radius:.3g}" if math.isfinite(self.clip_radius) else ""
        return (
            f"ivon: {self.mean_step} step with lr {self.lr:.3g}{cut}, {self._width()}, h by {self.hess_approx}{scale}, "
            f"betas {self.beta1:.6g} and {self.beta2:.6g}"
        )

    def _width(self) -> str:
        """What sets the width of the draws."""
        if self.ess is not None:
            prior = self.ess * (self.weight_decay or 0.0)
            return f"ess {self.ess:.4g}, prior precision {prior:.3g}, first std {self.first_std:.3g}"
        reached = f" from step {self.noise_warmup} on" if self.noise_warmup else ""
        return (
            f"noise may cost {self.noise_cost:g} nats{reached} (std from {self.first_std:.3g} to at most "
            f"{self.max_std:g}, no entry wider than {self.max_std_ratio:.3g} times that)"
        )


def describe_groups(groups: Iterable[dict[str, Any]]) -> str:
    """The settings of an optimizer's groups, one line for each kind of group, and what a schedule or a run changed.

    Args:
        groups: Parameter groups of ``vlora.IVON``; those without parameters are left out.
    """
    return "\n".join(dict.fromkeys(_describe_group(group) for group in groups if group["params"]))


def _describe_group(group: dict[str, Any]) -> str:
    values = {field.name: group[field.name] for field in dataclasses.fields(IvonSettings)}
    peak, now = float(group.get("initial_lr", group["lr"])), float(group["lr"])  # "initial_lr": a scheduler's
    values["lr"] = peak
    found = [] if now == peak else [f"lr {now:.3g}"]
    if values["noise_cost"] is not None:  # then ess and prior are what the run found
        values |= {"ess": None, "weight_decay": None}
        found.append(f"std {group['std']:.3g}")
    elif group["prior"] == "empirical_bayes":
        values["weight_decay"] = group["prior_start"]
    return IvonSettings(**values).describe() + (f", {', '.join(found)} now" if found else "")
