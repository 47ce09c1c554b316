"""8-bit optimizer state: momentum and h as codes, decoded for the moment in which a step or a draw needs them.

``state_bits=8`` replaces two of IVON's three state tensors of a parameter by a byte per entry and a scale per block of
256: 6.05 instead of 12 bytes per parameter. A quantised state has ``momentum_codes``, ``momentum_scale``,
``hess_codes``, ``hess_scale`` and ``hess_shift`` in the place of ``momentum`` and ``hess``, so that nobody takes codes
for values.

The mean stays float32. It is the result itself, with nothing else to restore it from; a step moves it by far less than
the distance of two 8-bit values; and noise is the difference of a parameter and its mean, which an error in the mean
would enter whole. Small tensors stay float32 too: they cost nothing, and the scales of part-filled blocks would.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlora.ivon.codes import decode_dynamic, decode_log, encode_dynamic, encode_log, rounding_phase

__all__ = [
    "CODED",
    "CODE_KEYS",
    "conform_state",
    "hess_shift",
    "is_coded",
    "read_state",
    "restore_storage",
    "state_bytes",
    "storage_settings",
    "write_state",
]

CODED = ("momentum", "hess")
"""State tensors that 8 bits replace."""
CODE_KEYS = ("momentum_codes", "momentum_scale", "hess_codes", "hess_scale", "hess_shift")
"""What stands for them in a quantised state."""


def is_coded(state: Mapping[str, Any]) -> bool:
    """Whether this state of a parameter is quantised."""
    return "hess_codes" in state


def read_state(state: Mapping[str, Any], key: str) -> Tensor:
    """``state[key]``, or for a quantised ``momentum`` or ``hess`` a new float32 tensor decoded from its codes."""
    if key not in CODED or not is_coded(state):
        return state[key]
    if key == "momentum":
        return decode_dynamic(state["momentum_codes"], state["momentum_scale"])
    return decode_log(state["hess_codes"], state["hess_scale"]).sub_(state["hess_shift"])


def write_state(
    state: dict[str, Any], momentum: Tensor, hess: Tensor, *, shift: float, step: int | None
) -> None:
    """Store new momentum and h as codes, in place where there are some.

    Args:
        state: State of one parameter; a float32 ``momentum`` or ``hess`` in it is dropped.
        momentum: Float32, shape of the parameter.
        hess: Float32, elementwise > -shift. Shape of the parameter.
        shift: What makes h positive, see :func:`hess_shift`.
        step: Number of the update, which the rounding of h depends on; None rounds to nearest.
    """
    values = hess + shift
    phase = 0.5 if step is None else rounding_phase(values, step)
    coded = (*encode_dynamic(momentum), *encode_log(values, phase, state.get("hess_scale")))
    for key in CODED:
        state.pop(key, None)
    for key, value in zip(CODE_KEYS, (*coded, torch.tensor(shift, dtype=torch.float32)), strict=True):
        if key in state:
            state[key].copy_(value)
        else:
            state[key] = value


def hess_shift(group: Mapping[str, Any]) -> float:
    """What is added to h before its logarithm: the prior for ``"price"``, whose h can be negative; else nothing."""
    return float(group["weight_decay"]) if group["hess_approx"] == "price" else 0.0


def conform_state(state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """Quantise a float32 state, or decode a quantised one, as ``state_bits`` of its group wants it.

    Both directions round to nearest. Float64 state and tensors below ``min_8bit_size`` entries are never quantised.
    """
    mean = state["mean"]
    wanted = (
        group["state_bits"] == 8 and mean.dtype == torch.float32 and mean.numel() >= group["min_8bit_size"]
    )
    if wanted and not is_coded(state):
        write_state(state, state["momentum"], state["hess"], shift=hess_shift(group), step=None)
    elif is_coded(state) and not wanted:
        values = {key: read_state(state, key) for key in CODED}
        for key in CODE_KEYS:
            del state[key]
        state.update(values)


def storage_settings(groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each group wants its state to be stored."""
    return [{key: group[key] for key in ("state_bits", "min_8bit_size")} for group in groups]


def restore_storage(
    groups: Iterable[dict[str, Any]],
    states: Mapping[Tensor, dict[str, Any]],
    settings: Iterable[dict[str, Any]],
) -> None:
    """Give groups their own storage settings back after a checkpoint brought others, and convert its state."""
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
        for param in group["params"]:
            if "mean" in states.get(param, {}):
                conform_state(states[param], group)
                if group["state_bits"] == 8 and not is_coded(states[param]):
                    # it may share memory with larger tensors, which would be kept for it
                    states[param].update({key: states[param][key].clone() for key in CODED})


def state_bytes(states: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of all state tensors, the step counters left out: 12 per float32 parameter, about 6 with 8-bit states."""
    tensors = (value for state in states for key, value in state.items() if key != "step")
    return sum(value.nbytes for value in tensors if isinstance(value, Tensor))
