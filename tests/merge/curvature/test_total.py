"""Total curvatures: short Grams in their span, whole ones by a refined float32 factor, both against plain algebra."""

from dataclasses import replace

import pytest
import torch
from matching_oracle import losses
from merge_cases import add_curvature, gram, make_update, positive, rand, two

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import ShortGram, compress_grams, dense, read_gram, stored_gram
from vlora.merge.curvature import total
from vlora.merge.curvature.quadratic import increase, metric_of
from vlora.merge.curvature.total import DenseTotal, SpanTotal, total_curvature
from vlora.merge.curvature.unit import unit_factor
from vlora.merge.in_memory import merge_with_report
from vlora.merge.kronecker.closed_form import kronecker_solution
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.preview.matching import matching_core
from vlora.merge.report.conflict import conflict

N = 40


def short(n, rank, seed):
    return stored_gram(compress_grams({"g": gram(n, seed)}, rank), "g")


def short_update(seed, m=30, n=N, rank=4, **settings):
    return replace(
        make_update(seed, m, n, r=3, **settings),
        input_gram=short(n, rank, seed + 4),
        output_gram=short(m, rank, seed + 5),
    )


def written_out(updates):
    return [replace(u, input_gram=dense(u.input_gram), output_gram=dense(u.output_gram)) for u in updates]


def same(first, second, tolerance=1e-9):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


def test_a_short_gram_multiplies_as_its_matrix():
    form = short(N, 5, 1)
    matrix, rows = form.dense(), rand(3, N, seed=2)
    assert isinstance(form, ShortGram)
    same(rows @ form, rows @ matrix)
    same(form.diagonal(), matrix.diagonal())
    assert form.shape == matrix.shape
    assert form.to(torch.float32).dtype == torch.float32
    assert unit_factor(form, "x") == pytest.approx(unit_factor(matrix, "x"))
    with pytest.raises(IncompatibleAdaptersError, match="curvature of x is not finite"):
        unit_factor(replace(form, vectors=form.vectors * float("nan")), "x")


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 2.0, 1.0), (1.0, -0.02, 1.0), (1.0, 1.0, -9.0)])
def test_a_total_in_its_span_is_the_dense_total(weights):
    """Negative weights too: what is clamped, and how much of it, is the same."""
    forms = [short(N, 4, seed) for seed in (1, 2, 3)]
    factors = [unit_factor(form, "x") for form in forms]
    ours, clamped = total_curvature(forms, factors, weights, 0.3)
    whole, clamped_whole = total_curvature([form.dense() for form in forms], factors, weights, 0.3)
    assert isinstance(ours, SpanTotal)
    assert isinstance(whole, DenseTotal)
    assert clamped == pytest.approx(clamped_whole)
    assert (clamped > 0) == (min(weights) < -1)
    rows = rand(6, N, seed=9)
    same(rows @ ours, rows @ whole)
    same(ours.solve(rows), whole.solve(rows))
    same(ours.solve(rows) @ whole, rows)
    same(ours.short().dense(), whole.matrix)
    variance = positive(6, N, seed=10)
    same(ours.spread(variance, forms[1], 0.7, 0.3), whole.spread(variance, forms[1].dense(), 0.7, 0.3))


def test_directions_that_adapters_share_and_zero_ones_are_no_problem():
    form = short(N, 4, 1)
    padded = replace(
        form,
        vectors=torch.cat([form.vectors, torch.zeros(N, 2, dtype=torch.float64)], 1),
        values=torch.cat([form.values, torch.zeros(2, dtype=torch.float64)]),
    )
    ours, _ = total_curvature([form, form, padded], [1.0] * 3, [1.0] * 3, 0.3)
    rows = rand(2, N, seed=3)
    assert isinstance(ours, SpanTotal)
    same(ours.solve(rows), torch.linalg.solve(3 * form.dense() + 0.3 * torch.eye(N), rows.mT).mT)


def test_too_many_directions_or_a_whole_gram_make_it_dense():
    forms = [short(N, 10, seed) for seed in (1, 2)]
    assert isinstance(total_curvature(forms, [1.0, 1.0], [1.0, 1.0], 0.3)[0], DenseTotal)
    mixed = [short(N, 2, 1), gram(N, 2)]
    ours, _ = total_curvature(mixed, [1.0, 1.0], [1.0, 1.0], 0.3)
    assert isinstance(ours, DenseTotal)
    same(ours.matrix, mixed[0].dense() + mixed[1] + 0.3 * torch.eye(N))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, 2.0]])
