"""Model and IVON out of a folder that accelerate saved, on whatever processes go on.

``accelerator.save_state`` writes in three ways: parts that ``torch.distributed.checkpoint`` puts together again (FSDP2,
``SHARDED_STATE_DICT``), the whole under the parameters' names (FSDP2, ``FULL_STATE_DICT``), and the whole with a
numbered optimizer state (one process, DDP). ``accelerator.load_state`` reads what a run of the same kind has written on
any number of processes. ``load_checkpoint`` reads each of the three into FSDP2, DDP or one process, so that a sharded
run can go on unsharded, as on a single GPU, where accelerate leaves FSDP off, and the other way round.
"""
# pyright: reportPrivateImportUsage=false

import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlora.errors import CheckpointError
from vlora.ivon.distributed import unwrap_optimizer
from vlora.ivon.loading import require_fitting
from vlora.ivon.shards import is_sharded

__all__ = ["load_checkpoint"]

_SHARDED = ("pytorch_model_fsdp_0", "optimizer_0")
_GATHERED = ("pytorch_model_fsdp.bin", "optimizer.bin")
_WHOLE = ("model.safetensors", "optimizer.bin")


def load_checkpoint(folder: str | Path, model: nn.Module, optimizer: Any) -> None:
    """Load the first model and optimizer of a folder written by ``accelerator.save_state``, on any number of processes.

    Every process must call it. Schedulers, data loaders and random states are left to the caller. Needed only where the
    layout changes, FSDP2 to whole parameters or back; ``accelerator.load_state`` does the rest.

    Args:
        folder: The checkpoint.
        model: The model as it is trained: plain, DDP or FSDP2; with or without accelerate's wrapper.
        optimizer: IVON over the same parameters as in the run that was saved, or accelerate's wrapper of it.

    Raises:
        CheckpointError: The folder holds no such checkpoint, or one of another model.
        TrainingError: The optimizer state is not IVON's, is of other parameters, or of a run that had failed.
    """
    folder, ivon = Path(folder), unwrap_optimizer(optimizer)
    if all((folder / name).is_dir() for name in _SHARDED):
        _load_sharded(folder, model, ivon)
    elif all((folder / name).is_file() for name in _GATHERED):
        weights, state = (_read(folder / name) for name in _GATHERED)
        _load_whole(model, ivon, weights, _numbered(state, model, ivon))
    elif all((folder / name).is_file() for name in _WHOLE):
        weights, state = (_read(folder / name) for name in _WHOLE)
        _load_whole(model, ivon, _completed(weights, model), state)
    else:
        found = ", ".join(sorted(path.name for path in folder.glob("*"))[:6]) or "nothing"
        raise CheckpointError(
            f"expected a checkpoint of accelerator.save_state in {folder} ({' and '.join(_SHARDED)}, or "
            f"{' and '.join(_WHOLE)}), got {found}"
        )


def _load_sharded(folder: Path, model: nn.Module, ivon: Any) -> None:
    """Every process reads the parts that it needs of what any number of processes wrote."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    weights = {"model": get_model_state_dict(model)}
    state: dict[str, Any] = {**get_optimizer_state_dict(model, ivon)}
    # read beside the present state, which stays if it does not fit; weights are compared before any is read
    state["state"] = {
        name: {key: value.clone() if isinstance(value, Tensor) else value for key, value in values.items()}
        for name, values in state["state"].items()
    }
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process, as it should be
            alone = not dist.is_initialized()
            dcp.load({"optimizer": state}, checkpoint_id=folder / _SHARDED[1], no_dist=alone)
            require_fitting(ivon.param_groups, state)
            dcp.load(weights, checkpoint_id=folder / _SHARDED[0], no_dist=alone)
    except dcp.CheckpointException as error:  # its text is a traceback for each process
        first = next(iter(error.failures.values()))[0]
        raise CheckpointError(
            f"the checkpoint {folder} does not fit this model and IVON: {' '.join(str(first).split())[:300]}; build "
            "both as in the run that was saved"
        ) from error
    set_model_state_dict(model, weights["model"])
    set_optimizer_state_dict(model, ivon, state)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(
            f"cannot read {path}: {' '.join(str(error).split())[:200]}; take an earlier checkpoint"
        ) from error


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


def _numbered(saved: dict[str, Any], model: nn.Module, ivon: Any) -> dict[str, Any]:
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


def _load_whole(model: nn.Module, ivon: Any, weights: dict[str, Any], state: dict[str, Any]) -> None:
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
