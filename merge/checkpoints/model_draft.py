"""Draft of a merge of models: which tensors go together, and what does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.case import Case
from vlora.merge.checkpoints.config import NEEDS_BASE, ModelMergeConfig, ModelSource
from vlora.merge.checkpoints.draft import (
    Draft,
    config_differences,
    layer_count,
    output_dtype,
)
from vlora.merge.checkpoints.embeddings import Embeddings, choose_tokenizer
from vlora.merge.checkpoints.folders import (
    BUFFERS,
    is_matrix,
    is_tied,
    known_revision,
    model_folder,
    read_config,
    tied_partner,
)
from vlora.merge.checkpoints.function_keys import WRITTEN_OUT, function_changes
from vlora.merge.checkpoints.gram_files import CurvatureFiles, draft_curvature
from vlora.merge.checkpoints.headers import FLOATS, Checkpoint, TensorEntry, read_checkpoint, read_header
from vlora.merge.checkpoints.method_rules import method_notes, rule_for
from vlora.merge.checkpoints.rules import Copy
from vlora.merge.checkpoints.stream import TensorJob
from vlora.merge.config import distinct
from vlora.merge.layers import OptionsByModule
from vlora.merge.weights import Weights, check_weights

__all__ = ["draft_models"]


@dataclass(frozen=True)
class _Model:
    checkpoint: Checkpoint
    config: dict[str, Any]
    content: str
    """Fingerprint of its weight files."""

    @property
    def name(self) -> str:
        return self.checkpoint.name

    def find(self, key: str) -> TensorEntry | None:
        """The tensor; of a tied output layer that is not saved, the embedding."""
        tensors = self.checkpoint.tensors
        if key in tensors or not is_tied(self.config):
            return tensors.get(key)
        return tensors.get(tied_partner(key, tensors) or key)


def draft_models(config: ModelMergeConfig) -> Draft:
    """Match the tensors of all models and give each its rule.

    Raises:
        CheckpointError: A model cannot be read.
        ConfigError: A weight or pattern is not usable.
    """
    draft = Draft(config.chosen_method)
    base = _load(config.base_model, config.base_revision, "base", draft) if config.base_model else None
    names = distinct([source.name or Path(source.path).name or source.path for source in config.models])
    models = [_load_source(s, n, draft) for s, n in zip(config.models, names, strict=True)]
    fishers = [_fisher(s, n, draft) for s, n in zip(config.models, names, strict=True) if s.fisher]
    everyone = [*([base] if base else []), *models]
    first = everyone[0]
    draft.config = dict(first.config)
    _compare_configs(draft, everyone, config.allow_config_differences)
    embeddings = choose_tokenizer(
        draft, config.tokenizer, {m.name: m.checkpoint.folder for m in everyone}, [m.config for m in everyone]
    )
    weights = check_weights(
        [source.weight for source in config.models], len(models), [s.module_weights for s in config.models],
        "model",
    )  # fmt: skip
    keys = list(first.checkpoint.tensors)
    weights.check_patterns(keys, names)
    layers = layer_count(config, draft, keys)
    options = OptionsByModule(config.options(), config.module_options, layers)
    options.check_patterns(keys)
    curvature = draft_curvature(
        config, draft, {m.name: m.checkpoint.folder for m in models}, first.checkpoint
    )
    builder = _Builder(
        config, draft, base, models, fishers, weights.over(keys, layers), embeddings, options, curvature
    )
    for key in keys:
        builder.add(key)
    draft.problems += curvature.all_problems() if curvature else []
    _find_extra(draft, first, everyone[1:])
    draft.notes += method_notes(draft.method, draft.jobs)
    return draft


@dataclass(frozen=True)
class _Builder:
    """Makes the job of one tensor after the other."""

    config: ModelMergeConfig
    draft: Draft
    base: _Model | None
    models: Sequence[_Model]
    fishers: Sequence[Mapping[str, TensorEntry]]
    weights: Weights
    embeddings: Embeddings | None
    options: OptionsByModule
    curvature: CurvatureFiles | None = None

    def add(self, key: str) -> None:
        """Add the job of one tensor, or write down why it cannot be made."""
        reference = (self.base or self.models[0]).checkpoint.tensors[key]
        chosen = [(m, w) for m, w in zip(self.models, self.weights.of(key), strict=True) if w != 0]
        found = [(m, m.find(key), w) for m, w in chosen]
        for model, entry, _ in found:
            if entry is None and not key.endswith(BUFFERS):
                self.draft.missing.setdefault(model.name, []).append(key)
        if reference.dtype not in FLOATS or not found:
            if not found and self.base is None and not key.endswith(BUFFERS):
                self.weights.counted(key, range(len(self.models)))  # refuses: nothing is left to make it of
            self._copy(key, reference)
            return
        if any(entry is None for _, entry, _ in found):
            if key.endswith(BUFFERS):
                self._copy(key, reference)
            return
        self._merge(key, reference, [(m, e, w) for m, e, w in found if e is not None])

    def _copy(self, key: str, reference: TensorEntry) -> None:
        if reference.dtype.startswith("F8"):
            self.draft.problems.append(
                f"{key} is in {reference.dtype}, 8-bit codes whose scales are elsewhere; give the model in bfloat16"
            )
            return
        dtype = output_dtype(reference, self.config.dtype)
        self.draft.jobs.append(
            TensorJob(key, dtype, reference.shape, (reference,), Copy(not key.endswith(BUFFERS)))
        )

    def _merge(
        self, key: str, reference: TensorEntry, found: Sequence[tuple[_Model, TensorEntry, float]]
    ) -> None:
        from_base = self.base is not None and (
            self.draft.method in NEEDS_BASE or self.draft.method == "slerp"
        )
        entries = [*([reference] if from_base else []), *(entry for _, entry, _ in found)]
        owners = [*([self.base] if from_base and self.base else []), *(m for m, _, _ in found)]
        if self.draft.method == "fisher":
            entries += [self._fisher_of(model, key, entry) for model, entry, _ in found]
            owners += [model for model, _, _ in found]
        shape, maps = reference.shape, None
        if self.embeddings is not None and self.embeddings.covers(key, reference):
            shape = (self.embeddings.rows, *reference.shape[1:])
            maps = self.embeddings.maps([m.name for m in owners], [e.shape[0] for e in entries])
        columns_differ = any(e.shape[1:] != reference.shape[1:] for e in entries)
        if columns_differ or (maps is None and any(e.shape != reference.shape for e in entries)):
            shapes = zip(owners, entries, strict=True)
            self.draft.mismatched[key] = {m.name: list(e.shape) for m, e in shapes}
            return
        names = [m.name for m, _, _ in found]
        matrix = maps is None and is_matrix(key, shape, self.draft.config)
        grams = () if self.curvature is None or maps else self.curvature.of(key, shape, names)
        weights, contents = [w for _, _, w in found], [m.content for m, _, _ in found]
        options = self._options(key)
        if options.pop("keep", None) and grams and self.curvature is not None:
            options["keep"] = self.curvature.kept_of(key, shape)
        case = Case(key, shape, weights, names, contents, from_base, matrix, grams, options)
        rule = rule_for(self.draft.method, case, case.options)
        dtype = output_dtype(reference, self.config.dtype)
        self.draft.jobs.append(TensorJob(key, dtype, shape, tuple(entries), rule, maps, case))

    def _options(self, key: str) -> dict[str, Any]:
        rank = self.config.rank
        return self.options.of(key) | ({} if rank in (None, "auto", "lossless") else {"rank": rank})

    def _fisher_of(self, model: _Model, key: str, entry: TensorEntry) -> TensorEntry:
        found = self.fishers[self.models.index(model)].get(key)
        if found is None or found.shape != entry.shape:
            self.draft.problems.append(
                f"the Fisher file of {model.name!r} has no {key} of shape {entry.shape}"
            )
            return entry
        return found


def _load(
    path: str, revision: str | None, name: str, draft: Draft, role: str = "base", **facts: Any
) -> _Model:
    folder = model_folder(path, revision)
    checkpoint = read_checkpoint(folder, name)
    content = draft.add_checkpoint(checkpoint, role, path, known_revision(folder, revision), **facts)
    return _Model(checkpoint, read_config(folder, name), content)


def _load_source(source: ModelSource, name: str, draft: Draft) -> _Model:
    facts: dict[str, Any] = {"weight": source.weight}
    if source.module_weights:
        facts["module_weights"] = dict(source.module_weights)
    return _load(source.path, source.revision, name, draft, "model", **facts)


def _fisher(source: ModelSource, name: str, draft: Draft) -> Mapping[str, TensorEntry]:
    path, label = Path(str(source.fisher)).expanduser(), f"Fisher of {name}"
    if path.is_dir():
        found = read_checkpoint(path, label)
    elif path.is_file():
        entries, digest = read_header(path)
        found = Checkpoint(label, path.parent, {entry.name: entry for entry in entries}, {path.name: digest})
    else:
        raise CheckpointError(f"{name!r}: no Fisher file {path}; correct fisher")
    draft.add_checkpoint(found, "fisher", str(source.fisher), None)
    return found.tensors


def _compare_configs(draft: Draft, everyone: Sequence[_Model], allowed: Sequence[str]) -> None:
    kinds = {model.name: model.config.get("model_type") for model in everyone}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{name!r} is {kind}" for name, kind in kinds.items())
        draft.problems.append(f"the models have different architectures: {shown}")
    configs = {model.name: model.config for model in everyone}
    draft.differences = config_differences(configs)
    first, changes = everyone[0].name, function_changes(configs)
    kept = [key for key in changes if key in allowed or key.rpartition(".")[2] in allowed]
    for key, values in changes.items():
        if key in kept:
            continue
        shown = ", ".join(f"{value!r} in {name!r}" for name, value in values.items())
        draft.problems.append(
            f"the configurations differ in {key}, which changes what the weights compute: {shown}; leave a model out, "
            f"or add {key} to allow_config_differences to keep that of {first!r}"
        )
    kept += [key for key in draft.differences if key not in changes and key not in WRITTEN_OUT]
    if kept:
        draft.notes.append(f"the configurations differ in {', '.join(kept)}: the output has that of {first}")


def _find_extra(draft: Draft, first: _Model, others: Sequence[_Model]) -> None:
    for model in others:
        lone = [key for key in model.checkpoint.tensors if key not in first.checkpoint.tensors]
        lone = [key for key in lone if not key.endswith(BUFFERS)]
        tied = [key for key in lone if tied_partner(key, model.checkpoint.tensors) and is_tied(model.config)]
        if tied and is_tied(first.config):
            draft.notes.append(f"{model.name} saved its tied output layer ({tied[0]}); the embedding counts")
            lone = [key for key in lone if key not in tied]
        if lone:
            draft.extra[model.name] = lone
