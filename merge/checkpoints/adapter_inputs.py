"""Adapters for a merge into a base: read, checked, and merged with each other where the method does that in factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.adapters.ancestor import check_lineage, read_ancestor
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.adapters.keep import read_keep
from vlora.merge.adapters.opening import open_adapter
from vlora.merge.checkpoints.config import MODEL_METHODS, ModelMergeConfig
from vlora.merge.checkpoints.draft import Draft, layer_count
from vlora.merge.config import distinct, group_module_weights, group_weights
from vlora.merge.in_memory import merge_with_report
from vlora.merge.weights import Weights, check_weights
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.lora_layout import LoraKeys, split_keys

__all__ = ["AdapterPart", "read_adapters"]

_PREFIX = "base_model.model."
_MAGNITUDE = (".lora_magnitude_vector.weight", ".lora_magnitude_vector")
_BIAS = ".lora_B.bias"
_TOKENS = ".token_adapter.trainable_tokens_delta"
_DENSE = ("ties", "dare_linear", "dare_ties", "della")


@dataclass(frozen=True)
class AdapterPart:
    """One adapter (or the merge of several) as it is added to the base."""

    posterior: Posterior
    """Factors and whole tensors; what only a base can take is apart from it."""
    name: str
    modules: Mapping[str, LoraKeys]
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    """Module -> DoRA's m."""
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    """Module -> trained bias of B (``lora_bias``)."""
    tokens: Mapping[str, tuple[Sequence[int], Tensor]] = field(default_factory=dict)
    """Embedding -> numbers of its trained rows, and these rows (``trainable_token_indices``)."""
    weights: Weights | None = None
    index: int = 0
    content: str = ""
    """Hash of the adapter's tensors; empty for a merge of several."""

    def weight_of(self, module: str) -> float:
        """Weight of this adapter in a module."""
        return 1.0 if self.weights is None else self.weights.of(module)[self.index]


def read_adapters(
    config: ModelMergeConfig, draft: Draft, fingerprint: str | None, dry: bool = False
) -> list[AdapterPart]:
    """Read all adapters; one part comes back, or several for a method that compares dense updates entry by entry.

    Args:
        config: Which adapters, how.
        draft: Takes lineage, notes and problems.
        fingerprint: Of the base's weights.
        dry: Whether only shapes are wanted, so that several adapters are not merged yet.

    Raises:
        IncompatibleAdaptersError: An adapter that cannot be merged, by name, and the cure.
        PosteriorFormatError: An adapter cannot be read.
    """
    names = distinct([source.name or Path(source.path).name or source.path for source in config.adapters])
    opened = [open_adapter(source.path, source.revision) for source in config.adapters]
    loaded = [posterior for posterior, _ in opened]
    hashes = [whole.meta.mean_sha256 or tensors_sha256(whole.mean) for whole in loaded]
    parts = [
        replace(_split(posterior, name), content=content)
        for posterior, name, content in zip(loaded, names, hashes, strict=True)
    ]
    for source, part, (_, commit) in zip(config.adapters, parts, opened, strict=True):
        check_adapter(part.posterior, part.name, ancestor=config.ancestor is not None, into="model")
        draft.source_files.append(())
        draft.sources.append(
            {"name": part.name, "role": "adapter", "path": source.path, "revision": commit,
             "weight": source.weight, "mean_sha256": part.content,
             **({"module_weights": dict(source.module_weights)} if source.module_weights else {})}
        )  # fmt: skip
        _check_base(part, str(config.base_model), fingerprint, draft)
    check_together([part.posterior for part in parts], names)
    if config.ancestor is not None:
        _check_lineage(config, draft, parts)
    if config.keep is not None and config.keeps:
        _add_keep(config.keep, config, draft)
    if any(part.magnitudes or part.biases or part.tokens for part in parts):
        return [_alone(config, parts)]
    weights = check_weights(group_weights(config.adapters), len(parts), group_module_weights(config.adapters))
    if _goes_dense(config, parts):
        modules = sorted({module for part in parts for module in part.modules})
        weights.check_patterns(modules, names)
        weights = weights.over(modules, layer_count(config, draft, modules))
        return [replace(part, weights=weights, index=i) for i, part in enumerate(parts)]
    return [_stand_in(parts) if dry else _merged(config, draft, parts, names)]


def _check_lineage(config: ModelMergeConfig, draft: Draft, parts: list[AdapterPart]) -> None:
    """That all adapters fit their ancestor, before anything is merged."""
    ancestor = read_ancestor(str(config.ancestor))
    check_together([ancestor.posterior, parts[0].posterior], ["ancestor", parts[0].name])
    check_lineage(ancestor, [part.posterior for part in parts], [part.name for part in parts])
    draft.source_files.append(())
    draft.sources.append(
        {"name": "ancestor", "role": "ancestor", "path": ancestor.path, "mean_sha256": ancestor.sha256}
    )


def _add_keep(path: str, config: ModelMergeConfig, draft: Draft) -> None:
    """What the base is to keep, in the lineage."""
    found = read_keep(path)
    draft.source_files.append(())
    draft.sources.append(
        {"name": "keep", "role": "keep", "path": found.path, "sha256": found.sha256,
         "weight": 1.0 if config.keep_weight is None else config.keep_weight}
    )  # fmt: skip


