"""Content hashes: of tensors (independent of file layout) and of the weights of a base model."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["CURVATURE", "fingerprint_files", "fingerprint_weights", "tensors_sha256"]

CURVATURE = "curvature.safetensors"
"""Kronecker factors beside the weights of a model or adapter; no weights themselves."""
_SAMPLES = 64
_SAMPLE_BYTES = 4096


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in name order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fingerprint_weights(model: str, revision: str | None = None) -> str | None:
    """Cheap fingerprint of a base model's weight files.

    Hashes name, size, and 64 evenly spaced blocks of 4 KiB of every safetensors file but the curvature: milliseconds
    for a 70B model, and any retrained or re-quantised copy differs.

    Args:
        model: Local folder, or hub id whose snapshot is in the local cache.
        revision: Revision of a hub id.

    Returns:
        Hexadecimal digest, or None when no weight files are at hand to look at.
    """
    folder = _local_folder(model, revision)
    files = (
        [path for path in sorted(folder.glob("*.safetensors")) if path.name != CURVATURE] if folder else []
    )
    return fingerprint_files(files) if files else None


def fingerprint_files(files: Sequence[Path]) -> str:
    """As :func:`fingerprint_weights`, of these files in this order."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}|{size}|".encode())
        with path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _local_folder(model: str, revision: str | None) -> Path | None:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
