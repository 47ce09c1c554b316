"""From scores to records: one row per model and item, rounded to what float32 logits can tell."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.items import Item
from vlora.eval.records import Record, TokenScores
from vlora.eval.score import Scorer, Scores

__all__ = ["make_records"]

_DECIMALS = 8  # float32 log-probabilities carry seven digits; more would only make the file longer
_SHOWN_CHARACTERS = 200


def make_records(
    model: str,
    items: Sequence[Item],
    scorer: Scorer,
    scores: Scores,
    *,
    antithetic: bool = False,
    classes: Sequence[str] | None = None,
) -> list[Record]:
    """Records of one model, in the order of the items.

    Args:
        model: Name of the model.
        items: What was scored.
        scorer: How it was scored; knows the prompts' lengths.
        scores: What came out.
        antithetic: Whether draws 2j and 2j + 1 mirror each other.
        classes: Class names, for classification.

    Raises:
        DataError: The model gave NaN.
    """
    columns = _text_columns(scores) if scores.texts is not None else _choice_columns(scorer, scores)
    for item, column in zip(items, columns, strict=True):
        if _holds_nan(column):
            raise DataError(
                f"model {model!r} gives NaN instead of probabilities for {item.example.item}; check its weights and "
                "those of the base model, and try dtype: float32"
            )
    return [
        Record(
            model=model,
            item=item.example.item,
            split=item.split,
            group=item.example.group,
            num_tokens=num_tokens,
            text=item.example.text[:_SHOWN_CHARACTERS],
            choices=item.example.choices or (tuple(classes) if classes else None),
            label=item.example.label,
            label_probs=None if item.label_probs is None else np.asarray(item.label_probs),
            antithetic=antithetic,
            **column,
        )
        for item, num_tokens, column in zip(items, scorer.prompt_tokens, columns, strict=True)
    ]


def _choice_columns(scorer: Any, scores: Scores) -> list[dict[str, Any]]:
    """Log-probabilities of every item, cut to its own number of choices."""
    assert scores.log_probs is not None
    mean = scores.log_probs.numpy().round(_DECIMALS)
    samples = None if scores.sample_log_probs is None else scores.sample_log_probs.numpy().round(_DECIMALS)
    return [
        {
            "log_probs": mean[row, :count],
            "sample_log_probs": None if samples is None else samples[row, :, :count],
        }
        for row, count in enumerate(scorer.num_choices.tolist())
    ]


def _text_columns(scores: Scores) -> list[dict[str, Any]]:
    """Token scores of every text."""
    names = [field.name for field in fields(TokenScores)]
    return [
        {"lm": TokenScores(**{name: _array(text[name]) for name in names})} for text in scores.texts or ()
    ]


def _holds_nan(column: dict[str, Any]) -> bool:
    """Whether any number of one item is NaN."""
    scores = column.get("lm")
    values = vars(scores).values() if scores is not None else column.values()
    return any(np.isnan(np.asarray(value, dtype=np.float64)).any() for value in values if value is not None)


def _array(value: Any) -> Any:
    return np.asarray(value, dtype=np.float64) if isinstance(value, list) else value
