"""Adapter surgery: zero the entries, or drop the rank components, that the posterior cannot tell from nothing.

Source: Graves 2011, "Practical Variational Inference for Neural Networks" (prune where the posterior density at zero is
high, which for a Gaussian is low |m| / std); for LoRA arXiv:2506.14280, entries only. Dropping whole rank components
by the moments of the product B A is ours. The ratios and their gauge are in :mod:`vlora.posterior.signal`.

Both return a posterior whose folder is a plain PEFT adapter. Only LoRA factors with h are touched; trained heads,
biases and magnitudes stay as they are. Removing is judged by the quadratic model of the loss that h is,

    predicted increase = 1/2 sum h m^2   over what is removed, before any temperature

in nats per example (per target token where ``meta.loss_reduction`` is ``token_mean``). It takes the mean for a minimum
and leaves interactions between entries out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from vlora.errors import ConfigError
from vlora.posterior.lora_layout import BASE_CHANGING, LoraKeys, module_rank, module_scaling, with_ranks
from vlora.posterior.posterior import Posterior
from vlora.posterior.pruned import (
    Pruned,
    PrunedModule,
    ascending,
    check_choice,
    describe,
    lowest,
    saliency,
    stochastic_modules,
    with_lineage,
)
from vlora.posterior.signal import Gauge, component_snr, entry_snr

__all__ = ["Pruned", "PrunedModule", "prune_entries", "prune_ranks"]

_NOT_A_PRODUCT = {
    "use_dora": "DoRA rescales the whole weight, so its update is not a sum of components",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "kasa_config": "KaSA changes the base weight",
    "monteclora_config": "MonteCLoRA has further trained tensors",
    "arrow_config": "Arrow routes between adapters",
    "target_parameters": "factors of expert stacks hold all experts at once",
}


def prune_entries(
    posterior: Posterior,
    *,
    fraction: float | None = None,
    snr: float | None = None,
    scope: Literal["tensor", "adapter"] = "tensor",
    gauge: Gauge = "balanced",
) -> Pruned:
    """Set the entries of A and B with the lowest ``|mean| / std`` to zero, for the mean and for all draws.

    A removed entry keeps its h, which is what the data said of it and what a merge counts; ``meta.fixed_zeros`` says
    that draws leave it at zero. An entry that is zero already counts as removed.

    Args:
        posterior: A LoRA posterior.
        fraction: Share of the entries to remove, 0 to 1.
        snr: Remove all entries below this ratio. Give one of the two.
        scope: Where ``fraction`` is counted: in every tensor by itself, or over the adapter. A starts at random
            values and B at zero, so ratios of A say less about what was learned, and a common count favours A.
        gauge: See :mod:`vlora.posterior.signal`.

    Raises:
        ConfigError: No posterior, no LoRA factor, or settings out of range.
    """
    check_choice(fraction=fraction, snr=snr)
    modules = stochastic_modules(posterior)
    ratios = {name: entry_snr(posterior, keys, gauge) for name, keys in modules.items()}
    flat = {key: ratio for found in ratios.values() for key, ratio in found.items()}
    drop = lowest(flat, fraction, snr, together=scope == "adapter")
    if any(bool(mask.any()) for mask in drop.values()):
        drop = {key: mask | (posterior.mean[key].cpu() == 0) for key, mask in drop.items()}
    rows = [
        describe(
            name, [(found[key], drop[key]) for key in found], saliency(posterior, {k: drop[k] for k in found})
        )
        for name, found in ratios.items()
    ]
    pruned = Pruned(posterior, "entries", rows)
    if not pruned.removed:
        return pruned
    mean = {k: v.masked_fill(drop[k].to(v.device), 0) if k in drop else v for k, v in posterior.mean.items()}
    fixed = sorted({*posterior.meta.fixed_zeros, *(key for key, mask in drop.items() if bool(mask.any()))})
    result = replace(posterior, mean=mean, meta=replace(posterior.meta, fixed_zeros=fixed))
    return replace(pruned, posterior=with_lineage(result, posterior, pruned))


def prune_ranks(
    posterior: Posterior,
    *,
    keep_rank: int | None = None,
    fraction: float | None = None,
    snr: float | None = None,
    scope: Literal["module", "adapter"] = "adapter",
    gauge: Gauge = "balanced",
) -> Pruned:
    """Drop the rank components with the lowest signal-to-noise ratio; every module keeps its best one.

    The kept components, their h and the scaling of every module are unchanged: ``lora_alpha`` and ``r`` follow, with
    ``rank_pattern`` and ``alpha_pattern`` where modules differ. Components are not rotated first, see
    :mod:`vlora.posterior.signal`.

    Args:
        posterior: A LoRA posterior of plain factor pairs (linear layers, Conv1D, embeddings).
        keep_rank: Components to keep in every module; a module of lower rank keeps all.
        fraction: Share of the components to drop.
        snr: Drop all components below this ratio. Give one of the three.
        scope: Where ``fraction`` is counted: over the adapter, or in every module by itself.
        gauge: See :mod:`vlora.posterior.signal`.

    Raises:
        ConfigError: No posterior, an adapter whose update is not a sum of components, or settings out of range.
    """
    check_choice(keep_rank=keep_rank, fraction=fraction, snr=snr)
    modules = stochastic_modules(posterior)
    _check_components(posterior, modules)
    ratios = {name: component_snr(posterior, keys, gauge) for name, keys in modules.items()}
    if keep_rank is not None:
        drop = {name: ascending(ratio) < len(ratio) - keep_rank for name, ratio in ratios.items()}
    else:
        drop = lowest(ratios, fraction, snr, together=scope == "adapter")
        drop = {name: mask & (ascending(ratios[name]) < len(mask) - 1) for name, mask in drop.items()}
    rows = [
        describe(name, [(ratios[name], drop[name])], _component_saliency(posterior, keys, drop[name]))
        for name, keys in modules.items()
    ]
    pruned = Pruned(posterior, "ranks", rows)
    if not pruned.removed:
        return pruned
    return replace(pruned, posterior=with_lineage(_sliced(posterior, modules, drop), posterior, pruned))


def _sliced(posterior: Posterior, modules: Mapping[str, LoraKeys], drop: Mapping[str, Tensor]) -> Posterior:
    """The posterior of the components that are kept, in their order."""
    mean, hess = dict(posterior.mean), dict(posterior.hess)
    ranks, scales = {}, {}
    for name, keys in modules.items():
        kept = (~drop[name]).nonzero()[:, 0]
        ranks[name], scales[name] = len(kept), module_scaling(posterior.adapter_config, name)
        for tensors in (mean, hess):
            for key, axis in ((keys.a, 0), (keys.b, 1)):
                if key in tensors:
                    tensors[key] = tensors[key].index_select(axis, kept.to(tensors[key].device)).contiguous()
    config = with_ranks(posterior.adapter_config, ranks, scales)
    return replace(
        posterior, mean=mean, hess=hess, adapter_config=config, meta=replace(posterior.meta, gauge=None)
    )


def _check_components(posterior: Posterior, modules: Mapping[str, LoraKeys]) -> None:
    config = posterior.adapter_config
    for option, reason in _NOT_A_PRODUCT.items():
        if config.get(option):
            raise ConfigError(
                f"rank components cannot be dropped with {option}: {reason}; prune entries instead"
            )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(BASE_CHANGING):
        raise ConfigError(
            f"rank components cannot be dropped: this adapter was initialised with {start}, which changes the base "
            "weights by its rank at every load; convert it first with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    for name, keys in modules.items():
        a, b, rank = posterior.mean[keys.a], posterior.mean[keys.b], module_rank(config, name)
        if a.ndim != 2 or b.ndim != 2:
            raise ConfigError(
                f"rank components of {name} cannot be dropped: it is a convolution with {a.ndim}-dimensional factors; "
                "only linear layers and embeddings can"
            )
        if not len(a) == b.shape[1] == rank:
            raise ConfigError(
                f"{name} has factors {tuple(b.shape)} and {tuple(a.shape)}, but adapter_config.json says r={rank}; "
                "restore the file that belongs to the weights"
            )


def _component_saliency(posterior: Posterior, keys: LoraKeys, drop: Tensor) -> float:
    """Loss increase of dropping components: setting ``b`` to zero and setting ``a`` to zero are the same change.

    With the full Gauss-Newton matrix ``1/2 b^T H b`` and ``1/2 a^T H a`` would be equal; their diagonal estimates are
    averaged, and not added, which would count the change twice.
    """
    masks = {
        keys.a: drop[:, None].expand(posterior.mean[keys.a].shape),
        keys.b: drop[None, :].expand(posterior.mean[keys.b].shape),
    }
    known = [saliency(posterior, {key: mask}) for key, mask in masks.items() if key in posterior.hess]
    return sum(known) / len(known)
