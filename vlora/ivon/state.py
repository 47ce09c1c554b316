"""State that IVON keeps for each parameter: ``step``, ``momentum``, ``hess`` and the exact ``mean``.

Tensors are float32, or float64 for float64 parameters, and shaped like the parameter: 1 - beta2 is far below the
resolution of bfloat16, where h would never move. ``mean`` is the master copy of a low-precision parameter.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError, TrainingError
from vlora.ivon.low_precision import CODE_KEYS, conform_state, is_coded, read_state
from vlora.ivon.shards import local, local_state, refuse_hidden, whole

__all__ = [
    "adopt_changed_params",
    "by_device",
    "describe_posterior",
    "ensure_state",
    "restore_loaded_state",
    "state_dtype",
]


def state_dtype(param: Tensor) -> torch.dtype:
    """Dtype of the state of ``param``: float64 for float64, else float32.

    Raises:
        ConfigError: If the parameter is not real floating point.
    """
    if not param.is_floating_point():
        raise ConfigError(f"IVON needs real floating-point parameters, got one of dtype {param.dtype}")
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def ensure_state(state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
    """Fill an empty ``state`` from the parameter, or follow a parameter or group that changed.

    A parameter may change device or dtype, its group ``state_bits``. A cast of the parameter loses nothing: the mean
    keeps the digits that the parameter had before.

    Args:
        state: ``optimizer.state[param]``, changed in place.
        param: Parameter, holding the mean.
        group: Its parameter group.
    """
    usual = "mean" in state and "format" not in state and is_coded(state) == (group["state_bits"] == 8)
    if usual and state["mean"].dtype == param.dtype and state["mean"].device == param.device:
        return  # in as little time as hundreds of parameters deserve
    dtype = state_dtype(param)
    _refuse_shards(param, group)
    if "mean" not in state:
        refuse_hidden(param)
        mean = param.detach().to(dtype, copy=True)
        state.update(step=torch.zeros(()), momentum=torch.zeros_like(mean), mean=mean)
        state["hess"] = torch.full_like(mean, group["hess_init"])
    elif state["mean"].device != param.device or state["mean"].dtype != dtype:
        conform_state(state, {**group, "state_bits": 32})
        for key in ("momentum", "hess", "mean"):
            state[key] = state[key].to(param.device, dtype)
    _follow_format(state, param)
    conform_state(state, group)


def _refuse_shards(param: Tensor, group: Mapping[str, Any]) -> None:
    if hasattr(param, "to_local") and (group["state_bits"] == 8 or group["stochastic_rounding"]):
        raise ConfigError(
            "state_bits=8 and stochastic_rounding=True work on whole tensors, got a DTensor (FSDP2): use state_bits=32 "
            "and stochastic_rounding=False there, or plain data parallelism"
        )


def _follow_format(state: dict[str, Any], param: Tensor) -> None:
    """Notice a cast of the parameter by ``state["format"]``, an empty tensor of the dtype it had if that was coarse."""
    mean, before = state["mean"], state.get("format")
    if before is not None and before.dtype != param.dtype:
        if torch.equal(local(param.detach()), local(mean).to(before.dtype).to(param.dtype)):
            local(param).copy_(local(mean))
        del state["format"]
    if param.dtype != mean.dtype:
        state["format"] = torch.empty(0, dtype=param.dtype)


def by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the tensors on each device, so that each device is waited for once."""
    indices: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        indices.setdefault(tensor.device, []).append(i)
    return list(indices.values())


def adopt_changed_params(pairs: Sequence[tuple[Tensor, dict[str, Any]]]) -> None:
    """Take the parameter as the new mean wherever it is not the rounded mean any more (other weights were loaded).

    Args:
        pairs: Parameters that should hold the mean, with their state.

    Raises:
        TrainingError: If a parameter has another shape than its state.
    """
    for param, state in pairs:
        if param.shape != state["mean"].shape:
            raise TrainingError(
                f"a parameter has shape {tuple(param.shape)} now, IVON's state for it {tuple(state['mean'].shape)}: an "
                "adapter of another rank was hot-swapped in; build a new optimizer"
            )
    same = [(param, state["mean"]) for param, state in pairs if param.dtype == state["mean"].dtype]
    if same:  # a copy is right in both cases, and cheaper than looking
        torch._foreach_copy_([mean for _, mean in same], [param for param, _ in same])
    rounded = [(param, state["mean"]) for param, state in pairs if param.dtype != state["mean"].dtype]
    for indices in by_device([param for param, _ in rounded]):
        differs = [(rounded[i][0] != rounded[i][1].to(rounded[i][0].dtype)).any() for i in indices]
        for i, changed in zip(indices, torch.stack(differs).tolist(), strict=True):
            if changed:
                rounded[i][1].copy_(rounded[i][0])


def restore_loaded_state(
    states: dict[Tensor, dict[str, Any]], params: Sequence[Tensor], saved: dict[str, Any]
) -> None:
    """Copy saved state again without the cast to the parameter's dtype that torch's ``load_state_dict`` makes.

    Args:
        states: ``optimizer.state`` after loading, corrected in place.
        params: All parameters in order of their groups.
        saved: The state dict that was loaded.

    Raises:
        TrainingError: If a saved tensor has another shape than its parameter.
    """
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, param in zip(numbers, params, strict=True):
        loaded = saved["state"].get(number, {})
        if "format" in loaded:
            states[param]["format"] = loaded["format"].detach().cpu()
        for key in loaded.keys() & set(CODE_KEYS):
            states[param][key] = loaded[key].detach().to(param.device, copy=True)
        for key in loaded.keys() & {"momentum", "hess", "mean"}:
            if loaded[key].shape != param.shape:
                raise TrainingError(
                    f"expected IVON state of shape {tuple(param.shape)} for parameter {number}, the checkpoint has "
                    f"{tuple(loaded[key].shape)}: it belongs to another model or adapter rank"
                )
            states[param][key] = loaded[key].detach().to(param.device, state_dtype(param), copy=True)
        if "step" in loaded:
            states[param]["step"] = torch.as_tensor(loaded["step"]).detach().to("cpu", copy=True)


def describe_posterior(
    param: Tensor, state: dict[str, Any], group: dict[str, Any], holds_draw: bool
) -> dict[str, Any]:
    """Copies of the whole mean and hess with what turns them into a posterior; see ``IVON.posterior_state``."""
    if not holds_draw:
        ensure_state(state, param, group)
        adopt_changed_params([(local(param), local_state(state))])
    numbers = {key: float(group[key]) for key in ("ess", "weight_decay", "hess_init", "beta2")}
    corrected = group["mean_step"] == "adam" and group["debias"]
    return {
        "mean": whole(state["mean"]).clone(),
        "hess": whole(read_state(state, "hess")).clone(),
        "step": int(state["step"]),
        "start_weight": 0.0 if corrected and state["step"] else numbers["beta2"] ** int(state["step"]),
        **numbers,
    }
