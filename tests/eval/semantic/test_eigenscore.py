"""EigenScore: published anchor, closed forms, bad input."""

import numpy as np
import pytest

from vlora.errors import DataError
from vlora.eval.semantic.eigenscore import eigenscore


def test_published_anchor():
    embeddings = np.random.default_rng(0).normal(size=(1, 4, 16))[0]
    assert eigenscore(embeddings) == pytest.approx(2.37970112, abs=1e-8)


def test_against_the_log_determinant():
    embeddings = np.random.default_rng(1).normal(size=(3, 8))
    centring = np.eye(8) - 1 / 8
    gram = embeddings @ centring @ embeddings.T + 1e-3 * np.eye(3)
    assert eigenscore(embeddings) == pytest.approx(np.linalg.slogdet(gram)[1] / 3)


def test_equal_answers_have_no_volume():
    same = np.tile(np.arange(5.0), (3, 1))
    assert eigenscore(same, centre="answers") == pytest.approx(np.log(1e-3))
    assert eigenscore(same) < eigenscore(same + np.random.default_rng(2).normal(size=same.shape))


def test_bad_input():
    with pytest.raises(DataError, match="at least two answers"):
        eigenscore([[1.0, 2.0]])
    with pytest.raises(DataError, match="finite and alpha > 0"):
        eigenscore([[1.0, 2.0], [np.inf, 0.0]])
