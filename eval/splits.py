"""Which rows a number was fitted on: hashes of a split's content, so that nobody evaluates on them by accident.

A row's hash covers what is scored (texts, choices, the right answer) and not its place or file, so that copies and
reordered files are recognised.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vlora.errors import ConfigError
from vlora.eval.items import Item
from vlora.eval.store import content_key

__all__ = ["check_apart", "describe_split", "row_hashes"]

logger = logging.getLogger(__name__)

_FIELDS = ("text", "text_pair", "prompt", "response", "choices", "label")
_ROW_DIGITS = 12


def row_hashes(items: Sequence[Item]) -> list[str]:
    """Of every item the hash of its content: its texts, choices and right answer."""
    return [content_key([getattr(item.example, name) for name in _FIELDS]) for item in items]


def describe_split(items: Sequence[Item]) -> dict[str, Any]:
    """``rows``, their number, ``row_sha256``, the beginnings of their hashes, and ``sha256`` of all of them."""
    hashes = sorted(row_hashes(items))
    return {
        "rows": len(hashes),
        "sha256": content_key(hashes),
        "row_sha256": [digest[:_ROW_DIGITS] for digest in hashes],
    }


def check_apart(fitted: Mapping[str, Any], test: Sequence[Item], what: str) -> None:
    """Refuse to evaluate a fit on the rows it was made on; say so when some of them are among the test rows.

    Args:
        fitted: What :func:`describe_split` said of the rows of the fit.
        test: The rows to be evaluated.
        what: Name of the fit, for the message.

    Raises:
        ConfigError: The rows are the same.
    """
    evaluated = describe_split(test)
    if evaluated["sha256"] == fitted.get("sha256"):
        raise ConfigError(
            f"{what} was fitted on these very {evaluated['rows']} rows, so a score on them says nothing; "
            "fit it on other rows (data.validation)"
        )
    shared = len(set(evaluated["row_sha256"]) & set(fitted.get("row_sha256") or ()))
    if shared:
        logger.warning(
            "%d of the %d test rows are among those that %s was fitted on", shared, len(test), what
        )
