"""Counted warnings about the items of an evaluation: sequences that were cut, and rows that repeat others."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from vlora.data import Task
from vlora.eval.items import Item

__all__ = ["item_notes", "say_repeated", "say_truncated", "set_of"]

logger = logging.getLogger(__name__)

_LOST: Mapping[str, str] = {
    "multiple_choice": "the front of their prompts is missing, solved examples first",
    "sequence_classification": "the end of their texts is missing",
    "causal_lm": "the front of their prompts or the end of their texts is missing and not scored",
    "generation": "the front of their prompts is missing, solved examples first",
}


def set_of(item: Item) -> str:
    """Name of the set that an item belongs to: ``test``, ``validation``, or that of an out-of-distribution set."""
    return item.example.group if item.split == "ood" else item.split


def say_truncated(
    sets: Sequence[str],
    truncated: Sequence[bool],
    kind: Task | str,
    max_length: int,
    cure: str = "raise data.max_length, or give shorter prompts (fewer examples)",
) -> dict[str, int]:
    """Say in one line how many items lost tokens, what is missing, and the cure; nothing where none did.

    Args:
        sets: Of every item the name of its set.
        truncated: Of every item whether tokens were dropped.
        kind: The task, or ``generation``.
        max_length: ``data.max_length``, the longest sequence as configured.
        cure: What to do about it.

    Returns:
        Items that lost tokens, by set; 0 where none did.
    """
    counts = dict.fromkeys(sets, 0)
    for name, cut in zip(sets, truncated, strict=True):
        counts[name] += bool(cut)
    shown = [f"{count} of {sets.count(name)} {name}" for name, count in counts.items() if count]
    if shown:
        logger.warning(
            "cut to data.max_length = %d tokens (or what the model takes): %s items; %s; %s",
            *(max_length, ", ".join(shown), _LOST[kind], cure),
        )
    return counts


def say_repeated(
    names: Sequence[str], sets: Sequence[str], contents: Sequence[Hashable], ids: Sequence[object] = ()
) -> int:
    """Say in one line how many rows repeat an earlier row of their set.

    Args:
        names: Of every item its name, for the message.
        sets: Of every item the name of its set.
        contents: Of every item a hash of what is asked and of the right answer.
        ids: Of every item what the data identify it by, None for nothing; empty without.

    Returns:
        Number of items that have the content or the id of an earlier one of their set.
    """
    seen: dict[Hashable, str] = {}
    repeats: list[tuple[str, str, str]] = []
    for row, (name, one) in enumerate(zip(names, sets, strict=True)):
        keys = [(one, "content", contents[row])]
        if ids and ids[row] is not None:
            keys.append((one, "id", str(ids[row])))
        known = next((seen[key] for key in keys if key in seen), None)
        if known is not None:
            repeats.append((one, name, known))
        for key in keys:
            seen.setdefault(key, name)
    if repeats:
        counts = {one: sum(other == one for other, _, _ in repeats) for one, _, _ in repeats}
        shown = ", ".join(f"{count} of {list(sets).count(one)} {one}" for one, count in counts.items())
        logger.warning(
            "%s rows repeat an earlier row (its content or its id; first: %s repeats %s): intervals and tests take "
            "rows as independent and are too narrow then; drop the repeats",
            *(shown, repeats[0][1], repeats[0][2]),
        )
    return len(repeats)


def item_notes(results: Mapping[str, Any], kind: str) -> list[str]:
    """The counted warnings as sentences for a report; none where nothing was cut and nothing repeats.

    Args:
        results: Content of ``results.json`` of either kind; older ones without the counts have no notes.
        kind: The task, or ``generation``.
    """
    notes = []
    cut = {name: count for name, count in (results.get("truncated") or {}).items() if count}
    if cut:
        data = (results.get("settings") or {}).get("data") or {}
        limit = f"data.max_length = {data['max_length']}" if "max_length" in data else "the longest sequence"
        shown = ", ".join(f"{count} of {name}" for name, count in cut.items())
        notes.append(
            f"Cut to {limit} tokens (or what the model takes): {shown}; "
            f"{_LOST.get(kind, 'a part of their text is missing')}."
        )
    if results.get("repeated"):
        rows = (
            "1 row repeats an earlier row"
            if results["repeated"] == 1
            else (f"{results['repeated']} rows repeat an earlier row")
        )
        notes.append(f"{rows} of their set: intervals and tests take rows as independent and are too narrow.")
    return notes