def _merged(
    config: ModelMergeConfig, draft: Draft, parts: list[AdapterPart], names: list[str]
) -> AdapterPart:
    exact = [
        replace(part.posterior, mean={key: value.float() for key, value in part.posterior.mean.items()})
        for part in parts
    ]  # else the merged factors would be rounded to the dtype of the adapters
    merged, report = merge_with_report(
        exact,
        method=config.chosen_method,
        weights=group_weights(config.adapters),
        module_weights=group_module_weights(config.adapters),
        rank=config.rank or "auto",
        names=names,
        verify=config.verify,
        module_options=config.module_options,
        num_layers=layer_count(config, draft, ()) or None,
        **config.options(),
    )
    draft.adapter_report = report.to_json()
    draft.notes += [note for note in report.notes if not note.startswith("no posterior in")]
    return AdapterPart(merged, "merged", split_keys(merged.mean)[0])


def _stand_in(parts: list[AdapterPart]) -> AdapterPart:
    """All modules and tensors that any adapter has, with the factors of the first that has them: the right shapes."""
    mean: dict[str, Tensor] = {}
    for part in reversed(parts):
        mean |= part.posterior.mean
    posterior = replace(parts[0].posterior, mean=mean, hess={}, curvature=None, directions=None)
    return AdapterPart(posterior, "merged", split_keys(mean)[0])


def _goes_dense(config: ModelMergeConfig, parts: list[AdapterPart]) -> bool:
    """Whether the method compares entries of the dense updates, so that going through a rank would only lose."""
    return (
        config.chosen_method in MODEL_METHODS
        and config.chosen_method in _DENSE
        and config.options().get("space", "full") == "full"
        and config.rank in (None, "auto")
        and all(not split_keys(part.posterior.mean)[1] for part in parts)
    )


def _alone(config: ModelMergeConfig, parts: list[AdapterPart]) -> AdapterPart:
    """The only adapter, if it rescales weights, adds to biases or brings rows of an embedding."""
    special = next(part for part in parts if part.magnitudes or part.biases or part.tokens)
    kind = "DoRA" if special.magnitudes else "lora_bias" if special.biases else "trainable tokens"
    if len(parts) > 1:
        raise IncompatibleAdaptersError(
            f"{special.name!r} was trained with {kind}, which changes the base in its own way: several adapters "
            "cannot be merged with it exactly; merge it into the base alone, then the others into the result"
        )
    if config.keeps:
        raise IncompatibleAdaptersError(
            f"{special.name!r} was trained with {kind}, whose change of the base no curvature can be weighed against; "
            "leave keep out"
        )
    source = config.adapters[0]
    if (
        source.weight != 1
        or source.module_weights
        or config.options().get("scale", 1.0) != 1
        or config.module_options
    ):
        raise IncompatibleAdaptersError(
            f"{special.name!r} was trained with {kind} and has no meaning at another weight than 1; leave weight out"
        )
    return special


def _split(posterior: Posterior, name: str) -> AdapterPart:
    """The plain part of an adapter, and what only a merge into the base can take."""
    magnitudes, biases, tokens, mean = {}, {}, {}, {}
    for key, value in posterior.mean.items():
        suffix = next((s for s in _MAGNITUDE if key.endswith(s)), None)
        if suffix:
            magnitudes[key.removesuffix(suffix).removeprefix(_PREFIX)] = value
        elif key.endswith(_BIAS):
            biases[key.removesuffix(_BIAS).removeprefix(_PREFIX)] = value
        elif key.endswith(_TOKENS):
            module = key.removesuffix(_TOKENS).removeprefix(_PREFIX)
            tokens[module] = _token_rows(posterior.adapter_config, module, value, name)
        else:
            mean[key] = value
    changes: dict[str, Any] = {}
    config = dict(posterior.adapter_config)
    if magnitudes or biases or tokens:
        config |= {"use_dora": config.get("use_dora") and not magnitudes}
        config |= {"lora_bias": config.get("lora_bias") and not biases}
        config |= {"trainable_token_indices": None} if tokens else {}
        changes = {"mean": mean, "hess": {}, "directions": None, "adapter_config": config}
    plain = replace(posterior, **changes) if changes else posterior
    return AdapterPart(plain, name, split_keys(plain.mean)[0], magnitudes, biases, tokens)


def _token_rows(
    config: Mapping[str, Any], module: str, values: Tensor, name: str
) -> tuple[Sequence[int], Tensor]:
    """Numbers and values of the rows of an embedding; a list of numbers is for the only embedding there is."""
    given = config.get("trainable_token_indices") or []
    if isinstance(given, Mapping):
        given = next((v for k, v in given.items() if module == k or module.endswith(f".{k}")), [])
    if len(given) != len(values):
        raise IncompatibleAdaptersError(
            f"{name!r} holds {len(values)} trained rows of {module}, but trainable_token_indices of its configuration "
            f"names {len(given)}; restore the adapter_config.json that belongs to the weights"
        )
    return list(given), values


def _check_base(part: AdapterPart, base: str, fingerprint: str | None, draft: Draft) -> None:
    meta = part.posterior.meta.base_model
    known = meta.get("fingerprint")
    if known and fingerprint and known != fingerprint:
        draft.problems.append(
            f"{part.name!r} was trained on {meta.get('id')!r}, whose weights are not those of base_model {base!r} "
            "(their fingerprints differ); name the base that it was trained on"
        )
    trained = str(meta.get("id") or part.posterior.adapter_config.get("base_model_name_or_path") or "")
    if not known and trained and trained.rstrip("/") != base.rstrip("/"):
        draft.notes.append(f"{part.name} names {trained} as its base; {base} was taken as the same model")