@pytest.mark.parametrize("rank", ["lossless", "keep"])
def test_a_merge_with_short_grams_is_the_merge_with_the_matrices(rank, weights, monkeypatch):
    updates = [short_update(1), short_update(20)]
    want = gradient_matching(written_out(updates), weights, rank=rank, curvature="kronecker")
    monkeypatch.setattr(ShortGram, "dense", lambda self: pytest.fail("a short Gram was written out"))
    got = gradient_matching(updates, weights, rank=rank, curvature="kronecker")
    same(got.update.delta(), want.update.delta())
    assert got.report["retained_energy"] == pytest.approx(want.report["retained_energy"])
    if rank == "lossless":
        same(got.update.precision_a, want.update.precision_a)
    assert isinstance(kronecker_solution(updates, weights, 0.3)[2], SpanTotal)


def test_conflict_map_and_preview_read_short_grams():
    updates = [short_update(1), short_update(20)]
    whole = written_out(updates)
    merged = gradient_matching(updates, [1.0, 1.0], rank="lossless").update
    first, second = (conflict(some, merged, [10, 10]) for some in (updates, whole))
    assert first["predicted_loss"] == pytest.approx(second["predicted_loss"], rel=1e-4)
    for ours, theirs in zip(updates, whole, strict=True):
        assert increase(metric_of(ours), merged, ours) == pytest.approx(
            increase(metric_of(theirs), merged, theirs)
        )
    weightings = torch.tensor([[1.0, 1.0], [0.2, 1.5]], dtype=torch.float64)
    cores = [
        losses(matching_core(some, [0, 1], [True, True], 0.3), weightings, 1.0) for some in (updates, whole)
    ]
    same(*cores, 1e-7)


def test_a_merged_adapter_keeps_the_short_form(tmp_path):
    _, plain = two(tmp_path)
    adapters = [add_curvature(p, seed) for p, seed in zip(plain, (1, 50), strict=True)]
    shortened = [replace(p, curvature=compress_grams(p.curvature, 2)) for p in adapters]
    expanded = [
        replace(p, curvature={k: read_gram(p.curvature, k) for k in original.curvature})
        for p, original in zip(shortened, adapters, strict=True)
    ]
    ours, theirs = (
        merge_with_report(some, weights=[1.0, 0.5], rank="lossless")[0] for some in (shortened, expanded)
    )
    assert any(key.endswith("input_gram.vectors") for key in ours.curvature)
    for key in theirs.curvature:
        same(read_gram(ours.curvature, key), theirs.curvature[key], 1e-4)
    for key in theirs.mean:
        same(ours.mean[key], theirs.mean[key], 1e-5)


def stiff(n, seed, top):
    """A Gram with one direction that holds most of the trace, as hidden states of language models have."""
    x = torch.randn(64, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loud = rand(n, 1, seed=seed + 1)
    return x.mT @ x / 64 + top * loud @ loud.mT / n


def test_large_systems_are_solved_to_the_stated_residual_by_a_float32_factor():
    n = total.SINGLE_FROM
    grams = [stiff(n, 1, 1e3), stiff(n, 5, 1e4)]
    ours, _ = total_curvature(grams, [unit_factor(g, "x") for g in grams], [1.0, 1.0], 0.3)
    rows = rand(8, n, seed=9) * torch.logspace(-6, 6, 8, dtype=torch.float64)[:, None]
    found = ours.solve(rows)
    assert "single" in vars(ours)
    assert "factor" not in vars(ours)  # no Cholesky in double precision
    residual = (rows - found @ ours).norm(dim=1) / rows.norm(dim=1)
    assert residual.max() <= total.RESIDUAL
    exact = torch.linalg.solve(ours.matrix, rows.mT).mT
    assert ((found - exact).norm(dim=1) / exact.norm(dim=1)).max() < 1e-8
    variance = positive(2, n, seed=10)
    rough, fine = ours.spread(variance, grams[0], 1.0, 0.3), DenseTotal(ours.matrix, "x")
    mixing = torch.linalg.solve(fine.matrix, grams[0] + 0.3 * torch.eye(n)).mT
    same(rough, variance @ mixing.square(), 1e-3)
    assert not ours.solve(torch.zeros(2, n, dtype=torch.float64)).any()


def test_double_precision_decides_where_float32_does_not_do(monkeypatch):
    monkeypatch.setattr(total, "SINGLE_FROM", 8)
    rows = rand(3, 12, seed=1)
    ill = torch.diag(torch.logspace(0, -11, 12, dtype=torch.float64)) + 0.0
    q = torch.linalg.qr(rand(12, 12, seed=2)).Q
    for matrix in (
        q @ ill @ q.mT,
        1e30 * torch.eye(12, dtype=torch.float64) @ (torch.eye(12) * 1e30).double(),
    ):
        ours = DenseTotal((matrix + matrix.mT) / 2, "q_proj")
        found = ours.solve(rows)
        assert "factor" in vars(ours)
        same(found @ ours.matrix, rows, 1e-4)
    with pytest.raises(IncompatibleAdaptersError, match="total curvature in q_proj is indefinite"):
        DenseTotal(-torch.eye(12, dtype=torch.float64), "q_proj").solve(rows)
