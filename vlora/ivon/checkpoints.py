"""Whole states of a model and IVON into FSDP2, DDP or one process, whichever of them saved.

``accelerator.load_state`` and ``torch.distributed.checkpoint`` go from any number of processes to any other, but not
from one layout to another: with one process accelerate leaves FSDP off and finds no file. ``load_states`` puts states
that are in memory as whole tensors into each. It opens no file: the formats of accelerate and torch hold pickles,
which vlora does not read; reading them is one call of torch, in your own code (docs/processes.md).
"""
# pyright: reportPrivateImportUsage=false

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlora.errors import CheckpointError
from vlora.ivon.distributed import unwrap_optimizer
from vlora.ivon.loading import require_fitting
from vlora.ivon.shards import is_sharded

__all__ = ["load_states"]


def load_states(
    model: nn.Module, optimizer: Any, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Load whole tensors into a model and IVON as they are laid out here; every process must call it, with the same.

    Args:
        model: The model as it is trained: plain, DDP or FSDP2; with or without accelerate's wrapper.
        optimizer: IVON over the same parameters as in the run that was saved, or accelerate's wrapper of it.
        weights: State dict of the model; of tied parameters one name is enough.
        state: State dict of the optimizer, its parameters numbered (one process, DDP) or named (FSDP2).

    Raises:
        CheckpointError: The states are of another model, or of other parameters.
        TrainingError: The optimizer state is not IVON's, or of a run that had failed.
    """
    ivon = unwrap_optimizer(optimizer)
    if not {"state", "param_groups"} <= state.keys():
        raise CheckpointError(
            f"expected state and param_groups of an optimizer, got {', '.join(map(repr, [*state][:5]))}; "
            "hand over what the file holds under 'optimizer'"
        )
    names = [name for group in state["param_groups"] for name in group["params"]]
    if any(isinstance(name, str) for name in names):
        state = _numbered(state, model, ivon)
    _load_whole(model, ivon, _completed(dict(weights), model), state)


def _completed(weights: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Weights with all names of a tied parameter, of which safetensors holds one."""
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    names: dict[int, list[str]] = {}
    for name, param in bare.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    for same in names.values():
        saved = next((name for name in same if name in weights), None)
        weights |= {name: weights[saved] for name in same if saved is not None}
    return weights


def _numbered(saved: Mapping[str, Any], model: nn.Module, ivon: Any) -> dict[str, Any]:
    """An optimizer state under the names of parameters as ``ivon.state_dict()`` has it, under their numbers."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    groups: list[Any] = get_optimizer_state_dict(model, ivon)["param_groups"]  # pyright: ignore[reportAssignmentType]
    names = [[*group["params"]] for group in groups]
    if names != [[*group["params"]] for group in saved["param_groups"]]:
        raise CheckpointError(
            "the checkpoint's optimizer has other parameters than this one, or another order of them; build IVON as in "
            "the run that was saved"
        )
    numbers = {name: number for number, name in enumerate(itertools.chain(*names))}
    return {
        "state": {numbers[name]: state for name, state in saved["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]}
            for group in saved["param_groups"]
        ],
    }


def _load_whole(model: nn.Module, ivon: Any, weights: dict[str, Any], state: Mapping[str, Any]) -> None:
    """Put whole tensors into model and optimizer, weights first: IVON then takes a draw out of them."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )

    require_fitting(ivon.param_groups, state)
    _require_same(get_model_state_dict(model), weights)
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    params = [param for group in ivon.param_groups for param in group["params"]]
    parts = {number: _like(params[number], values) for number, values in state["state"].items()}
    ivon.load_state_dict({**state, "state": parts})


def _like(param: Tensor, values: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter, its tensors of the parameter's shape laid out as the parameter is."""
    if not is_sharded(param):
        return dict(values)
    from torch.distributed.tensor import distribute_tensor

    layout: Any = param
    return {
        key: distribute_tensor(value.to(layout.device), layout.device_mesh, layout.placements)
        if isinstance(value, Tensor) and value.shape == param.shape and key != "step"
        else value
        for key, value in values.items()
    }


def _require_same(here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse weights of another model before any of them is copied."""
    fits = [name for name in here if name in there and here[name].shape == there[name].shape]
    odd = sorted(({*here} | {*there}) - {*fits})
    if odd:
        raise CheckpointError(
            f"the checkpoint is of another model: {len(odd)} tensors are in one of them only or differ in shape, "
            f"first {odd[0]!r}; build the model as in the run that was saved"
        )
