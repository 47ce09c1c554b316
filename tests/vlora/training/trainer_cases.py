"""What every way of training must leave behind: a folder that plain PEFT loads and whose draws reach the logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from vlora import IVON, Posterior

SETTINGS = {
    "lr": 1.0,
    "ess": 1e4,
    "hess_init": 0.25,
    "beta2": 0.95,
    "weight_decay": 0.01,
    "clip_radius": 0.02,
}

AUTO = {"num_steps": 3, "grad_batch_size": 4, "lr": 0.01}
"""What ``IVON.auto`` is told of a run with the arguments ``QUIET``."""

QUIET = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
    "logging_strategy": "no",
    "dataloader_pin_memory": False,
    "weight_decay": 0.01,
    "bf16": False,
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
}
"""Arguments of a short run that writes nothing but its output folder."""


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def ivon(model: torch.nn.Module, **settings: Any) -> IVON:
    return IVON(trainable(model), **{**SETTINGS, **settings})


def auto(model: torch.nn.Module, **settings: Any) -> IVON:
    return IVON.auto(model, **{**AUTO, **settings})


def check_controlled(optimizer: Any, steps: int = 3) -> None:
    """That squared gradients of every step made h, and the cost of every draw was measured and moved the width."""
    groups = [group for group in optimizer.param_groups if group["params"]]
    for group in groups:
        assert (group["hess_approx"], group["mean_step"], group["noise_steps"]) == ("gradsq", "adam", steps)
        assert group["cost_average"] != 0 and 0 < group["std"] != group["init_std"]
        assert group["clip_steps"] == steps
    hess = [optimizer.state[param]["hess"] for group in groups for param in group["params"]]
    assert all((h >= 0).all() and (h > 0).any() for h in hess)


def check_folder(
    model: torch.nn.Module,
    optimizer: Any,
    base: Callable[[], Any],
    forward: Callable[[Any], Tensor],
    folder: Path,
    *,
    adapter_name: str = "default",
) -> Posterior:
    """Save a posterior of the trained model, load it both ways, and compare ``forward`` at mean and draw."""
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=8, adapter_name=adapter_name)
    assert posterior.meta.steps >= 3
    posterior.save_pretrained(folder)
    back = Posterior.from_pretrained(folder)
    plain = PeftModel.from_pretrained(base(), str(folder)).eval()
    model.eval()
    with torch.no_grad():
        at_mean = forward(plain)
        assert torch.equal(forward(model), at_mean)
        with back.sampled(plain, 1), posterior.sampled(model, 1, adapter_name=adapter_name):
            drawn = forward(plain)
            assert torch.equal(forward(model), drawn)
            assert not torch.equal(drawn, at_mean)
        assert torch.equal(forward(plain), at_mean)
    return posterior
