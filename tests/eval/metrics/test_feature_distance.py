"""Distances of hidden states: closed forms, a plain loop in torch, scikit-learn's shrinkage, and bad input."""

import numpy as np
import pytest
import torch

from vlora.errors import DataError
from vlora.eval.metrics.feature_distance import FeatureGaussian, shrunk_covariance


def states(seed=0, count=60, size=5):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, count)
    return rng.normal(size=(count, size)) @ rng.normal(size=(size, size)) + 4 * label[:, None], label


def test_shrinkage_is_that_of_scikit_learn():
    covariance = pytest.importorskip("sklearn.covariance")
    for count, size in ((60, 5), (8, 20), (400, 3)):
        values = states(count, count, size)[0]
        centred = values - values.mean(axis=0)
        expected, shrinkage = covariance.ledoit_wolf(centred, assume_centered=True)
        found = shrunk_covariance(centred)
        assert found[0] == pytest.approx(expected, rel=1e-9) and found[1] == pytest.approx(
            shrinkage, rel=1e-9
        )


def test_distances_are_those_of_a_plain_loop():
    values, label = states()
    new = states(1, 20)[0]
    fitted = FeatureGaussian.fit(values, label)
    data = torch.tensor(values)
    means = [data[torch.tensor(label == k)].mean(0) for k in range(3)]
    centred = torch.stack([row - means[k] for row, k in zip(data, label, strict=True)])
    within = torch.tensor(shrunk_covariance(centred.numpy())[0]).inverse()
    around = data - data.mean(0)
    whole = torch.tensor(shrunk_covariance(around.numpy())[0]).inverse()
    for row, one, two in zip(torch.tensor(new), fitted.distance(new), fitted.relative(new), strict=True):
        nearest = min(float((row - mean) @ within @ (row - mean)) for mean in means)
        away = row - data.mean(0)
        assert one == pytest.approx(nearest, rel=1e-8)
        assert two == pytest.approx(nearest - float(away @ whole @ away), rel=1e-8, abs=1e-8)


def test_closed_forms():
    corners = np.array([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    sample, shrinkage = np.diag([0.5, 2.0]), 0.0
    noise = (np.mean([1, 1, 16, 16]) - (0.25 + 4)) / (4 * 2)
    shrinkage = noise / ((0.25 + 4) / 2 - 1.25**2)
    found = shrunk_covariance(corners)
    assert found[1] == pytest.approx(shrinkage) and 0 < shrinkage < 1
    assert found[0] == pytest.approx((1 - shrinkage) * sample + shrinkage * 1.25 * np.eye(2))
    fitted = FeatureGaussian.fit(corners)
    assert fitted.distance([[3.0, 0]]) == pytest.approx([9 / found[0][0, 0]])
    assert fitted.relative(np.array([[3.0, 1.0]])) == pytest.approx([0.0])  # one class is its own background


def test_rotation_shift_and_unit_do_not_matter():
    values, label = states()
    new = states(2, 10)[0]
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    plain = FeatureGaussian.fit(values, label)
    moved = FeatureGaussian.fit(7 * values @ turn + 3, label)
    for name in ("distance", "relative"):
        assert getattr(moved, name)(7 * new @ turn + 3) == pytest.approx(getattr(plain, name)(new), rel=1e-6)
    assert plain.distance(values).mean() < plain.distance(values + 100).mean()


def test_fewer_states_than_dimensions_have_a_distance():
    rng = np.random.default_rng(0)
    fitted = FeatureGaussian.fit(rng.normal(size=(6, 30)), [0, 0, 0, 1, 1, 1])
    assert np.isfinite(fitted.distance(rng.normal(size=(3, 30)))).all() and fitted.shrinkage > 0


def test_bad_input_is_one_line():
    values, label = states()
    with pytest.raises(DataError, match=r"two or more states with a class each, got 60 .* shape \(3,\)"):
        FeatureGaussian.fit(values, label[:3])
    with pytest.raises(DataError, match="do not vary around their class means"):
        FeatureGaussian.fit(np.ones((4, 2)))
    with pytest.raises(DataError, match="states must be finite numbers"):
        FeatureGaussian.fit(np.where(values > 5, np.nan, values))
    with pytest.raises(DataError, match="expected states of width 5, got 2"):
        FeatureGaussian.fit(values, label).distance([[1.0, 2.0]])
