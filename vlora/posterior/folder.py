"""The posterior folder on disk: first of all a valid PEFT adapter, with the posterior beside it.

    adapter_config.json        PEFT's own          posterior.safetensors   h per stochastic tensor, float32
    adapter_model.safetensors  PEFT's own, mean    posterior.json          settings, lineage, hashes
    README.md                  model card
    optional: calibration.json; curvature.safetensors, Kronecker factors; directions.safetensors, leading directions of
    the Fisher matrix, k rows for every stochastic tensor and their eigenvalues

Only safetensors and JSON are read. Every load checks keys, shapes, finiteness and hashes.
"""

import errno
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlora.errors import PosteriorFormatError
from vlora.files import atomic_folder, check_output_folder
from vlora.posterior.decisions import check_content
from vlora.posterior.hashing import CURVATURE, tensors_sha256
from vlora.posterior.leading import Leading
from vlora.posterior.meta import PosteriorMeta
from vlora.posterior.stored import StoredTensors

if TYPE_CHECKING:
    from vlora.posterior.posterior import Posterior

__all__ = ["read", "write", "write_tensors"]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
POSTERIOR_META = "posterior.json"
POSTERIOR_HESS = "posterior.safetensors"
DIRECTIONS = "directions.safetensors"
CALIBRATION = "calibration.json"


def write(
    posterior: "Posterior", target: str | os.PathLike, *, overwrite: bool, text_files: Mapping[str, str]
) -> None:
    """Write a posterior folder whole or not at all.

    Raises:
        OutputExistsError: The target holds something that is not an adapter, or ``overwrite`` is false.
        OutputError: The place cannot be written.
        PosteriorFormatError: A tensor is not finite, so that the folder could not be read back.
    """
    path = check_output_folder(target, ADAPTER_CONFIG, overwrite=overwrite)
    meta = replace(
        posterior.meta,
        mean_sha256=tensors_sha256(posterior.mean),
        hess_sha256=tensors_sha256(posterior.hess),
        versions=_versions(),
    )
    _check_tensors(posterior.mean, posterior.hess, meta, "this posterior")
    directions = posterior.directions.tensors(_shapes(posterior.hess)) if posterior.directions else None
    with atomic_folder(path) as folder:
        _write_json(folder / ADAPTER_CONFIG, dict(posterior.adapter_config))
        write_tensors(folder / ADAPTER_WEIGHTS, posterior.mean)
        if posterior.has_hess:
            write_tensors(folder / POSTERIOR_HESS, posterior.hess)
        if posterior.has_hess or meta.num_examples or meta.sources:  # a plain adapter keeps its lineage
            _write_json(folder / POSTERIOR_META, meta.to_json())
        if posterior.curvature:
            write_tensors(folder / CURVATURE, posterior.curvature)
        if directions:
            write_tensors(folder / DIRECTIONS, directions)
        if posterior.calibration:
            _write_json(folder / CALIBRATION, dict(posterior.calibration))
        for name, text in text_files.items():
            (folder / name).write_text(text, encoding="utf-8")


def read(folder: Path, *, stored: bool = False) -> dict[str, Any]:
    """Read and check a posterior folder or a plain PEFT adapter.

    Args:
        folder: Where it lies.
        stored: Leave the curvature in its file, from where every access reads it; it is checked all the same.

    Returns:
        The fields of :class:`vlora.posterior.Posterior`.

    Raises:
        PosteriorFormatError: What is wrong, where, and the likely cure, in one line.
    """
    if not folder.is_dir():
        raise PosteriorFormatError(
            f"no folder {folder}; give a posterior or PEFT adapter folder, or a hub id"
        )
    if not (folder / ADAPTER_CONFIG).is_file():
        raise PosteriorFormatError(f"{folder} is not an adapter folder: it has no {ADAPTER_CONFIG}")
    adapter_config = _read_object(folder / ADAPTER_CONFIG)
    if "peft_type" not in adapter_config:
        raise PosteriorFormatError(
            f"{folder / ADAPTER_CONFIG} names no peft_type; is it PEFT's own adapter configuration?"
        )
    mean = _read_mean(folder)
    hess, meta = _read_posterior(folder, mean, adapter_config)
    _check_tensors(mean, hess, meta, str(folder))
    curvature = None
    if (folder / CURVATURE).is_file():
        curvature = StoredTensors(folder / CURVATURE) if stored else _read_tensors(folder / CURVATURE)
        _check_finite(curvature, "curvature", str(folder))
    calibration = _read_object(folder / CALIBRATION) if (folder / CALIBRATION).is_file() else None
    check_content(calibration, str(folder / CALIBRATION))
    return {
        "mean": mean,
        "hess": hess,
        "meta": meta,
        "adapter_config": adapter_config,
        "curvature": curvature,
        "calibration": calibration,
        "directions": _read_directions(folder / DIRECTIONS, hess),
    }


