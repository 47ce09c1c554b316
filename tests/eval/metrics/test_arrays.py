"""One line for what is no array of numbers."""

import re

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.metrics.arrays import labels, log_prob_array, normalised, numbers, vector
from vlora.eval.metrics.calibration import calibration
from vlora.eval.metrics.proper_scores import brier_score, kl_to_truth
from vlora.eval.metrics.uncertainty import mutual_information

HALF = float(np.log(0.5))
UNEVEN = [[HALF, HALF], [np.log(0.25)] * 4]
PAD = "rows have 2 to 4 entries; pad items that have fewer choices with -inf"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: normalised("log_probs", UNEVEN, 2), f"log_probs: {PAD}"),
        (lambda: log_prob_array("samples", [UNEVEN, UNEVEN], 3), f"samples: {PAD}"),
        (lambda: brier_score(UNEVEN, [0, 0]), f"log_probs: {PAD}"),
        (lambda: mutual_information([UNEVEN, UNEVEN]), PAD),
        (lambda: brier_score([[HALF, HALF]], [[0], [0, 1]]), "labels: rows have 1 to 2 entries"),
        (lambda: calibration([[0.5], [0.5, 0.5]], [1, 0]), "rows have 1 to 2 entries; all need as many"),
        (lambda: vector("confidence", ["high", 0.5]), "confidence: expected numbers, could not convert string"),
        (lambda: vector("confidence", {"a": 1.0}), "confidence: expected numbers, float() argument must be"),
        (lambda: vector("confidence", [0.5, [0.5]]), "confidence: some entries are rows and some are not"),
        (lambda: numbers("x", np.array("high")), "x: expected numbers, could not convert string"),
        (lambda: numbers("x", [np.array("a"), np.array("b")]), "x: expected numbers, could not convert string"),
        (lambda: kl_to_truth([[0.5, 0.5], [1.0]], [[HALF, HALF]] * 2), "fewer choices with 0"),
        (lambda: kl_to_truth([[np.nan, 0.5]], [[HALF, HALF]]), "label_probs holds 1 NaN of 2 values"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line(call, line):
    with pytest.raises(DataError, match=re.escape(line)) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_what_is_an_array_passes():
    assert numbers("x", [[1, 2], (3, 4)]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert numbers("x", []).size == 0
    padded = normalised("log_probs", [[HALF, HALF, -np.inf], [np.log(1 / 3)] * 3], 2)
    assert labels([1, 2], padded).tolist() == [1, 2]
