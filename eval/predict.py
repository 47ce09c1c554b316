"""Answers of a posterior: each with its confidence, its epistemic share, a prediction set, or "don't know".

    predictor = Predictor.from_pretrained("out/posterior")
    for prediction in predictor.predict([{"question": "…", "choices": ["…", "…"]}]):
        print(prediction.answer, prediction.confidence)

Probabilities are those that ``vlora calibrate`` fitted its thresholds on: the same predictor (draws at the fitted
width, the mean, or the linearised model under the fitted prior), the same logit temperature, the same way from a row to
tokens. Without a ``calibration.json`` there are no sets and no "don't know", and the probabilities are those of the
draws as trained, or of the predictor that is asked for.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np

from vlora.data import Example, Source, examples_from_rows
from vlora.errors import ConfigError, DataError
from vlora.eval.config import EvalConfig, EvalDataConfig
from vlora.eval.decide import decide
from vlora.eval.decision_scores import SHARE, needs_base, rule_scores
from vlora.eval.host import Host, check_same_base
from vlora.eval.item_warnings import say_truncated
from vlora.eval.metrics.arrays import Array
from vlora.eval.predict_settings import chosen_decisions, reader_for
from vlora.eval.prediction import Prediction, predictions_of
from vlora.eval.predictive import Predictive, base_entropy, decision_scores, posterior_of, predictive
from vlora.eval.score import build_scorer
from vlora.eval.task_reader import TaskReader
from vlora.models import num_labels_of
from vlora.posterior import Posterior
from vlora.posterior.calibration import decisions_of
from vlora.posterior.decisions import Decisions

__all__ = ["Prediction", "Predictor"]

logger = logging.getLogger(__name__)


class Predictor:
    """A posterior folder with its base model, ready to answer.

    Attributes:
        posterior: The adapter at its fitted width, or under its fitted prior where the predictor is linearised.
        decisions: What was fitted by ``vlora calibrate``, or stand-ins without sets and thresholds.
        reader: Turns rows of a task into prompts and choices; None for rows in the columns of the row format.
        calibrated: Whether they were fitted.
    """

    def __init__(
        self,
        posterior: Posterior,
        config: EvalConfig,
        base_model: str,
        decisions: Decisions,
        reader: TaskReader | None = None,
        *,
        calibrated: bool = False,
    ) -> None:
        self.posterior, self.decisions, self.reader = posterior, decisions, reader
        self.calibrated = calibrated
        self._config, self._base = config, base_model
        self._labels = config.data.labels or posterior.meta.labels

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str],
        *,
        base_model: str | None = None,
        task: str | None = None,
        predictor: str | None = None,
        num_samples: int | None = None,
        covariance: str | None = None,
        row_format: Mapping[str, Any] | None = None,
        fewshot: Source | None = None,
        device: str | None = None,
        **loading: Any,
    ) -> "Predictor":
        """Read a posterior folder or plain adapter and what was fitted for it.

        Args:
            source: Folder or hub id.
            base_model: Folder or hub id; None takes the one that the adapter names.
            task: ``sequence_classification``, ``multiple_choice``, or a task file (``arc_easy``, ``mine.yaml``) that
                says how rows are read; None takes that of the calibration.
            predictor: ``samples``, ``mean``, ``linearised``, ``kronecker`` or ``leading`` where nothing was fitted
                (``samples``; a plain adapter has ``mean`` alone); a calibration fixes it.
            num_samples: Posterior draws where nothing was fitted (8); a calibration fixes them.
            covariance: Of the draws where nothing was fitted (``independent``), or ``leading``.
            row_format: ``data`` keys (prompt, choices, text, …) to change; a calibration fixes the others.
            fewshot: Rows with answers, for a task file whose prompts begin with examples.
            device: None takes the accelerator if there is one.
            **loading: Further keys of the evaluation's configuration: ``dtype``, ``quantization``, ``revision``,
                ``trust_remote_code``, ``batch_size``, ``batch_tokens``.

        Raises:
            PosteriorFormatError: The folder, or its calibration, is damaged or belongs to another model.
            ConfigError: No task or base model is known, or settings differ from those of the calibration.
        """
        stored = Posterior.from_pretrained(source)
        fitted = decisions_of(stored)
        reader = reader_for(fitted, task, fewshot)
        chosen = chosen_decisions(fitted, stored, task, predictor, num_samples, reader, covariance)
        posterior = posterior_of(stored, chosen.predictor, chosen.covariance)
        own = reader.row_format if reader else {}
        changed = replace(chosen, row_format={**chosen.row_format, **own, **(row_format or {})})
        if fitted is not None and changed.row_format != dict(fitted.row_format):
            logger.warning("the row format differs from that of the calibration; its promises may not hold")
        keys = {"dtype": chosen.dtype, "quantization": chosen.quantization, "device": device, **loading}
        config = EvalConfig(
            model=str(source),
            base_model=base_model,
            task=chosen.task,  # type: ignore[arg-type]
            data=EvalDataConfig(test="", **changed.row_format),
            num_samples=chosen.num_samples,
            antithetic=chosen.antithetic,
            output="",
            **keys,
        )
        name = base_model or posterior.adapter_config.get("base_model_name_or_path")
        name = name or posterior.meta.base_model.get("id")
        if not name:
            raise ConfigError("base_model is needed: the adapter does not name its base model")
        check_same_base({str(source): posterior}, str(name), config.revision)
        return cls(posterior, config, str(name), changed, reader, calibrated=fitted is not None)

    @cached_property
    def host(self) -> Host:
        """Base model and tokenizer, loaded when the first row is scored."""
        classes = num_labels_of(self.posterior) or (len(self._labels) if self._labels else None)
        return Host(self._config, self._base, task=self._config.task, num_labels=classes)

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        alpha: float | None = None,
        method: str = "lac",
        answer_all: bool = False,
        tick: Callable[[int], object] = int,
    ) -> list[Prediction]:
        """Answer rows, in their order.

        Args:
            rows: Columns by name, as in the training data; right answers are not needed and not looked at.
            alpha: Which prediction set to give; None takes the middle one of those fitted.
            method: ``lac`` or ``aps``.
            answer_all: Answer also where the threshold says "don't know".
            tick: Called with the number of rows scored.

        Raises:
            DataError: A row lacks a column or holds a bad value, or the model gives NaN.
            ConfigError: No set was fitted for this ``alpha`` and ``method``.
        """
        kind = self._set(alpha, method)
        if not rows:
            return []
        rows = rows if self.reader is None else self.reader(rows)
        examples = self._examples(rows)
        found, base = self._score(examples, tick)
        if np.isnan(found.log_probs).any():
            raise DataError(
                "the model gives NaN instead of probabilities; check its weights, or try dtype float32"
            )
        decided = decide(self.decisions, found.log_probs, decision_scores(found, base=base))
        names = [example.choices or self._classes(found.log_probs.shape[1]) for example in examples]
        items = [_item(row, number) for number, row in enumerate(rows)]
        return predictions_of(items, self.decisions, decided, found, names, kind=kind, answer_all=answer_all)

    def _set(self, alpha: float | None, method: str) -> tuple[str, float] | None:
        """The kind of set to give."""
        alphas = sorted(rule.alpha for rule in self.decisions.conformal if rule.method == method)
        if alpha is None:
            return (method, alphas[len(alphas) // 2]) if alphas else None
        if alpha not in alphas:
            shown = ", ".join(f"{a:g}" for a in alphas) or "none"
            raise ConfigError(f"no {method} set was fitted for alpha {alpha:g}; there are {shown}")
        return method, alpha

    def _examples(self, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
        """Rows without their answers, which are not needed and may be bad."""
        hidden = {self._config.data.label, self._config.data.answer}
        plain = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
        form = replace(self._config.data, group=None)
        try:
            return examples_from_rows(self._config.task, plain, form, split="data", require_label=False)
        except DataError as error:
            if self.calibrated or self.reader is not None:
                raise
            raise DataError(
                f"{error}; rename the columns, or name a task file that says how rows are read (--task mine.yaml, "
                "docs/hallucination.md)"
            ) from None

    def _score(
        self, examples: Sequence[Example], tick: Callable[[int], object]
    ) -> tuple[Predictive, Array | None]:
        """What the predictor says, and the base model's entropy where a rule needs it."""
        host, decisions = self.host, self.decisions
        scorer = build_scorer(
            self._config.task,
            examples,
            host.tokenizer,
            self._config.data,
            host.model.config,
            max_tokens=self._config.batch_tokens or host.batch_tokens,
            max_rows=self._config.batch_size,
        )
        cure = "give shorter rows, or run vlora calibrate with a larger data.max_length"
        max_length = self._config.data.max_length
        say_truncated(["data"] * len(examples), scorer.truncated, self._config.task, max_length, cure)
        draws = {"num_samples": decisions.num_samples, "antithetic": decisions.antithetic}
        names = rule_scores(decisions)
        base = base_entropy(scorer, host) if needs_base(names) else None
        own = {"share": SHARE in names, "tick": tick}
        with host.wearing(self.posterior) as model:
            return predictive(scorer, model, self.posterior, decisions.predictor, **draws, **own), base

    def _classes(self, count: int) -> tuple[str, ...]:
        """Class names, or their numbers."""
        return tuple(self._labels) if self._labels else tuple(str(index) for index in range(count))


def _item(row: Mapping[str, Any], number: int) -> str:
    return str(row["id"]) if row.get("id") is not None else str(number)