def _read_mean(folder: Path) -> dict[str, Tensor]:
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if (folder / "adapter_model.bin").is_file():
            raise PosteriorFormatError(
                f"{folder} holds pickled weights (adapter_model.bin), which vlora does not open; "
                "save the adapter again with safe_serialization=True"
            )
        raise PosteriorFormatError(f"{folder} has no {ADAPTER_WEIGHTS}; is the download or copy complete?")
    return _read_tensors(folder / ADAPTER_WEIGHTS)


def _read_posterior(
    folder: Path, mean: Mapping[str, Tensor], adapter_config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], PosteriorMeta]:
    has_meta, has_hess = (folder / POSTERIOR_META).is_file(), (folder / POSTERIOR_HESS).is_file()
    if not has_meta and not has_hess:
        base = {
            "id": adapter_config.get("base_model_name_or_path"),
            "revision": adapter_config.get("revision"),
        }
        return {}, PosteriorMeta(num_examples=0, ess=0.0, base_model=base)
    if not has_meta:
        raise PosteriorFormatError(f"{folder} has lost its {POSTERIOR_META}; copy the whole folder again")
    meta = PosteriorMeta.from_json(_read_json(folder / POSTERIOR_META), str(folder / POSTERIOR_META))
    if not has_hess and meta.hess_sha256 != tensors_sha256({}):
        raise PosteriorFormatError(f"{folder} has lost its {POSTERIOR_HESS}; copy the whole folder again")
    hess = _read_tensors(folder / POSTERIOR_HESS) if has_hess else {}
    if tensors_sha256(mean) != meta.mean_sha256:
        raise PosteriorFormatError(
            f"{folder}: {ADAPTER_WEIGHTS} is not the mean this posterior was saved with (hash mismatch); "
            f"restore it, or delete {POSTERIOR_META} and {POSTERIOR_HESS} to use it as a plain adapter"
        )
    if tensors_sha256(hess) != meta.hess_sha256:
        raise PosteriorFormatError(
            f"{folder}: {POSTERIOR_HESS} was changed after saving (hash mismatch); copy it again"
        )
    return hess, meta


def _read_directions(path: Path, hess: Mapping[str, Tensor]) -> Leading | None:
    if not path.is_file():
        return None
    return Leading.from_tensors(_read_tensors(path), _shapes(hess), str(path))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in tensors.items()}


def _check_tensors(
    mean: Mapping[str, Tensor], hess: Mapping[str, Tensor], meta: PosteriorMeta, where: str
) -> None:
    _check_finite(mean, "mean", where)
    for key, value in hess.items():
        if key not in mean:
            raise PosteriorFormatError(f"{where}: h names {key}, which the adapter does not have")
        if value.shape != mean[key].shape:
            raise PosteriorFormatError(
                f"{where}: h of {key} has shape {tuple(value.shape)}, the mean has {tuple(mean[key].shape)}"
            )
    _check_finite(hess, "h", where)
    _check_precisions(hess, meta, where)


def _check_finite(tensors: Mapping[str, Tensor], name: str, where: str) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise PosteriorFormatError(
                f"{where}: the {name} of {key} holds NaN or infinity; the run diverged"
            )


def _check_precisions(hess: Mapping[str, Tensor], meta: PosteriorMeta, where: str) -> None:
    """``ess * (h + weight_decay)`` must be a positive number everywhere."""
    for key, value in hess.items():
        try:
            ess, weight_decay = meta.of("ess", key), meta.of("weight_decay", key)
        except KeyError:
            raise PosteriorFormatError(
                f"{where}: ess or weight_decay is given per key, but not for {key}"
            ) from None
        if not 0 < ess < math.inf:
            raise PosteriorFormatError(f"{where}: ess of {key} is {ess}; expected a positive number")
        if value.numel() and not value.min() + weight_decay > 0:
            raise PosteriorFormatError(
                f"{where}: h + weight_decay of {key} falls to {value.min() + weight_decay:.3g}; "
                "a precision must be positive"
            )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PosteriorFormatError(
            f"cannot read {path}: truncated or damaged ({reason}); copy it again"
        ) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors; an error of the disk comes as ``OSError``."""
    contiguous = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the Rust writer hides the operating system's error behind its own type
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number) if found else str(error)) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PosteriorFormatError(f"cannot read {path}: not valid JSON ({error}); copy it again") from None


def _read_object(path: Path) -> dict[str, Any]:
    values = _read_json(path)
    if not isinstance(values, dict):
        raise PosteriorFormatError(f"cannot read {path}: expected a JSON object, got {type(values).__name__}")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return {
        "vlora": metadata.version("variational-lora"),
        "torch": metadata.version("torch"),
        "peft": metadata.version("peft"),
    }
