"""From scores to records: one row per model and item, rounded to what float32 logits can tell."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from vlora.eval.items import Item
from vlora.eval.records import Record, TokenScores
from vlora.eval.score import Scores
from vlora.eval.store import content_key

__all__ = ["make_records"]

_DECIMALS = 8  # float32 log-probabilities carry seven digits; more would only make the file longer
_SHOWN_CHARACTERS = 200
_HASH_DIGITS = 32


def make_records(
    model: str,
    items: Sequence[Item],
    layouts: Sequence[Mapping[str, Any]],
    scores: Scores,
    *,
    antithetic: bool = False,
    classes: Sequence[str] | None = None,
    covariances: Sequence[Any] | None = None,
    shares: Sequence[float] | None = None,
) -> list[Record]:
    """Records of one model, in the order of the items.

    Args:
        model: Name of the model.
        items: What was scored.
        layouts: Of every item ``prompt``, its length in tokens, and for multiple choice ``lengths``, those of its
            choices.
        scores: What came out.
        antithetic: Whether draws 2j and 2j + 1 mirror each other.
        classes: Class names, for classification.
        covariances: Of every item the covariance of its outputs to first order, [K, K].
        shares: Of every item the share of the prior variance of its outputs that the data left.
    """
    columns = _text_columns(scores) if scores.texts is not None else _choice_columns(layouts, scores)
    for column, covariance in zip(columns, covariances or (), strict=bool(covariances)):
        if scores.texts is not None:
            column["lm"] = replace(column["lm"], nll_variance=covariance[0][0])
        else:
            column["linearised_covariance"] = _square(covariance, len(column["log_probs"]))
    for column, share in zip(columns, shares or (), strict=bool(shares)):
        column["share_left"] = share
    return [
        Record(
            model=model,
            item=item.example.item,
            split=item.split,
            group=item.example.group,
            num_tokens=layout["prompt"],
            text=_shown(item),
            text_sha256=_text_sha256(item),
            choices=item.example.choices or (tuple(classes) if classes else None),
            label=item.example.label,
            label_probs=None if item.label_probs is None else np.asarray(item.label_probs),
            antithetic=antithetic,
            **column,
        )
        for item, layout, column in zip(items, layouts, columns, strict=True)
    ]


def _shown(item: Item) -> str:
    """What people are to see of an item: its question, the end of a long prompt, the beginning of a long text."""
    example = item.example
    text, end = item.question or example.text, bool(item.question or example.prompt)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return "…" + text[-_SHOWN_CHARACTERS:] if end else text[:_SHOWN_CHARACTERS] + "…"


def _text_sha256(item: Item) -> str:
    """Hash of the whole text of an item, of a text to be modelled with its response."""
    example = item.example
    response = example.response if example.choices is None else None
    return content_key([example.text, example.text_pair, response])[:_HASH_DIGITS]


def _choice_columns(layouts: Sequence[Mapping[str, Any]], scores: Scores) -> list[dict[str, Any]]:
    """Log-probabilities of every item, cut to its own number of choices."""
    tables: dict[str, Any] = {
        name: value.numpy().round(_DECIMALS)
        for name in ("log_probs", "sample_log_probs", "expectation_of_products", "product_of_expectations")
        if (value := getattr(scores, name)) is not None
    }
    width = tables["log_probs"].shape[1]
    counts = [width if layout["lengths"] is None else len(layout["lengths"]) for layout in layouts]
    return [
        {name: table[row, ..., :count] for name, table in tables.items()} for row, count in enumerate(counts)
    ]


def _text_columns(scores: Scores) -> list[dict[str, Any]]:
    """Token scores of every text."""
    names = [field.name for field in fields(TokenScores)]
    return [
        {"lm": TokenScores(**{name: _array(text.get(name)) for name in names})} for text in scores.texts or ()
    ]


def _square(covariance: Any, size: int) -> Any:
    """The part of a covariance that belongs to an item's own choices."""
    return np.asarray(covariance, dtype=np.float64)[:size, :size]


def _array(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64) if isinstance(value, list) else value
