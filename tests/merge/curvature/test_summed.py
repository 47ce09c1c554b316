"""Sums of Grams by parts against sums written out."""

import pytest
import torch

from vlora.merge.curvature import summed
from vlora.merge.curvature.summed import SummedMetric, weighted_sum
from vlora.merge.curvature.total import total_curvature
from vlora.merge.kronecker.closed_form import passing_metric, total_metric


def grams(size, count=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(size)
    inputs = [torch.randn(size + 5, size, generator=generator, dtype=dtype) for _ in range(count)]
    return [x.mT @ x / len(x) for x in inputs]


@pytest.mark.parametrize("entries", [1, 7, 100, 2**17])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_sum_by_parts_is_the_sum_to_the_last_bit(entries, dtype, monkeypatch):
    monkeypatch.setattr(summed, "_ENTRIES", entries)
    given = grams(13)
    whole = given[0].to(dtype or torch.float64) * 0.5
    whole = whole.add_(given[1], alpha=1.25).add_(given[2], alpha=2.0)
    assert torch.equal(weighted_sum(given, [0.5, 1.25, 2.0], dtype), whole)


def test_what_has_no_weight_is_not_read():
    given = grams(5)
    given[1].fill_(torch.nan)
    assert torch.equal(weighted_sum(given, [1.0, 0.0, 1.0]), given[0] + given[2])


@pytest.mark.parametrize("part", [1, 4, 128])
def test_products_with_a_metric_that_is_not_written_out(part, monkeypatch):
    monkeypatch.setattr(summed, "_ROWS", part)
    given, weights = grams(13), [0.5, 0.0, 2.0]
    rows = torch.randn(4, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    total = total_curvature(given, [1.0] * 3, weights, 0.3)[0]
    torch.testing.assert_close(rows @ SummedMetric(given, weights, 0.3), rows @ total, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("weights", [[1.0, 2.0, 1.0], [1.0, -0.25, 1.0]])
def test_the_metric_of_a_recompression_is_the_total(weights):
    given = grams(13)
    rows = torch.randn(4, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    metric, total = passing_metric(given, weights, 0.3), total_metric(given, weights, 0.3)
    assert isinstance(metric, SummedMetric) == (min(weights) > 0)
    torch.testing.assert_close(rows @ metric, rows @ total, rtol=1e-12, atol=1e-12)


def test_no_metric_without_every_gram():
    assert passing_metric([*grams(5), None], [1.0] * 4, 0.3) is None
