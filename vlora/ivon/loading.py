"""Whether a checkpoint belongs to an optimizer, asked before anything of the optimizer is replaced.

torch's ``load_state_dict`` compares how many parameters the groups have and nothing else: state of another optimizer or
of another order of parameters would be taken over silently, and a refusal afterwards would come too late. Settings that
an older version did not save may be missing; 8-bit and 32-bit state are both welcome.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlora.errors import TrainingError
from vlora.ivon.faults import state_fault
from vlora.ivon.low_precision import CODE_KEYS, CODED
from vlora.ivon.ranges import require_usable
from vlora.ivon.shards import lowest_of_ranks

__all__ = ["require_fitting"]

_GROUP_KEYS = ("lr", "ess", "weight_decay", "draw")
"""What every version of IVON saves with a group, and no other optimizer."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "module.")


@torch.no_grad()
def require_fitting(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Refuse a state dict that is not IVON's, is of other parameters, or holds values that no draw can be made of.

    Args:
        groups: Parameter groups of the optimizer.
        saved: The state dict that is to be loaded; it may be keyed by numbers or, as
            ``torch.distributed.checkpoint`` does, by names.

    Raises:
        TrainingError: If it does not fit; nothing was changed.
    """
    _require_ivon(saved)
    _require_same_parameters(groups, saved["param_groups"])
    require_usable(saved["param_groups"])
    found = list(_saved_states(groups, saved))
    for number, param, _, state in found:
        _require_state(state, param, number)
    # processes that hold parts of the same parameters refuse together
    faults = [state_fault(state, group["weight_decay"]) for *_, group, state in found]
    own = next((i for i, fault in enumerate(faults) if fault), len(found))
    first = lowest_of_ranks(own, [param for _, param, *_ in found])
    if first < len(found):
        number, param, *_ = found[first]
        raise TrainingError(
            f"no draw can be made from the checkpoint's state of parameter {number}, shape {tuple(param.shape)}: "
            f"{faults[first] or 'see the other processes'}. The run had failed before it was saved; take an earlier "
            "checkpoint"
        )


def _require_ivon(saved: Mapping[str, Any]) -> None:
    if not {"state", "param_groups"} <= set(saved):
        raise TrainingError(
            "expected the state_dict() of IVON, got something without 'state' and 'param_groups'"
        )
    states = [state for state in saved["state"].values() if state]
    foreign = next((state for state in states if not _is_ivons(state)), None)
    if foreign is None and all(key in group for group in saved["param_groups"] for key in _GROUP_KEYS):
        return
    holds = f" with the state {', '.join(sorted(map(str, foreign)))}" if foreign is not None else ""
    raise TrainingError(
        f"expected a checkpoint of IVON, got one of another optimizer{holds}: resume with that one, or give IVON the "
        "model's weights alone and start anew"
    )


def _is_ivons(state: Mapping[str, Any]) -> bool:
    keys = set(state)
    return {"step", "mean"} <= keys and (keys >= set(CODED) or keys >= set(CODE_KEYS))


def _require_same_parameters(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    here, there = ([len(group["params"]) for group in some] for some in (groups, saved))
    if here != there:
        raise TrainingError(
            f"expected a checkpoint of {_counted(here)}, got one of {_counted(there)}: build the optimizer from the "
            "same parameters in the same groups as in the run that was saved"
        )
    for number, (group, other) in enumerate(zip(groups, saved, strict=True)):
        names, others = group.get("param_names"), other.get("param_names")
        if names is None or others is None:
            continue
        for name, found in zip(names, others, strict=True):
            if _bare(name) != _bare(found):
                raise TrainingError(
                    f"the checkpoint has {found!r} where parameter group {number} has {name!r}: give IVON the "
                    "parameters in the order of the run that was saved (if they were only renamed, drop param_names "
                    "from the checkpoint's groups)"
                )


def _counted(sizes: Sequence[int]) -> str:
    if len(sizes) > 8:
        return f"{sum(sizes)} parameters in {len(sizes)} groups"
    return f"{' + '.join(map(str, sizes))} parameters"


def _bare(name: str) -> str:
    """A parameter's name without what DDP, FSDP and torch.compile put before it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _saved_states(
    groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]
) -> Iterator[tuple[Any, Tensor, Mapping[str, Any], Mapping[str, Any]]]:
    """(number or name, parameter of the optimizer, saved group, saved state) wherever there is a saved state."""
    for group, other in zip(groups, saved["param_groups"], strict=True):
        for number, param in zip(other["params"], group["params"], strict=True):
            if saved["state"].get(number):
                yield number, param, other, saved["state"][number]


def _require_state(state: Mapping[str, Any], param: Tensor, number: Any) -> None:
    for key in ("mean", "momentum", "hess", "momentum_codes", "hess_codes"):
        if key in state and state[key].shape != param.shape:
            raise TrainingError(
                f"expected IVON state of shape {tuple(param.shape)} for parameter {number}, the checkpoint has "
                f"{tuple(state[key].shape)}: it belongs to another model or adapter rank"
            )
