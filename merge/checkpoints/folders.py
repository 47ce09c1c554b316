"""Model folders: finding them (here or on the hub), their configuration, and the files that a merged model inherits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlora.errors import CheckpointError
from vlora.posterior.hub import commit_of

__all__ = [
    "BUFFERS",
    "TOKENIZER_FILES",
    "copied_files",
    "is_matrix",
    "is_tied",
    "known_revision",
    "model_folder",
    "read_config",
    "tied_partner",
]

BUFFERS = (".inv_freq", ".attn.bias", ".attn.masked_bias", ".position_ids")
"""Ends of the names of tensors that are computed, not trained."""

_DOWNLOAD = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*"]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that make up a tokenizer, of which a folder holds some."""

_OTHER_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_TABLES = ("position_embedding", "positional_embedding", "embed_positions", "wpe.", "token_type_embeddings")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def model_folder(source: str, revision: str | None = None) -> Path:
    """Local folder of a model: the folder itself, or the downloaded snapshot of a hub id.

    Raises:
        CheckpointError: There is neither such a folder nor such a repository.
    """
    path = Path(source).expanduser()
    if path.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=_DOWNLOAD))
    except Exception as error:  # the hub client raises a dozen kinds: offline, missing, gated, bad id
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no folder {source} here, and the hub has nothing to give for it ({reason}); check the path or id"
        ) from error


def known_revision(folder: Path, revision: str | None) -> str | None:
    """For the lineage: the commit that a snapshot in the hub's cache is of, else the revision as it was given."""
    return commit_of(folder) or revision


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """``config.json`` of a model.

    Raises:
        CheckpointError: It is missing or damaged, or says that the weights are quantised.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{name!r}: {folder} has no config.json; is it a model folder?") from None
    except ValueError as error:
        raise CheckpointError(f"{name!r}: {path} is not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{name!r}: {path} holds no object; copy it again")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{name!r} is quantised ({config['quantization_config'].get('quant_method', 'unknown method')}), and codes "
            "cannot be merged; give the model in bfloat16 or float32"
        )
    return config


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output layer shares its weights with the input embedding; transformers' default is yes."""
    text = config.get("text_config") or {}
    if "tie_word_embeddings" in config or "tie_word_embeddings" in text:
        return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings")))
    return config.get("model_type") not in (
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "phi",
        "phi3",
        "gpt_neox",
    )


def is_matrix(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor is a weight matrix between hidden states: two sides, and rows that are no tokens or positions.

    Args:
        name: Of the tensor.
        shape: As stored.
        config: ``config.json`` of the model.
    """
    if (
        len(shape) != 2
        or min(shape) < 2
        or name.endswith(_HEADS + _EMBEDDINGS)
        or any(t in name for t in _TABLES)
    ):
        return False
    text = config.get("text_config") or {}
    return shape[0] != config.get("vocab_size", text.get("vocab_size"))


def tied_partner(name: str, tensors: Mapping[str, Any]) -> str | None:
    """Key of the embedding that a tied output layer shares, if the checkpoint holds exactly one."""
    if not name.endswith(_HEADS):
        return None
    found = [key for key in tensors if key.endswith(_EMBEDDINGS)]
    return found[0] if len(found) == 1 else None


def copied_files(model: Path, tokenizer: Path) -> dict[str, Path]:
    """Name -> source of the small files of the output, besides ``config.json``."""
    found = {name: model / name for name in _OTHER_FILES}
    found |= {name: tokenizer / name for name in TOKENIZER_FILES}
    return {name: path for name, path in found.items() if path.is_file()}
