"""The tokenizer of the output, and the embeddings that follow it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.errors import CheckpointError
from vlora.merge.checkpoints.draft import Draft
from vlora.merge.checkpoints.folders import copied_files, model_folder
from vlora.merge.checkpoints.headers import TensorEntry
from vlora.merge.checkpoints.row_maps import RowMap
from vlora.merge.checkpoints.vocabulary import Vocabulary, read_vocabulary, row_maps, union, union_files

__all__ = ["Embeddings", "choose_tokenizer"]

_NAMES = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "lm_head.weight", "embed_out.weight", "output.weight",
)  # fmt: skip


@dataclass(frozen=True)
class Embeddings:
    """Rows of the output by token."""

    ids: Mapping[str, int]
    """Token -> id of the output."""
    vocabularies: Mapping[str, Vocabulary]
    rows: int
    """Rows of the output's embeddings."""
    old_rows: int
    """Rows of the reference's embeddings."""

    def covers(self, key: str, reference: TensorEntry) -> bool:
        """Whether a tensor has one row per token."""
        return key.endswith(_NAMES) and len(reference.shape) == 2 and reference.shape[0] == self.old_rows

    def maps(self, names: Sequence[str], rows: Sequence[int]) -> tuple[RowMap, ...]:
        """Row maps of these models, whose embeddings have so many rows."""
        return row_maps(self.ids, [self.vocabularies[name] for name in names], rows, self.rows)


def choose_tokenizer(
    draft: Draft, wanted: str | None, folders: Mapping[str, Path], configs: Sequence[Mapping[str, Any]]
) -> Embeddings | None:
    """Settle the tokenizer of the output and its files.

    Args:
        draft: Takes files, notes and problems.
        wanted: None, ``base``, ``union`` or a folder.
        folders: Name -> folder of the models, the reference first.
        configs: Their ``config.json``.

    Returns:
        Embeddings by token where vocabularies differ, else None: rows are then matched by number.
    """
    first = next(iter(folders))
    draft.tokenizer = f"of {first!r}"
    draft.files = copied_files(folders[first], folders[first])
    known = {name: read_vocabulary(folder) for name, folder in folders.items()}
    present = {name: vocabulary for name, vocabulary in known.items() if vocabulary is not None}
    if wanted not in (None, "base", "union"):
        _take_folder(draft, str(wanted), folders[first], int(configs[0].get("vocab_size") or 0))
        return None
    if len({(frozenset(v.ids.items()), v.rules) for v in present.values()}) <= 1:
        return None
    lacking = [name for name in folders if name not in present]
    if lacking:
        draft.notes.append(
            f"{', '.join(lacking)} has no tokenizer; taken to have that of {next(iter(present))!r}"
        )
        present = {name: present.get(name) or next(iter(present.values())) for name in folders}
    rows = [int(config.get("vocab_size") or 0) for config in configs]
    if wanted is None:
        draft.problems.append(_difference(present, first))
        return None
    return _matched(draft, wanted, folders, present, rows[0])


def _matched(
    draft: Draft, wanted: str, folders: Mapping[str, Path], present: Mapping[str, Vocabulary], rows: int
) -> Embeddings | None:
    (first, base), *_ = present.items()
    if wanted == "base":
        if any(not vocabulary.ids for vocabulary in present.values()):
            return None  # no tokens to go by: rows are matched by number, as asked for
        ids = base.ids
    else:
        try:
            ids = union(present)
        except CheckpointError as error:
            draft.problems.append(str(error))
            return None
        others = {name: folder for name, folder in folders.items() if name != first}
        draft.texts |= union_files(folders[first], ids, others, base)
        draft.tokenizer = f"union: {first!r} and {len(ids) - len(base.ids)} added tokens of the others"
    total = max(rows, max(ids.values()) + 1)
    draft.config["vocab_size"] = total
    draft.notes.append(
        f"embeddings are matched by token ({total} rows); a token that a model lacks gets the mean of the rows of "
        "those that have it"
    )
    return Embeddings(ids, present, total, rows)


def _take_folder(draft: Draft, wanted: str, model: Path, rows: int) -> None:
    folder = model_folder(wanted)
    vocabulary = read_vocabulary(folder) if folder.is_dir() else None
    if vocabulary is None:
        raise CheckpointError(
            f"tokenizer: {wanted} holds no tokenizer; give base, union or a tokenizer's folder"
        )
    draft.files, draft.tokenizer = copied_files(model, folder), f"of {wanted}"
    if rows and vocabulary.size > rows:
        draft.problems.append(
            f"the tokenizer of {wanted} has {vocabulary.size} tokens, the embeddings have {rows} rows; take the "
            "model's own, or resize the embeddings first"
        )


def _difference(present: Mapping[str, Vocabulary], first: str) -> str:
    base = present[first]
    for name, other in present.items():
        mine, theirs = base.ids, other.ids
        unlike = sorted({t for t in {*mine, *theirs} if mine.get(t) != theirs.get(t)})
        if unlike or other.rules != base.rules:
            what = f"{len(unlike)} tokens, first {unlike[0]!r}" if unlike else "their rules"
            return (
                f"the tokenizers of {first!r} and {name!r} differ in {what}; set tokenizer: union for added tokens of "
                f"all, or tokenizer: base to keep those of {first!r}"
            )
    return f"the tokenizers differ from that of {first!r}; set tokenizer: base to keep it"
