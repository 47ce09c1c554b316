"""S draws of one adapter held in one model at once, for forward passes over S times the rows.

    with Stack.of_draws(model, posterior, [None, 0, 1]).active() as stacked:
        logits = model(input_ids=ids.repeat(3, 1)).logits  # rows of the mean, of draw 0, of draw 1

Equal to holding each draw in turn up to the rounding of another order of summation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlora.errors import ConfigError
from vlora.posterior.fit import check_fit
from vlora.posterior.keys import adapter_tensors, unwrap
from vlora.stacked.blocks import block_list, shared_blocks, sharing
from vlora.stacked.leaves import patched, supports

if TYPE_CHECKING:
    from vlora.posterior import Posterior

__all__ = ["Stack", "obstacle"]

_LAYERS = {"Linear", "Linear8bitLt", "Linear4bit"}  # LoRA layers whose forward calls A and B as layers
_VARIANTS = {"DoraLinearVariant": "DoRA", "ALoraLinearVariant": "activated LoRA"}


class Stack:
    """Weights of S samples, ready to take the place of the adapter's own.

    Attributes:
        count: Number of samples, S.
        shared: Blocks below the first adapted one, computed once for all samples.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, Tensor], *, adapter_name: str = "default"
    ) -> None:
        """Take stacks of weights, one per stochastic tensor.

        Args:
            model: PEFT model; wrappers are looked through.
            weights: PEFT key -> weights of all samples, [S, ...].
            adapter_name: Name under which the adapter is loaded.

        Raises:
            ConfigError: The adapter cannot be stacked; :func:`obstacle` says so beforehand.
            PosteriorFormatError: The model carries no such adapter.
        """
        model = unwrap(model)
        live = adapter_tensors(model, weights, adapter_name)
        if (reason := _obstacle(model, live, adapter_name)) is not None:
            raise ConfigError(f"draws cannot be stacked: {reason}; use scoring: loop")
        self.count = len(next(iter(weights.values())))
        places = {id(tensor): key for key, tensor in live.items()}
        self._layers: dict[nn.Module, dict[str, Tensor]] = {}
        for module, name, tensor in _owners(model, live):
            self._layers.setdefault(module, {})[name] = weights[places[id(tensor)]].to(tensor)
        self.shared = shared_blocks(model, self._layers)
        blocks = block_list(model)
        self._depth = len(self.shared) / len(blocks) if blocks else 0.0

    @classmethod
    def of_draws(
        cls,
        model: nn.Module,
        posterior: "Posterior",
        draws: Sequence[int | None],
        *,
        antithetic: bool = False,
        adapter_name: str = "default",
    ) -> "Stack":
        """Hold numbered draws of a posterior, and its mean where the number is None.

        Raises:
            ConfigError: The adapter cannot be stacked.
            PosteriorFormatError: The adapter in the model has another layout, rank or scaling.
        """
        live = adapter_tensors(model, posterior.mean, adapter_name)
        check_fit(model, live, posterior.mean, posterior.adapter_config, adapter_name)
        keys = [key for key in live if key in posterior.hess]
        stacks = {key: torch.empty(len(draws), *live[key].shape, dtype=live[key].dtype) for key in keys}
        for number, draw in enumerate(draws):
            values = posterior.mean if draw is None else posterior.sample(draw, antithetic=antithetic)
            for key in keys:
                stacks[key][number] = values[key]
        return cls(model, stacks, adapter_name=adapter_name)

    def cost(self, count: int | None = None) -> float:
        """Forward passes that one pass with ``count`` samples (None: all) amounts to, by the blocks it runs."""
        count = self.count if count is None else count
        return self._depth + count * (1 - self._depth)

    @contextmanager
    def active(self, part: slice = slice(None), *, same_rows: bool = True) -> Iterator[int]:
        """Let the model take rows sample after sample, [count * B, ...], inside the block.

        Args:
            part: Consecutive samples to hold.
            same_rows: Every sample is given the same B rows, so that blocks may be shared.

        Yields:
            Number of samples held.
        """
        layers = {
            module: {name: stack[part] for name, stack in weights.items()}
            for module, weights in self._layers.items()
        }
        count = len(range(self.count)[part])
        with patched(layers), sharing(self.shared if same_rows else [], count):
            yield count


def obstacle(model: nn.Module, posterior: Any, *, adapter_name: str = "default") -> str | None:
    """Why the draws of this posterior cannot be stacked in this model; None when they can.

    Stacked are LoRA factors on linear layers with their biases, and fully trained linear layers, embeddings and layer
    norms. DoRA and other variants compute with their weights outside the layers, and have to be held one at a time.
    """
    model = unwrap(model)
    if not getattr(model, "peft_config", None):
        return "the model carries no PEFT adapter"
    kind = posterior.adapter_config.get("peft_type")
    if kind != "LORA":
        return f"the adapter is {kind}, not LoRA"
    live = adapter_tensors(model, posterior.mean, adapter_name)
    return _obstacle(model, {key: live[key] for key in live if key in posterior.hess}, adapter_name)


def _obstacle(model: Any, live: Mapping[str, Tensor], adapter_name: str) -> str | None:
    if list(getattr(model, "active_adapters", [])) != [adapter_name]:
        return f"{adapter_name!r} is not the one active adapter"
    for name, layer in model.named_modules():
        if adapter_name in getattr(layer, "lora_variant", {}):
            variant = layer.lora_variant[adapter_name]
            shown = _VARIANTS.get(getattr(variant, "__name__", type(variant).__name__), "a LoRA variant")
            return f"{name.removeprefix('base_model.model.')} is {shown}"
        if hasattr(layer, "lora_A") and type(layer).__name__ not in _LAYERS and _holds(layer, live):
            return f"{name.removeprefix('base_model.model.')} is LoRA on {type(layer).__name__}"
        if hasattr(layer, "lora_A") and (layer.merged or layer.disable_adapters):
            return "the adapter is merged or disabled"
    names: dict[nn.Module, set[str]] = {}
    for module, name, _ in _owners(model, live):
        names.setdefault(module, set()).add(name)
    tables = {module for module in names if type(module) is nn.Embedding}
    if tables - set(model.get_base_model().get_input_embeddings().modules()):
        return "an embedding of something else than tokens is trained"
    wrong = [type(module).__name__ for module, held in names.items() if not supports(module, held)]
    return f"a {wrong[0]} is trained" if wrong else None


def _holds(layer: nn.Module, live: Mapping[str, Tensor]) -> bool:
    own = {id(parameter) for parameter in layer.parameters()}
    return any(id(tensor) in own for tensor in live.values())


def _owners(model: nn.Module, live: Mapping[str, Tensor]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every module that holds one of the tensors, and under which name; tied tensors have several owners."""
    wanted = {id(tensor) for tensor in live.values()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in wanted:
                yield module, name, parameter
