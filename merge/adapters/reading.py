"""From posterior folders to what the methods take: updates per module, and fully trained tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import Gram, dense, stored_gram
from vlora.merge.adapters.ancestor import Ancestor
from vlora.merge.adapters.full_tensors import FullTensor
from vlora.merge.update import LoraUpdate
from vlora.posterior import Posterior
from vlora.posterior.lora_layout import LoraKeys, module_scaling, split_keys

__all__ = ["Inputs", "read_inputs"]

COMPUTE_DTYPE = torch.float64
"""Adapters are small; double precision makes the golden identities hold to rounding of the stored dtype."""


@dataclass(frozen=True)
class Inputs:
    """The adapters of one merge with their layouts."""

    posteriors: Sequence[Posterior]
    names: Sequence[str]
    layouts: Sequence[dict[str, LoraKeys]]
    """Per adapter: module -> its keys."""
    ancestor: Ancestor | None = None
    """What all of them went on from, in a merge of one lineage."""
    last_start: dict[str, LoraUpdate] = field(default_factory=dict, compare=False)
    """The ancestor's update of the module that was read last, shared by all adapters."""

    @property
    def modules(self) -> list[str]:
        """Modules that any adapter updates, sorted."""
        return sorted({module for layout in self.layouts for module in layout})

    @property
    def full_keys(self) -> list[str]:
        """Keys of fully trained tensors in any adapter, sorted."""
        lora = {key for layout in self.layouts for keys in layout.values() for key in (keys.a, keys.b)}
        return sorted({key for posterior in self.posteriors for key in posterior.mean} - lora)

    def keys_of(self, module: str) -> LoraKeys:
        """Keys of a module in the first adapter that has it."""
        return next(layout[module] for layout in self.layouts if module in layout)

    def updates(self, module: str) -> list[LoraUpdate]:
        """One update per adapter; of rank 0 where an adapter leaves the module alone."""
        return [self.update(index, module) for index in range(len(self.posteriors))]

    def full_tensors(self, key: str) -> list[tuple[int, FullTensor]]:
        """Number of the adapter and its copy, for all adapters that have the tensor."""
        found = []
        for index, posterior in enumerate(self.posteriors):
            if key in posterior.mean:
                mean = posterior.mean[key].to(COMPUTE_DTYPE)
                precision, prior = self._precision(index, key)
                start = None if self.ancestor is None else _ancestral_tensor(self.ancestor, key)
                found.append((index, FullTensor(mean, precision, prior, self.names[index], key, start)))
        return found

    def update(self, index: int, module: str) -> LoraUpdate:
        """The update of one adapter."""
        posterior, layout, name = self.posteriors[index], self.layouts[index], self.names[index]
        if module not in layout:
            return self._empty(module, name)
        keys = layout[module]
        (precision_b, prior_b), (precision_a, prior_a) = (
            self._precision(index, keys.b),
            self._precision(index, keys.a),
        )
        activations = self._gram(index, module, "activation_gram", "inputs", posterior.mean[keys.a].shape[1])
        activations = None if activations is None else dense(activations)
        return LoraUpdate(
            posterior.mean[keys.b].to(COMPUTE_DTYPE),
            posterior.mean[keys.a].to(COMPUTE_DTYPE),
            module_scaling(posterior.adapter_config, module),
            precision_b,
            precision_a,
            prior_b,
            prior_a,
            self._gram(index, module, "input_gram", "inputs", posterior.mean[keys.a].shape[1]),
            self._gram(index, module, "output_gram", "outputs", posterior.mean[keys.b].shape[0]),
            name,
            module,
            activations,
            None if self.ancestor is None else self.ancestral(module),
        )

    def ancestral(self, module: str) -> LoraUpdate:
        """The ancestor's update of a module."""
        if self.ancestor is None:
            raise ValueError("these adapters have no common ancestor")
        if module not in self.last_start:
            self.last_start.clear()
            own = read_inputs([self.ancestor.posterior], ["ancestor"])
            self.last_start[module] = own.update(0, module)
        return self.last_start[module]

    def _precision(self, index: int, key: str) -> tuple[Tensor | None, float]:
        """Precision and prior of one tensor, untempered; relative to the ancestor if there is one."""
        if self.ancestor is None:
            return _precision(self.posteriors[index], key)
        return self.ancestor.site(self.posteriors[index], key, self.names[index]), 0.0

    def _gram(self, index: int, module: str, kind: str, side: str, size: int) -> Gram | None:
        key = f"{self.layouts[index][module].stem}.{kind}"
        found = stored_gram(self.posteriors[index].curvature or {}, key)
        if found is None:
            return None
        if found.shape != (size, size):
            raise IncompatibleAdaptersError(
                f"curvature of {self.names[index]!r} in {module} has {found.shape[0]} {side}, its factors have {size}; "
                "the file belongs to another adapter"
            )
        return found.to(COMPUTE_DTYPE)

    def _empty(self, module: str, name: str) -> LoraUpdate:
        index = next(i for i, layout in enumerate(self.layouts) if module in layout)
        keys, mean = self.layouts[index][module], self.posteriors[index].mean
        b = torch.zeros(mean[keys.b].shape[0], 0, dtype=COMPUTE_DTYPE)
        return LoraUpdate(
            b, torch.zeros(0, mean[keys.a].shape[1], dtype=COMPUTE_DTYPE), adapter=name, module=module
        )


def read_inputs(
    posteriors: Sequence[Posterior], names: Sequence[str], ancestor: Ancestor | None = None
) -> Inputs:
    """Sort the keys of all adapters."""
    return Inputs(posteriors, names, [split_keys(posterior.mean)[0] for posterior in posteriors], ancestor)


def _ancestral_tensor(ancestor: Ancestor, key: str) -> FullTensor:
    mean = ancestor.posterior.mean[key].to(COMPUTE_DTYPE)
    return FullTensor(mean, ancestor.precision(key), ancestor.prior(key), "ancestor", key)


def _precision(posterior: Posterior, key: str) -> tuple[Tensor | None, float]:
    """N (h + delta) and N delta of one tensor, untempered; (None, 0) if it is deterministic."""
    if key not in posterior.hess:
        return None, 0.0
    count, decay = posterior.meta.num_examples, posterior.meta.of("weight_decay", key)
    return count * (posterior.hess[key].to(COMPUTE_DTYPE) + decay), count * decay
