"""Curvature files of whole models: which Grams belong to which tensor, from headers alone.

``curvature.safetensors`` holds ``<module>.input_gram`` and its like for the linear layers that were measured
(:mod:`vlora.curvature`). The file of an adapter will do for the model that the adapter was merged into: PEFT's prefix
is taken off. One matrix after the other is read, when its tensor is made.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora.errors import CheckpointError, ConfigError
from vlora.merge.checkpoints.adapter_keys import base_key, is_conv1d, plain_name
from vlora.merge.checkpoints.headers import Checkpoint, TensorEntry, read_header
from vlora.merge.checkpoints.module_grams import ModuleGrams
from vlora.posterior.hashing import CURVATURE

if TYPE_CHECKING:
    from vlora.merge.checkpoints.config import ModelMergeConfig
    from vlora.merge.checkpoints.draft import Draft

__all__ = ["NEEDS_GRAMS", "CurvatureFiles", "draft_curvature"]

NEEDS_GRAMS = {
    "regmean": ("activation_gram",),
    "mats": ("input_gram", "output_gram"),
    "gradient_matching": ("input_gram",),
}
"""Methods with curvature -> the Grams of a layer that they take."""
_KEY = re.compile(r"(.+)\.((?:input|output|activation)_gram)(\.vectors|\.values|\.tail)?")
_KEEP = "keep"


@dataclass
class CurvatureFiles:
    """The Grams of all models of a merge, and what stands in their way."""

    kinds: Sequence[str]
    """Grams that the method needs."""
    known: Mapping[str, Mapping[str, ModuleGrams]]
    """Model -> tensor -> Grams."""
    kept: Mapping[str, ModuleGrams] | None = None
    """Tensor -> what the base is to keep; None without ``keep``."""
    problems: list[str] = field(default_factory=list)
    _lacking: dict[str, list[str]] = field(default_factory=dict)

    def of(self, key: str, shape: tuple[int, ...], models: Sequence[str]) -> tuple[ModuleGrams, ...]:
        """Grams of a tensor, one per model; none if no model has any.

        Args:
            key: Name of the tensor.
            shape: As stored: (outputs, inputs), of ``Conv1D`` (inputs, outputs).
            models: Names of the models that take part.
        """
        grams = {model: self.known.get(model, {}).get(key) for model in models}
        if not any(grams.values()):
            return ()
        found = []
        for model, given in grams.items():
            if given is None or any(given.size(kind) is None for kind in self.kinds):
                self._lacking.setdefault(model, []).append(key)
            elif odd := given.not_square(self.kinds):
                self.problems.append(f"the curvature of {given.where}: {odd}")
            elif not given.fits(self.kinds, shape):
                sizes = ", ".join(f"{kind} {given.size(kind)}" for kind in self.kinds)
                self.problems.append(
                    f"the curvature of {given.where} has other sizes ({sizes}) than {key} {shape}; the file belongs to "
                    "another model, or the layer is no plain linear one"
                )
            else:
                found.append(given)
        return tuple(found) if len(found) == len(models) else ()

    def kept_of(self, key: str, shape: tuple[int, ...]) -> ModuleGrams | None:
        """What the base is to keep of a tensor that all models have Grams of; None without ``keep``."""
        if self.kept is None:
            return None
        found = self.kept.get(key)
        if found is None or found.size("input_gram") is None:
            self._lacking.setdefault(_KEEP, []).append(key)
        elif odd := found.not_square(("input_gram",)):
            self.problems.append(f"keep in {found.module}: {odd}")
        elif not found.fits(("input_gram",), shape):
            self.problems.append(
                f"keep has {found.size('input_gram')} rows as input_gram of {key} {shape}; is it of this base model?"
            )
        return found

    def all_problems(self) -> list[str]:
        """What stands in the way, one sentence per model and kind of fault."""
        wanted = " and ".join(self.kinds)
        return self.problems + [
            f"the curvature of {model!r} has no {wanted} for {len(keys)} tensors, first {keys[0]}, that this merge "
            "needs; gather it for the same layers (vlora curvature"
            + (", activations: true)" if "activation_gram" in self.kinds else ")")
            for model, keys in self._lacking.items()
        ]


def draft_curvature(
    config: "ModelMergeConfig", draft: "Draft", folders: Mapping[str, Path], reference: Checkpoint
) -> CurvatureFiles | None:
    """Find and read the headers of the curvature of all models; None where the method takes none.

    Args:
        config: Which method, and where files were said to be.
        draft: Takes lineage, notes and problems.
        folders: Model -> its folder, in the order of ``config.models``.
        reference: Whose names the tensors have.

    Raises:
        CheckpointError: A file is damaged or belongs to another model.
    """
    kinds = NEEDS_GRAMS.get(draft.method)
    if kinds is None or config.curvature == "isotropic":
        return None
    paths = {
        name: _path(folder, source.curvature, name)
        for (name, folder), source in zip(folders.items(), config.models, strict=True)
    }
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        optional = draft.method == "gradient_matching" and config.curvature != "kronecker"
        none = len(missing) == len(paths)
        if optional and none and not config.keeps:
            draft.notes.append(
                f"no model has a {CURVATURE}: without curvature gradient matching is the weighted sum; gather it with "
                "vlora curvature"
            )
            return None
        reason = " because of keep" if optional and none else ""
        draft.problems.append(
            f"method {draft.method} needs curvature of every model{reason}, and {', '.join(map(repr, missing))} has "
            "none: gather it with vlora curvature, or name the file under curvature of the model"
            + (_without(config.keeps, none) if optional else "")
        )
    known = {}
    for name, path in paths.items():
        if path is not None:
            entries, digest = read_header(path)
            known[name] = _by_tensor(entries, path, name, reference.tensors, draft.config)
            held = {entry.name: entry for entry in entries}
            found = Checkpoint(f"curvature of {name}", path.parent, held, {path.name: digest})
            draft.add_checkpoint(found, "curvature", str(path), None)
    return CurvatureFiles(kinds, known, _kept(config, draft, reference)) if not missing else None


def _without(keeps: bool, none: bool) -> str:
    """How gradient matching goes without curvature, where no model has any (none) or some lack it."""
    if keeps and none:
        return "; or leave keep out"
    return f"; or {'leave keep out and ' if keeps else ''}set curvature: isotropic for the plain sum"


def _kept(config: "ModelMergeConfig", draft: "Draft", reference: Checkpoint) -> dict[str, ModuleGrams] | None:
    """Tensor -> the Grams of what the base is to keep."""
    if config.keep is None or not config.keeps:
        return None
    path = Path(config.keep).expanduser()
    path = path / CURVATURE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(
            f"keep: no file or folder {config.keep} with {CURVATURE}; correct it, or leave keep out"
        )
    entries, digest = read_header(path)
    found = Checkpoint(_KEEP, path.parent, {entry.name: entry for entry in entries}, {path.name: digest})
    weight = 1.0 if config.keep_weight is None else config.keep_weight
    draft.add_checkpoint(found, _KEEP, config.keep, None, weight=weight)
    return _by_tensor(entries, path, _KEEP, reference.tensors, draft.config)


def _path(folder: Path, given: str | None, name: str) -> Path | None:
    """The curvature file of a model: the one that is given, or the one beside its weights; None without.

    Raises:
        CheckpointError: There is none where it was said to be.
    """
    if given is None:
        beside = folder / CURVATURE
        return beside if beside.is_file() else None
    path = Path(given).expanduser()
    path = path / CURVATURE if path.is_dir() else path
    if not path.is_file():
        raise CheckpointError(f"{name!r}: no curvature file {path}; correct curvature")
    return path


def _by_tensor(
    entries: Sequence[TensorEntry],
    path: Path,
    name: str,
    tensors: Mapping[str, TensorEntry],
    config: Mapping[str, Any],
) -> dict[str, ModuleGrams]:
    """Tensor -> its Grams, from the header of a model's curvature file; ``tensors`` and ``config`` are the models'."""
    modules: dict[str, dict[str, TensorEntry]] = {}
    for entry in entries:
        match = _KEY.fullmatch(entry.name)
        if match:
            modules.setdefault(plain_name(match[1]), {})[match[2] + (match[3] or "")] = entry
    found = {}
    for module, own in modules.items():
        key = base_key(f"{module}.weight", tensors, config)
        if key is None:
            raise CheckpointError(
                f"{path} of {name!r} has curvature of {module}, which the models do not have; the file belongs to "
                "another model"
            )
        if key.endswith(f"{module}.weight") or module.endswith(key.removesuffix(".weight")):
            found[key] = ModuleGrams(
                name, module, own, is_conv1d(module, config)
            )  # else an output layer that is tied: shared weights
    if not modules:
        raise CheckpointError(f"{path} of {name!r} holds no Gram; gather it with vlora curvature")
    return found
