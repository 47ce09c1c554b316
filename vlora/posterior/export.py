"""From a trained model and its IVON optimizer to the fields of a posterior.

The adapter files are written by the PEFT model's own ``save_pretrained`` and read back, so that the mean is
saved exactly as PEFT would save it, whatever the adapter type; h comes from the optimizer's state.
"""

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlora.errors import TrainingError
from vlora.files import scratch_error
from vlora.ivon.shards import local
from vlora.posterior.fit import check_scaling
from vlora.posterior.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from vlora.posterior.gather import whole_adapter
from vlora.posterior.hashing import fingerprint_weights
from vlora.posterior.health import measure_health
from vlora.posterior.keys import adapter_tensors, unsaved_parameters, unwrap
from vlora.posterior.meta import PosteriorMeta

__all__ = ["collect", "describe_base", "gauge_id", "saved_by_peft"]


def collect(
    model: nn.Module,
    optimizer: Any,
    *,
    num_examples: int,
    adapter_name: str = "default",
    base_model: Mapping[str, Any] | None = None,
    seed: int = 0,
    **known: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor], PosteriorMeta, dict[str, Any]]:
    """Mean, h, settings and adapter configuration of a model trained with IVON.

    Args:
        model: PEFT model; ``module`` and ``_orig_mod`` wrappers are looked through.
        optimizer: IVON or a wrapper holding it as ``.optimizer``; is switched to hold the mean.
        num_examples: N, a whole number: the rows that one pass over the training data sees; for a stream without end,
            those that the run saw.
        adapter_name: Which adapter to save.
        base_model: ``id``, ``revision``, ``fingerprint``; found from the model when not given.
        seed: Seed of the numbered draws.
        **known: Further fields of :class:`PosteriorMeta`, e.g. ``gauge``, ``loss_reduction``.

    Raises:
        TrainingError: No optimizer step was taken, the trained values are not finite, the model is no PEFT model, or
            ``num_examples`` is no number of rows.
    """
    num_examples = _rows(num_examples)
    model, optimizer = unwrap(model), _unwrap_optimizer(optimizer)
    optimizer.eval()
    mean, adapter_config = saved_by_peft(model, adapter_name)
    states = _trained_states(model, optimizer, mean, adapter_name)
    for key, state in states.items():
        if mean[key].dtype in (torch.bfloat16, torch.float16):
            mean[key] = state["mean"].float().cpu()  # the exact mean, not what the format left of it
    check_scaling(model, mean, adapter_config, adapter_name)
    hess = {key: state["hess"].detach().float().cpu().clone() for key, state in states.items()}
    _check_finite(mean, hess)
    meta = PosteriorMeta(
        num_examples=num_examples,
        ess=_shared({key: state["ess"] for key, state in states.items()}),
        weight_decay=_shared({key: state["weight_decay"] for key, state in states.items()}),
        base_model=dict(base_model) if base_model else describe_base(model),
        seed=seed,
        **{**_run_facts(states, hess), **known},
    )
    return mean, hess, meta, adapter_config


def _rows(number: Any) -> int:
    if isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 1:
        return int(number)
    raise TrainingError(
        f"num_examples must be a whole number >= 1, got {number!r}: the rows that one pass over the training data "
        "sees; for a stream, max_steps x examples per step"
    )


