"""State that IVON keeps for each parameter: ``step``, ``momentum``, ``hess`` and the exact ``mean``.

Tensors are float32, or float64 for float64 parameters, and shaped like the parameter: 1 - beta2 is far below the
resolution of bfloat16, where h would never move. ``mean`` is the master copy of a low-precision parameter.

Small tensors of a group are made as views that lie next to one another, so that ``vlora.ivon.blocks`` need not gather
them at every step. Nothing depends on it: a tensor that was replaced is gathered.
"""
# pyright: reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import ConfigError, TrainingError
from vlora.ivon.blocks import empty_together
from vlora.ivon.low_precision import CODE_KEYS, conform_state, is_coded, read_state
from vlora.ivon.shards import is_sharded, local, local_state, refuse_hidden, whole

__all__ = [
    "adopt_changed_params",
    "by_device",
    "describe_posterior",
    "ensure_states",
    "restore_loaded_state",
    "state_dtype",
]


STATE_KEYS = ("mean", "momentum", "hess")
"""State tensors of a parameter that are not quantised."""
Owned = tuple[dict[str, Any], Tensor, Mapping[str, Any]]
"""``optimizer.state[param]``, the parameter, and its group."""


def state_dtype(param: Tensor) -> torch.dtype:
    """Dtype of the state of ``param``: float64 for float64, else float32.

    Raises:
        ConfigError: If the parameter is not real floating point.
    """
    if not param.is_floating_point():
        raise ConfigError(f"IVON needs real floating-point parameters, got one of dtype {param.dtype}")
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def ensure_states(items: Sequence[Owned]) -> None:
    """Fill empty states from their parameters; let the others follow a parameter or group that changed.

    A parameter may change device or dtype, its group ``state_bits``. A cast of the parameter loses nothing: the mean
    keeps the digits that the parameter had before.

    Args:
        items: States, changed in place, with parameters that hold the mean and their groups.
    """
    _fill([item for item in items if "mean" not in item[0] and item[2]["state_bits"] == 32])
    for state, param, group in items:
        if "mean" not in state:
            _fill(
                [(state, param, group)]
            )  # one by one, so that only one is in float32 before it is quantised
        mean, usual = state["mean"], "format" not in state and is_coded(state) == (group["state_bits"] == 8)
        if not (usual and mean.dtype == param.dtype and mean.device == param.device):
            _follow(state, param, group)  # not called for nothing: there may be hundreds of parameters


def _fill(items: Sequence[Owned]) -> None:
    for _, param, group in items:
        state_dtype(param)
        _refuse_shards(param, group)
        refuse_hidden(param)
    for state, *_ in items:
        state["step"] = torch.zeros(())
    pairs = [(state, param) for state, param, _ in items]
    store(pairs, "mean", [param.detach() for _, param in pairs])
    store(pairs, "momentum", [0.0] * len(items))
    store(pairs, "hess", [group["hess_init"] for *_, group in items])


def store(pairs: Sequence[tuple[dict[str, Any], Tensor]], key: str, values: Sequence[Tensor | float]) -> None:
    """Give states a tensor each, shaped like the parameter and in the state's dtype; small ones together in memory.

    Args:
        pairs: States with their parameters.
        key: ``mean``, ``momentum`` or ``hess``.
        values: What the tensors are to hold, copied.
    """
    places: dict[Any, list[int]] = {}
    for i, (state, param) in enumerate(pairs):
        if is_sharded(param):
            state[key] = _sharded(values[i], param)
        else:
            places.setdefault((param.device, param.dtype), []).append(i)
    for rows in places.values():
        params = [pairs[i][1] for i in rows]
        for i, room in zip(rows, empty_together(params, state_dtype(params[0])), strict=True):
            value = values[i]
            pairs[i][0][key] = room.copy_(value) if isinstance(value, Tensor) else room.fill_(value)


def _sharded(value: Tensor | float, param: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(param.device, state_dtype(param), copy=True)
    return torch.full_like(param, value, dtype=state_dtype(param))


def _follow(state: dict[str, Any], param: Tensor, group: Mapping[str, Any]) -> None:
    dtype = state_dtype(param)
    _refuse_shards(param, group)
    if state["mean"].device != param.device or state["mean"].dtype != dtype:
        conform_state(state, {**group, "state_bits": 32})
        for key in STATE_KEYS:
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
        saved: The state dict that was loaded, which fits (``vlora.ivon.loading``).
    """
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    numbered = zip(numbers, params, strict=True)
    numbered = [(number, param) for number, param in numbered if number in saved["state"]]
    found = []
    for number, param in numbered:
        state, loaded = states[param], saved["state"][number]
        found.append((state, param, loaded))
        if "format" in loaded:
            state["format"] = loaded["format"].detach().cpu()
        for key in loaded.keys() & set(CODE_KEYS):
            state[key] = loaded[key].detach().to(param.device, copy=True)
        if "step" in loaded:
            state["step"] = torch.as_tensor(loaded["step"]).detach().to("cpu", copy=True)
    for key in STATE_KEYS:
        kept = [(state, param, loaded[key].detach()) for state, param, loaded in found if key in loaded]
        store([(state, param) for state, param, _ in kept], key, [value for *_, value in kept])


def describe_posterior(
    param: Tensor, state: dict[str, Any], group: dict[str, Any], holds_draw: bool
) -> dict[str, Any]:
    """Copies of the whole mean and hess with what turns them into a posterior; see ``IVON.posterior_state``."""
    if not holds_draw:
        ensure_states([(state, param, group)])
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
