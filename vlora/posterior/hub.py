"""Posterior folders on the Hugging Face hub."""

import re
import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora.errors import PosteriorFormatError

if TYPE_CHECKING:
    from vlora.posterior.posterior import Posterior

__all__ = ["commit_of", "is_hub_id", "push", "resolve"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ["*.json", "*.safetensors", "README.md"]


def is_hub_id(name: str) -> bool:
    """Whether a model is named by a hub id and not by a path. The hub refuses a card whose ``base_model`` is a path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).expanduser().exists()


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, ``.../snapshots/<40 hexadecimal digits>``; None for other folders."""
    known = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if known else None


def resolve(source: str | PathLike, revision: str | None = None) -> Path:
    """Local folder of a posterior: the folder itself, or the downloaded snapshot of a hub id.

    Raises:
        PosteriorFormatError: There is neither such a folder nor such a repository.
    """
    path = Path(source).expanduser()
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=_FILES))
    except Exception as error:  # the hub client raises a dozen kinds: offline, missing, gated, bad id
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PosteriorFormatError(
            f"no folder {source} here, and the hub has nothing to give for it ({reason}); check the path or id"
        ) from error


def push(
    posterior: "Posterior",
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    **kwargs: Any,
) -> str:
    """Create the repository if needed, upload the whole folder in one commit, return the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        posterior.save_pretrained(Path(temporary) / "adapter")
        kwargs.setdefault("commit_message", "Upload LoRA posterior")
        return str(api.upload_folder(repo_id=repo.repo_id, folder_path=Path(temporary) / "adapter", **kwargs))
