"""Which rows ``vlora calibrate`` fits what on: widths and temperatures on one part, thresholds on another.

A threshold promises something only if the probabilities it is put on were not fitted to the same rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vlora.errors import DataError
from vlora.eval.item_warnings import say_truncated, set_of
from vlora.eval.items import Item
from vlora.eval.prepare import Evaluation
from vlora.eval.splits import check_apart, describe_split
from vlora.eval.subjects import Subject

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """The rows of a calibration: what widths and temperatures are fitted on, and what thresholds see."""

    validation: Sequence[Item]
    """All validation rows, both parts."""
    fit: Evaluation
    """Those for widths and temperatures."""
    threshold: Sequence[Item]
    """Those for thresholds, none without decisions."""
    others: Evaluation | None
    """Rows for thresholds, then every set to verify on; None without decisions."""

    @cached_property
    def described(self) -> dict[str, Any]:
        """Hashes of the validation rows, by which an evaluation on them is recognised."""
        return describe_split(self.validation)

    @classmethod
    def of(cls, evaluation: Evaluation, decides: bool) -> "Parts":
        """Divide the rows; the threshold part is drawn by ``seed``."""
        config = evaluation.config
        items = [item for item in evaluation.items if item.split == "validation"]
        check_apart(
            describe_split(items), [i for i in evaluation.items if i.split == "test"], "the calibration"
        )
        if config.task != "causal_lm":
            items = [item for item in items if item.example.label is not None]
        if not items:
            raise DataError("no validation row has a right answer; a calibration needs labelled rows")
        if not decides:
            return cls(items, evaluation.restricted(items), [], None)
        size = round(config.calibration.threshold_share * len(items))
        if not 1 <= size < len(items):
            raise DataError(
                f"{len(items)} labelled validation rows cannot be shared between the width and the thresholds; "
                "give more, or set calibration.threshold_share to 0"
            )
        kept = set(np.random.default_rng(config.seed).permutation(len(items))[:size].tolist())
        threshold = [item for row, item in enumerate(items) if row in kept]
        others = [item for item in evaluation.items if item.split != "validation"]
        fit = [item for row, item in enumerate(items) if row not in kept]
        return cls(items, evaluation.restricted(fit), threshold, evaluation.restricted([*threshold, *others]))

    def say_truncated(self) -> None:
        """Say how many rows lose tokens, once for all parts."""
        parts = [part for part in (self.fit, self.others) if part is not None]
        sets = [set_of(item) for part in parts for item in part.items]
        config = self.fit.config
        truncated = [cut for part in parts for cut in part.scorer.truncated]
        say_truncated(sets, truncated, config.task, config.data.max_length)

    def rows(self, subjects: Sequence[Subject]) -> int:
        """Rows times parameter vectors that will be scored at most, for the progress bar."""
        config = self.fit.config
        rules = config.calibration
        trials = len({*rules.ladder, 1.0}) + rules.refine if config.num_samples >= 2 else 0
        trials += 2 * (config.task == "causal_lm")  # their temperatures
        prior = int(bool(rules.prior_grid) and config.task != "causal_lm")
        decided = {"samples": 1 + config.num_samples, "mean": 1}.get(rules.predictor, 2)
        fit, others = (0 if part is None else len(part.items) for part in (self.fit, self.others))
        scored = fit if others else 0
        return sum(
            fit * (1 + config.num_samples * trials + prior) + (scored + others) * decided
            if subject.kind == "posterior"
            else fit + scored + others
            for subject in subjects
        )