def gauge_id(model: nn.Module, adapter_name: str = "default") -> str:
    """Hash of the adapter's ``lora_A`` factors; call before training. Equal ids mean an equal starting point."""
    digest = hashlib.sha256()
    for name, parameter in sorted(unwrap(model).named_parameters()):
        if f"lora_A.{adapter_name}" in name or f"lora_embedding_A.{adapter_name}" in name:
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def describe_base(model: nn.Module) -> dict[str, Any]:
    """Id, revision and weights fingerprint of the frozen model under a PEFT model."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or None
    revision = getattr(config, "_commit_hash", None)
    return {
        "id": name,
        "revision": revision,
        "fingerprint": fingerprint_weights(name, revision) if name else None,
    }


def saved_by_peft(
    model: nn.Module, adapter_name: str = "default"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of an adapter, as PEFT's own ``save_pretrained`` writes them.

    Sharded parameters are gathered, so every process of a sharded run must call this.

    Raises:
        TrainingError: The model is no PEFT model, or carries no adapter of that name.
        OutputError: The temporary folder that PEFT writes to is full or cannot be written.
    """
    adapters = getattr(model, "peft_config", None) or {}
    if adapter_name not in adapters:
        known = f"adapters {', '.join(adapters)}" if adapters else "no adapter"
        raise TrainingError(
            f"expected a PEFT model with the adapter {adapter_name!r}, got {type(model).__name__} with {known}: a "
            "posterior folder is a PEFT adapter; call get_peft_model before the optimizer is built, or name "
            "adapter_name"
        )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            gathered = whole_adapter(model, adapter_name)
            model.save_pretrained(temporary, selected_adapters=[adapter_name], state_dict=gathered)  # type: ignore[operator]
            folder = Path(temporary) if adapter_name == "default" else Path(temporary) / adapter_name
            mean = load_file(folder / ADAPTER_WEIGHTS)
            return mean, json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise scratch_error(error) from error


def _trained_states(
    model: nn.Module, optimizer: Any, mean: Mapping[str, Tensor], adapter_name: str
) -> dict[str, Mapping[str, Any]]:
    """Posterior state of every saved tensor that was trained; the others stay deterministic."""
    # a tensor that never got a gradient has no step
    stepped = [param for param, state in optimizer.state.items() if int(state.get("step", 0)) > 0]
    tensors = adapter_tensors(model, mean, adapter_name)
    addresses = {id(param) for param in stepped}
    _warn_if_replaced(stepped, optimizer)
    states = {key: optimizer.posterior_state(t) for key, t in tensors.items() if id(t) in addresses}
    if not states:
        raise TrainingError("no tensor of this adapter was stepped by the optimizer; train before you export")
    lost = unsaved_parameters(model, tensors, stepped, adapter_name)
    if lost:
        raise TrainingError(
            f"PEFT does not save {len(lost)} trained tensors with this adapter, first {lost[0]!r}: the folder would "
            "not hold what was learnt; train only the adapter, or name the module in modules_to_save"
        )
    return states


def _warn_if_replaced(stepped: Sequence[Tensor], optimizer: Any) -> None:
    """Say so when the weights at export are not those that the last step left, to which h belongs."""
    means = [(local(param.detach()), local(optimizer.state[param]["mean"])) for param in stepped]
    replaced = [p for p, mean in means if p.shape == mean.shape and (p != mean.to(p.dtype)).any()]
    if replaced:
        warnings.warn(
            f"{len(replaced)} of {len(stepped)} trained tensors were changed after the last optimizer step (hot-swap, "
            "load_best_model_at_end): the mean is what they hold now, h still belongs to what they held before",
            stacklevel=5,
        )


def _run_facts(states: Mapping[str, Mapping[str, Any]], hess: Mapping[str, Tensor]) -> dict[str, Any]:
    """Steps, beta2, h_0 and health when all tensors share them."""
    first = next(iter(states.values()))
    facts = {"steps": max(int(state["step"]) for state in states.values())}
    if len({state["beta2"] for state in states.values()}) > 1:
        return facts
    starts = {key: float(state["hess_init"]) for key, state in states.items()}
    weight = max(float(state["start_weight"]) for state in states.values())
    health = measure_health(hess, start_weight=weight, hess_init=starts)
    return {**facts, "beta2": first["beta2"], "hess_init": _shared(starts), "health": health}


def _check_finite(mean: Mapping[str, Tensor], hess: Mapping[str, Tensor]) -> None:
    for name, tensors in (("mean", mean), ("h", hess)):
        for key, value in tensors.items():
            if not torch.isfinite(value).all():
                raise TrainingError(
                    f"the {name} of {key} holds NaN or infinity: the run diverged; lower the lr"
                )


def _shared(values: Mapping[str, float]) -> float | dict[str, float]:
    distinct = set(values.values())
    return distinct.pop() if len(distinct) == 1 else dict(values)


def _unwrap_optimizer(optimizer: Any) -> Any:
    while "posterior_state" not in dir(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise TrainingError(
                f"expected vlora.IVON or accelerate's wrapper of it, got {type(optimizer).__name__}"
            )
        optimizer = inner
    return optimizer
