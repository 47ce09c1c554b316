"""Tokenizers of the inputs: whether they agree, and the vocabulary of the output where they do not.

Three cases. Equal vocabularies: nothing to do. Added tokens differ (special and chat tokens of a fine-tune):
``tokenizer: union`` appends what the base lacks, with new ids, and rows of the embeddings are taken by token.
Ordinary tokens differ: two tokenizers then cut a text differently, and no rows can be matched; refused.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.folders import TOKENIZER_FILES
from vlora.merge.checkpoints.row_maps import RowMap

__all__ = ["Vocabulary", "read_vocabulary", "row_maps", "union", "union_files"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer."""

    ordinary: Mapping[str, int]
    """Tokens of the model of the tokenizer (BPE, Unigram, WordPiece): token -> id."""
    added: Mapping[str, int]
    """Added tokens: token -> id."""
    rules: str
    """Hash of what cuts a text: merges, scores, normaliser, pre-tokenizer."""

    @property
    def ids(self) -> dict[str, int]:
        """All tokens."""
        return {**self.ordinary, **self.added}

    @property
    def size(self) -> int:
        """Largest id and one."""
        return max(self.ids.values(), default=-1) + 1


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """Vocabulary of ``tokenizer.json``; of other tokenizer files only their hash; None without a tokenizer.

    Raises:
        CheckpointError: ``tokenizer.json`` is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        files = [path for path in files if path.suffix != ".jinja" and "config" not in path.name]
        if not files:
            return None
        digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files))
        return Vocabulary({}, {}, digest.hexdigest())
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        added = {token["content"]: int(token["id"]) for token in content.get("added_tokens", [])}
        known = model["vocab"]
        ordinary = known if isinstance(known, dict) else {token: i for i, (token, _) in enumerate(known)}
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not a tokenizer of the tokenizers library; copy it again") from None
    if "merges" in model:  # written as "a b" or as ["a", "b"], by version of the library
        model = {**model, "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]}
    parts = [model, content.get("normalizer"), content.get("pre_tokenizer"), content.get("decoder")]
    rules = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Vocabulary({t: i for t, i in ordinary.items() if t not in added}, added, rules)


def union(vocabularies: Mapping[str, Vocabulary]) -> dict[str, int]:
    """Token -> id of the union: the first vocabulary as it is, then added tokens of the others in their order.

    Raises:
        CheckpointError: Ordinary tokens or rules differ, or a tokenizer has no ``tokenizer.json``.
    """
    (first_name, first), *others = vocabularies.items()
    ids = first.ids
    for name, other in others:
        if not first.ids or not other.ids:
            raise CheckpointError(
                f"{(first_name if not first.ids else name)!r} has no tokenizer.json, so its tokens cannot be matched; "
                "save the tokenizer with transformers' fast class"
            )
        if other.rules != first.rules:
            lacking = sorted(set(other.ordinary) ^ set(first.ordinary))
            what = (
                f"{len(lacking)} ordinary tokens, first {lacking[0]!r}"
                if lacking
                else "their merges or rules"
            )
            raise CheckpointError(
                f"the tokenizers of {first_name!r} and {name!r} differ in {what}, so that they cut text differently; "
                "a union is for added tokens: set tokenizer: base to keep the tokens of the first, or merge models of "
                "one tokenizer"
            )
        for token in sorted(set(other.added) - set(ids), key=lambda token: other.added[token]):
            ids[token] = max(ids.values()) + 1
    return ids


def row_maps(
    ids: Mapping[str, int], vocabularies: Sequence[Vocabulary], rows: Sequence[int], total: int
) -> tuple[RowMap, ...]:
    """For every input and row of the output, the input's row of the same token.

    Args:
        ids: Token -> id of the output.
        vocabularies: Of the inputs.
        rows: Rows of each input's embedding.
        total: Rows of the output; those without a token (padding) are matched by number, if an input has them free.
    """
    tokens = {number: token for token, number in ids.items()}
    maps = []
    for vocabulary, count in zip(vocabularies, rows, strict=True):
        own, used = vocabulary.ids, set(vocabulary.ids.values())
        found = []
        for row in range(total):
            place = own.get(tokens[row], -1) if row in tokens else (row if row not in used else -1)
            found.append(place if place < count else -1)
        maps.append(found)
    for row in range(total):  # padding that nobody has: any row will do, and the first input has row 0
        if all(found[row] < 0 for found in maps):
            maps[0][row] = 0
    return tuple(RowMap(tuple(found)) for found in maps)


def union_files(
    base: Path, ids: Mapping[str, int], others: Mapping[str, Path], first: Vocabulary
) -> dict[str, str]:
    """``tokenizer.json`` and ``tokenizer_config.json`` of the base with the added tokens of the union.

    Args:
        base: Folder of the tokenizer that is extended.
        ids: Token -> id of the union.
        others: Name -> folder of the tokenizers that the new tokens come from.
        first: Vocabulary of the base.
    """
    content = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    new = {token: number for token, number in ids.items() if token not in first.ids}
    entries: dict[str, dict[str, Any]] = {}
    for folder in others.values():
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
        entries = {token["content"]: token for token in added if token["content"] in new} | entries
    fresh = [{**entries[token], "id": number} for token, number in new.items()]
    content["added_tokens"] = [*content.get("added_tokens", []), *fresh]
    texts = {"tokenizer.json": json.dumps(content, ensure_ascii=False, indent=2) + "\n"}
    path = base / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            for entry in fresh:
                fields = {key: value for key, value in entry.items() if key != "id"}
                config["added_tokens_decoder"][str(entry["id"])] = fields
            texts["tokenizer_config.json"] = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    return texts
