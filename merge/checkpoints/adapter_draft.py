"""Draft of a merge of adapters into their base model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.adapter_inputs import AdapterPart, read_adapters
from vlora.merge.checkpoints.adapter_keys import base_key, is_transposed, plain_name
from vlora.merge.checkpoints.case import Case
from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.checkpoints.draft import Draft, layer_count, output_dtype
from vlora.merge.checkpoints.embeddings import choose_tokenizer
from vlora.merge.checkpoints.folders import (
    BUFFERS,
    is_tied,
    known_revision,
    model_folder,
    read_config,
    tied_partner,
)
from vlora.merge.checkpoints.headers import FLOATS, TensorEntry, read_checkpoint
from vlora.merge.checkpoints.lora_rules import (
    AddLowRank,
    AddVector,
    Dora,
    LowRank,
    OnUpdates,
    Replace,
    ReplaceRows,
)
from vlora.merge.checkpoints.method_rules import rule_for
from vlora.merge.checkpoints.rules import Copy, Rule
from vlora.merge.checkpoints.stream import TensorJob
from vlora.merge.layers import OptionsByModule
from vlora.posterior.hashing import fingerprint_weights
from vlora.posterior.lora_layout import module_scaling, split_keys

__all__ = ["draft_adapters"]

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def draft_adapters(config: ModelMergeConfig, dry: bool = False) -> Draft:
    """Merge the adapters, which are small, and say what each tensor of the base becomes.

    Args:
        config: Which adapters, into which base.
        dry: Whether only shapes are wanted: several adapters are then not merged with each other.

    Raises:
        CheckpointError: The base cannot be read, or an adapter does not fit it.
        IncompatibleAdaptersError: The adapters do not fit together or have no exact merge.
    """
    draft = Draft(config.chosen_method)
    path = str(config.base_model)
    folder = model_folder(path, config.base_revision)
    base = read_checkpoint(folder, "base")
    draft.add_checkpoint(base, "base", path, known_revision(folder, config.base_revision))
    draft.config = read_config(folder, "base")
    choose_tokenizer(draft, config.tokenizer, {"base": folder}, [draft.config])
    parts = read_adapters(config, draft, fingerprint_weights(str(folder)), dry)
    options = OptionsByModule(
        config.options(), config.module_options, layer_count(config, draft, base.tensors)
    )
    if len(parts) > 1:  # else the adapters were merged already, and the patterns looked at
        options.check_patterns(sorted({m for part in parts for m in part.modules}))
    changes = _Changes(draft, base.tensors, config, options)
    changes.add_all(parts)
    for key, entry in base.tensors.items():
        draft.jobs.append(changes.job(key, entry))
    changes.finish()
    return draft


@dataclass
class _Changes:
    """What happens to which tensor of the base."""

    draft: Draft
    tensors: Mapping[str, TensorEntry]
    settings: ModelMergeConfig
    options: OptionsByModule
    low_rank: dict[str, list[LowRank]] = field(default_factory=dict)
    special: dict[str, Rule] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    untied: dict[str, str] = field(default_factory=dict)
    """Output layer that becomes a tensor of its own -> the embedding that it shared."""

    def add_all(self, parts: Sequence[AdapterPart]) -> None:
        """Take over adapters: one that is added, or several whose dense updates are merged on the way."""
        first = parts[0].posterior
        trained = set(first.adapter_config.get("modules_to_save") or ())
        for key in split_keys(first.mean)[1]:
            name = plain_name(key)
            self._add_whole(name, first.mean[key], alone=bool(trained & set(name.split("."))))
        modules = sorted({module for part in parts for module in part.modules})
        for module in modules:
            owners = [part for part in parts if module in part.modules]
            self._add_module(module, owners, dense=len(parts) > 1)
        for module, vector in parts[0].biases.items():
            self._add_bias(module, vector * module_scaling(parts[0].posterior.adapter_config, module))
        for module, (indices, values) in parts[0].tokens.items():
            self._add_tokens(module, indices, values)

    def _add_tokens(self, module: str, indices: Sequence[int], values: Tensor) -> None:
        key = base_key(f"{module}.weight", self.tensors, self.draft.config)
        if key is None or key in (*self.special, *self.low_rank, *self.whole):
            reason = (
                "has no such tensor"
                if key is None
                else f"has {key} for it, which the adapter changes otherwise too"
            )
            raise CheckpointError(
                f"the adapter has trained rows of {module}, and the base {reason}; use PEFT's merge_and_unload"
            )
        shape = self.tensors[key].shape
        if max(indices) >= shape[0] or values.shape[1] != shape[1]:
            raise CheckpointError(
                f"the adapter has trained row {max(indices)} of {module} with {values.shape[1]} columns, the base has "
                f"{shape[0]} x {shape[1]}; give the base with the vocabulary that the adapter was trained with"
            )
        self.special[key] = ReplaceRows(indices, values)

    def _add_module(self, module: str, owners: Sequence[AdapterPart], dense: bool) -> None:
        key = base_key(f"{module}.weight", self.tensors, self.draft.config)
        if key is None:
            raise CheckpointError(
                f"the base has no tensor for the module {module} of the adapter; is it the base that the adapter was "
                "trained on?"
            )
        if tied_partner(f"{module}.weight", self.tensors) == key:
            self.draft.notes.append(
                f"{module} shares its weights with {key}: both change, as in PEFT's merge"
            )
        elif is_tied(self.draft.config) and key in _embedding_of(self.tensors):
            self.draft.notes.append(f"{key} is tied to the output layer: both change, as in PEFT's merge")
        shape = self.whole[key].shape if key in self.whole else self.tensors[key].shape
        updates = [self._update(part, module, tuple(shape)) for part in owners]
        if dense:
            self._add_dense(key, module, updates, owners)
        elif module in owners[0].magnitudes:
            flag = _transposed(updates[0], owners[0], module)
            self.special[key] = Dora(
                updates[0], owners[0].magnitudes[module].flatten().float(), flag, self.whole.get(key)
            )
        else:
            self.low_rank.setdefault(key, []).append(updates[0])

    def _update(self, part: AdapterPart, module: str, shape: tuple[int, ...]) -> LowRank:
        keys, config = part.modules[module], part.posterior.adapter_config
        a, b = part.posterior.mean[keys.a], part.posterior.mean[keys.b]
        flag = bool(config.get("fan_in_fan_out"))
        transposed = is_transposed(keys, shape, (b.shape[0], a.shape[1]), self.draft.config, flag)
        return LowRank.of(b, a, module_scaling(config, module), transposed)

    def _add_dense(
        self, key: str, module: str, updates: Sequence[LowRank], owners: Sequence[AdapterPart]
    ) -> None:
        pairs = [(u, p, p.weight_of(module)) for u, p in zip(updates, owners, strict=True)]
        pairs = [pair for pair in pairs if pair[2] != 0]
        if not pairs:
            return
        shape = updates[0].left.shape[0], updates[0].right.shape[1]
        names, contents = [p.name for _, p, _ in pairs], [p.content for _, p, _ in pairs]
        case = Case(
            key, shape, [w for _, _, w in pairs], names, contents, True, options=self.options.of(module)
        )
        rule = rule_for(self.draft.method, case, case.options)
        self.special[key] = OnUpdates(rule, [u for u, _, _ in pairs], case)

    def _add_bias(self, module: str, vector: Tensor) -> None:
        key = base_key(f"{module}.bias", self.tensors, self.draft.config)
        if key is None:
            raise CheckpointError(
                f"{module} of the base has no bias to add the adapter's lora_bias to; PEFT refuses too"
            )
        self.special[key] = AddVector(vector.float())

    def _add_whole(self, name: str, value: Tensor, alone: bool) -> None:
        """A tensor that the adapter brings; ``alone`` if it was trained apart from what it was tied to."""
        key = base_key(name, self.tensors, self.draft.config)
        if alone and key is not None and tied_partner(name, self.tensors) == key != name:
            self.untied[name], key = key, None
        self.whole[key or name] = value
        if alone and key and is_tied(self.draft.config) and key in _embedding_of(self.tensors):
            head = next((k for k in ("lm_head.weight",) if k not in self.tensors), None)
            if head and head not in self.whole:
                self.untied[head] = key

    def job(self, key: str, entry: TensorEntry) -> TensorJob:
        """The job of one tensor of the base."""
        dtype = output_dtype(entry, self.settings.dtype)
        rule, shape, inputs = self._rule(key), entry.shape, (entry,)
        if key in self.whole:
            shape, inputs = tuple(self.whole[key].shape), ()
            if shape != entry.shape:
                self._resized(key, entry.shape, shape)
        if not isinstance(rule, Copy) and entry.dtype not in FLOATS:
            self.draft.problems.append(
                f"{key} is in {entry.dtype}, to which nothing can be added; give a float base"
            )
        return TensorJob(key, dtype, shape, inputs, rule)

    def _rule(self, key: str) -> Rule:
        if key in self.special:
            return self.special[key]
        if key in self.low_rank:
            return AddLowRank(self.low_rank[key], self.whole.get(key))
        return Replace(self.whole[key]) if key in self.whole else Copy(not key.endswith(BUFFERS))

    def finish(self) -> None:
        """Tensors that the base does not have: heads, and output layers that are no longer tied."""
        for name, value in self.whole.items():
            if name not in self.tensors:
                dtype = output_dtype(_entry(name, value), self.settings.dtype)
                self.draft.jobs.append(TensorJob(name, dtype, tuple(value.shape), (), Replace(value)))
                if name not in self.untied:
                    self.draft.notes.append(
                        f"{name} is new, from the adapter: load the model with the class of its task"
                    )
        for name, shared in self.untied.items():
            self.draft.config["tie_word_embeddings"] = False
            self.draft.notes.append(
                f"{name} is no longer tied to {shared}, since the adapter trained only one of them"
            )
            if name not in self.whole:
                entry = self.tensors[shared]
                job = self.job(shared, entry)
                self.draft.jobs.append(
                    replace(job, name=name, inputs=(entry,), shape=entry.shape, rule=Copy())
                )

    def _resized(self, key: str, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        if old[1:] != new[1:] or key not in _embedding_of(self.tensors) and "lm_head" not in key:
            self.draft.problems.append(
                f"{key} has the shape {old} in the base and {new} in the adapter; other labels?"
            )
        else:
            self.draft.config["vocab_size"] = new[0]
            self.draft.notes.append(
                f"{key} has {new[0]} rows instead of {old[0]}: take the adapter's tokenizer"
            )


def _transposed(update: LowRank, part: AdapterPart, module: str) -> bool:
    """Whether L is A^T, by its size and, for a square one, its content."""
    a = part.posterior.mean[part.modules[module].a]
    return update.left.shape[0] == a.shape[1] and torch.equal(update.left, a.float().mT)


def _embedding_of(tensors: Mapping[str, TensorEntry]) -> list[str]:
    partner = tied_partner("lm_head.weight", tensors)
    return [partner] if partner else []


def _entry(name: str, value: Tensor) -> TensorEntry:
    return TensorEntry(name, _DTYPES.get(value.dtype, "F32"), tuple(value.shape), Path(), 0)
