"""Distance of every item's hidden state from those of reference rows, beside the scores of its probabilities.

The state of a text is the mean over its tokens of the last layer's hidden states, at the mean of the posterior (Ren et
al. 2023, arXiv:2209.15558, for language models; here one rule for encoders and decoders): the whole text where classes
are asked for, the prompt without its choices where choices are. The Gaussians of
:mod:`vlora.eval.metrics.feature_distance` have one mean a class; choices have no class, so theirs have one in all.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from vlora.data import Example, encode_continuation, fitting_length
from vlora.errors import DataError
from vlora.eval.batching import Batch, make_batches, run_halving
from vlora.eval.costs import Spent, cost_rows
from vlora.eval.generate import accepts
from vlora.eval.items import load_reference
from vlora.eval.metrics.arrays import Array
from vlora.eval.metrics.feature_distance import FeatureGaussian
from vlora.eval.prepare import Evaluation
from vlora.eval.records import Record
from vlora.eval.store import ScoreFile, content_key
from vlora.eval.subjects import Subject

__all__ = ["mean_states", "with_distances"]

_NAME = "feature_distance"
_MEASUREMENT = {"version": 1, "layer": "last", "pooling": "mean over tokens", "shrinkage": "Ledoit-Wolf"}
"""What is measured, a part of the name in the store: raise the version when states, Gaussians or distances change."""
_ROUNDING = 9


def with_distances(
    evaluation: Evaluation, subject: Subject, records: Sequence[Record], file: ScoreFile
) -> tuple[list[Record], dict[str, Any]]:
    """Records with ``feature_distance`` and, where there are classes, ``relative_feature_distance``; and the cost.

    Distances lie in the store under a hash of the reference rows and of what is measured, so that other rows, another
    class of one of them, or another measurement measure anew. What is missing is measured in one go, the reference rows
    with it, and kept when it is complete.

    Args:
        evaluation: Models and items; ``data.reference`` names the reference rows.
        subject: The model.
        records: Its records, in the order of the items.
        file: Its scores; it is added to.

    Returns:
        The records, and a row of ``cost.by_estimator``. No model is loaded when the file has everything.

    Raises:
        DataError: Reference rows that cannot be read or lack a class, or a model that gives NaN.
        OutputError: The file cannot be written.
    """
    reference = load_reference(evaluation.config.task, evaluation.config.data, evaluation.classes)
    label = _classes(reference) if evaluation.config.task == "sequence_classification" else None
    name, keys = f"{_NAME}@{_reference_key(reference, label)}", evaluation.item_keys
    known = file.scores.get(name, {})
    missing = {key: row for row, key in enumerate(keys) if key not in known}
    if missing:
        start, rows = time.perf_counter(), list(missing.values())
        values, tokens = _measure(evaluation, subject, reference, label, rows)
        layout, seconds = [file.layouts[key] for key in missing], time.perf_counter() - start
        file.append(
            [name], list(missing), [[own] for own in values], layout=layout, seconds=seconds, tokens=tokens
        )
    found = [replace(record, **file.scores[name][key]) for key, record in zip(keys, records, strict=True)]
    spent, used = Spent(), set(keys)
    for names, own, seconds, tokens in file.batches:
        share = sum(key in used for key in own) / max(len(own), 1) if name in names else 0.0
        spent.add(len(reference) * (share > 0), tokens * share, seconds * share)
    spent.add(len(keys))
    whole = sum(file.layouts[key]["prompt"] for key in keys)
    (row,) = cost_rows(subject.name, {_NAME: spent}, len(keys), whole)
    return found, row


def _measure(
    evaluation: Evaluation,
    subject: Subject,
    reference: Sequence[Example],
    label: Sequence[int] | None,
    rows: Sequence[int],
) -> tuple[list[dict[str, float]], int]:
    """Distances of some items by name, and the tokens that went through the model."""
    examples = [evaluation.items[row].example for row in rows]
    batches = [_batches(evaluation, own) for own in (reference, examples)]
    with evaluation.host.wearing(subject.posterior) as model:
        known, asked = (mean_states(model, own) for own in batches)
    if not np.isfinite(asked).all() or not np.isfinite(known).all():
        raise DataError(
            f"model {subject.name!r} gives NaN instead of hidden states; check its weights, try float32"
        )
    fitted = FeatureGaussian.fit(known, label)
    columns = {"feature_distance": fitted.distance(asked)}
    if len(fitted.means) > 1:
        columns["relative_feature_distance"] = fitted.relative(asked)
    found = [
        {name: round(float(values[row]), _ROUNDING) for name, values in columns.items()}
        for row in range(len(rows))
    ]
    return found, sum(int(batch.inputs["attention_mask"].sum()) for own in batches for batch in own)


def _reference_key(reference: Sequence[Example], label: Sequence[int] | None) -> str:
    """Hash of everything that the distances depend on besides the model and the items."""
    texts = [[example.text, example.text_pair, example.prompt] for example in reference]
    return content_key([_MEASUREMENT, texts, label])[:32]


@torch.inference_mode()
def mean_states(model: nn.Module, batches: Sequence[Batch]) -> Array:
    """Mean over tokens of the last layer's hidden states.

    Args:
        model: A transformer of any head, in eval mode.
        batches: Rows, padded on the right.

    Returns:
        float64 of shape ``(N, d)``, in the order of the rows.
    """
    found: list[Array] = [np.empty(0)] * sum(len(batch) for batch in batches)
    device = next(model.parameters()).device
    few = {"logits_to_keep": 1} if accepts(model, "logits_to_keep") else {}

    def work(batch: Batch) -> None:
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        states = model(**inputs, **few, output_hidden_states=True).hidden_states[-1]
        mask = inputs["attention_mask"].double()[..., None]
        states = states[:, -mask.shape[1] :].double()  # virtual tokens of an adapter stand in front
        means = (states * mask).sum(1) / mask.sum(1)
        for row, state in zip(batch.rows.tolist(), means.cpu().numpy(), strict=True):
            found[row] = state

    for batch in batches:
        run_halving(batch, work)
    return np.stack(found)


def _batches(evaluation: Evaluation, examples: Sequence[Example]) -> list[Batch]:
    """Texts, or prompts without choices, as the scorers tokenise them."""
    config, host = evaluation.config, evaluation.host
    limit = fitting_length(config.data, host.tokenizer, host.model.config)
    features: dict[str, Any]
    if config.task == "sequence_classification":
        texts = [example.text for example in examples]
        pairs = [example.text_pair for example in examples] if examples[0].text_pair is not None else None
        made: Any = host.tokenizer(texts, pairs, truncation=True, max_length=limit)  # type: ignore[arg-type]
        features = {name: made[name] for name in made if name != "attention_mask"}
    else:
        prompts = [
            encode_continuation(host.tokenizer, example.prompt, "", config.data, max_length=limit).input_ids
            for example in examples
        ]
        if not all(prompts):
            raise DataError("a prompt has no token, so it has no hidden state; give it a text")
        features = {"input_ids": prompts}
    pad_id: Any = host.tokenizer.pad_token_id
    sizes = {"max_tokens": config.batch_tokens or host.batch_tokens, "max_rows": config.batch_size}
    return make_batches(features, pad_id=pad_id, **sizes)


def _classes(reference: Sequence[Example]) -> list[int]:
    """Class of every reference row."""
    labels = [example.label for example in reference if example.label is not None]
    if len(labels) < len(reference):
        raise DataError(
            f"{len(reference) - len(labels)} of {len(reference)} rows of data.reference have no class; the distance is "
            "measured from the mean of every class, so give labelled rows"
        )
    return labels
