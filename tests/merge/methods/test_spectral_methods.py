"""SLERP, TSV and Iso-C: the published dense formulas as oracles, identities, and degenerate inputs."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import make_update, rand

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.low_rank.spaces import core_coordinates
from vlora.merge.methods.iso import iso_c, isotropic
from vlora.merge.methods.linear import linear
from vlora.merge.methods.slerp import slerp, slerp_coefficients, slerp_merge
from vlora.merge.methods.tsv import nearest_orthogonal, tsv, tsv_merge
from vlora.merge.update import LoraUpdate


def literal_slerp(first, second, t):
    """The formula on flattened, normalised vectors."""
    angle = torch.arccos(torch.dot(first.flatten() / first.norm(), second.flatten() / second.norm()))
    near, far = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return near * first + far * second


def literal_tsv(deltas, keep):
    """TSV-Merge on dense matrices: full SVDs, concatenation, polar factors by P Q^T."""
    parts = [torch.linalg.svd(d, full_matrices=False) for d in deltas]
    u = torch.cat([p[0][:, :keep] for p in parts], dim=1)
    s = torch.cat([p[1][:keep] for p in parts])
    v = torch.cat([p[2][:keep] for p in parts], dim=0)
    p_u, _, q_u = torch.linalg.svd(u, full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(v, full_matrices=False)
    return p_u @ q_u @ torch.diag(s) @ p_v @ q_v


def test_tsv_in_core_space_is_tsv():
    updates = [make_update(seed) for seed in (0, 1, 2)]
    coordinates, factors = core_coordinates(updates)
    inside = [LoraUpdate(m, torch.eye(m.shape[1], dtype=m.dtype)) for m in coordinates]
    left, right = factors(tsv(inside, [1.0, 1.0, 1.0], rank="lossless").update.delta())
    assert torch.allclose(
        left @ right, tsv(updates, [1.0, 1.0, 1.0], rank="lossless").update.delta(), atol=1e-9
    )


class TestSlerp:
    @settings(deadline=None, max_examples=30)
    @given(weights=st.tuples(st.floats(0.05, 5), st.floats(0.05, 5)), seed=st.integers(0, 99))
    def test_is_the_formula_on_dense_updates(self, weights, seed):
        updates = [make_update(seed), make_update(seed + 20, r=3)]
        t = weights[1] / sum(weights)
        expected = literal_slerp(updates[0].delta(), updates[1].delta(), t)
        merged = slerp(updates, weights, rank="lossless")
        torch.testing.assert_close(merged.update.delta(), expected, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(slerp_merge([u.delta() for u in updates], weights), expected)
        assert merged.report["exact"]

    def test_length_is_kept_between_updates_of_one_length(self):
        first, second = (make_update(s) for s in (1, 20))
        second = replace(second, b=second.b * (first.delta().norm() / second.delta().norm()))
        for share in (0.2, 0.5, 0.8):
            merged = slerp([first, second], [1 - share, share], rank="lossless").update.delta()
            assert merged.norm().item() == pytest.approx(first.delta().norm().item())
            mean = linear([first, second], [1 - share, share], rank="lossless").update.delta()
            assert mean.norm() < 0.99 * first.delta().norm()

    def test_swapping_the_adapters_changes_nothing(self):
        updates = [make_update(1), make_update(20)]
        first = slerp(updates, [1.0, 3.0], rank="lossless").update.delta()
        torch.testing.assert_close(first, slerp(updates[::-1], [3.0, 1.0], rank="lossless").update.delta())

    @pytest.mark.parametrize("factor", [2.0, -2.0])
    def test_without_an_arc_interpolation_is_linear(self, factor):
        update = make_update(1)
        other = replace(update, b=factor * update.b)
        merged = slerp([update, other], [3.0, 1.0], rank=2).update.delta()
        torch.testing.assert_close(merged, (0.75 + 0.25 * factor) * update.delta())

    def test_towards_a_missing_module_interpolation_is_linear(self):
        update = make_update(1)
        empty = LoraUpdate(torch.zeros(7, 0).double(), torch.zeros(0, 9).double())
        merged = slerp([update, empty], [3.0, 1.0]).update.delta()
        torch.testing.assert_close(merged, 0.75 * update.delta())
        zero = torch.zeros(2, 2)
        assert torch.equal(slerp_merge([torch.ones(2, 2), zero], [1.0, 1.0]), torch.full((2, 2), 0.5))

    def test_coefficients_at_the_ends_and_in_the_middle(self):
        assert slerp_coefficients(0.0, 0.0) == (1.0, 0.0)
        assert slerp_coefficients(0.0, 0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))

    def test_more_than_two_and_negative_weights_are_refused(self):
        updates = [make_update(s) for s in (1, 20, 40)]
        with pytest.raises(IncompatibleAdaptersError, match=r"two adapters, got 3 .*q_proj"):
            slerp(updates, [1.0, 1.0, 1.0])
        with pytest.raises(ConfigError, match="slerp takes positive weights, got -1 .*task_arithmetic"):
            slerp(updates[:2], [1.0, -1.0])


class TestTsv:
    def test_is_the_dense_formula(self):
        updates = [make_update(s, m=12, n=15, scale=1.0 + s / 20) for s in (1, 20, 40)]
        expected = literal_tsv([u.delta() for u in updates], 2)
        merged = tsv(updates, [1.0, 1.0, 1.0], rank="lossless")
        torch.testing.assert_close(merged.update.delta(), expected)
        assert merged.update.rank == 6

    def test_the_paper_keeps_a_share_of_the_smaller_side(self):
        updates = [make_update(s, m=7, n=9, r=6) for s in (1, 20)]
        expected = literal_tsv([u.delta() for u in updates], 3)
        torch.testing.assert_close(tsv(updates, [1.0, 1.0], rank=7).update.delta(), expected)

    def test_task_rank_and_scale(self):
        updates = [make_update(s, m=12, n=15, r=3) for s in (1, 20)]
        merged = tsv(updates, [1.0, 1.0], rank="lossless", task_rank=1, scale=2.0).update
        torch.testing.assert_close(merged.delta(), 2 * literal_tsv([u.delta() for u in updates], 1))
        assert merged.rank == 2

    def test_one_adapter_is_unchanged_and_weights_scale(self):
        update = make_update(1)
        torch.testing.assert_close(tsv([update], [1.0]).update.delta(), update.delta())
        torch.testing.assert_close(tsv([update], [-0.5]).update.delta(), -0.5 * update.delta())

    def test_updates_that_do_not_meet_are_summed(self):
        basis_b, basis_a = torch.linalg.qr(rand(9, 4, seed=1))[0], torch.linalg.qr(rand(11, 4, seed=2))[0].mT
        updates = [LoraUpdate(basis_b[:, i : i + 2], basis_a[i : i + 2]) for i in (0, 2)]
        merged = tsv(updates, [1.0, 2.0], rank="lossless").update.delta()
        torch.testing.assert_close(merged, updates[0].delta() + 2 * updates[1].delta())

    def test_the_same_adapter_twice_is_that_adapter(self):
        """U has null directions here; the polar factor without care would fill them with arbitrary vectors."""
        update = make_update(1)
        merged = tsv([update, update], [1.0, 1.0], rank="lossless").update.delta()
        torch.testing.assert_close(merged, update.delta())

    def test_order_does_not_matter(self):
        updates, weights = [make_update(s, m=12, n=15) for s in (1, 20, 40)], [1.0, 0.5, 2.0]
        deltas = [
            tsv([updates[i] for i in order], [weights[i] for i in order], rank="lossless").update.delta()
            for order in permutations(range(3))
        ]
        for delta in deltas[1:]:
            torch.testing.assert_close(delta, deltas[0])

    def test_the_nearest_orthogonal_matrix_is_orthogonal_and_nearest(self):
        columns = rand(8, 3, seed=4)
        polar = nearest_orthogonal(columns)
        torch.testing.assert_close(polar.mT @ polar, torch.eye(3, dtype=torch.float64))
        best = (columns - polar).norm()
        for seed in range(20):
            other = torch.linalg.qr(polar + 0.1 * rand(8, 3, seed=seed))[0]
            other = other * torch.sign((other * polar).sum(0))
            assert (columns - other).norm() >= best

    def test_usable_on_dense_matrices(self):
        deltas = [rand(6, 8, seed=s) for s in (1, 2)]
        parts = []
        for delta in deltas:
            u, s, vh = torch.linalg.svd(delta, full_matrices=False)
            parts.append((u[:, :3], s[:3], vh[:3]))
        b, a = tsv_merge(parts, [1.0, 1.0])
        torch.testing.assert_close(b @ a, literal_tsv(deltas, 3))


class TestIso:
    def test_is_the_dense_formula_on_the_directions_of_the_sum(self):
        updates, weights = [make_update(s, m=12, n=15) for s in (1, 20, 40)], [1.0, -0.5, 2.0]
        total = sum(w * u.delta() for w, u in zip(weights, updates, strict=True))
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
        expected = 1.5 * s[:6].mean() * u[:, :6] @ vh[:6]
        merged = iso_c(updates, weights, rank="lossless", scale=1.5)
        torch.testing.assert_close(merged.update.delta(), expected)
        values = torch.linalg.svdvals(merged.update.delta())[:6]
        torch.testing.assert_close(values, values[:1].expand(6))
        assert values.sum().item() == pytest.approx(1.5 * s[:6].sum().item())

    def test_a_full_rank_sum_is_the_formula_of_the_paper(self):
        updates = [make_update(s, m=4, n=6, r=2) for s in (1, 20)]
        u, s, vh = torch.linalg.svd(updates[0].delta() + updates[1].delta(), full_matrices=False)
        merged = iso_c(updates, [1.0, 1.0], rank="lossless").update.delta()
        torch.testing.assert_close(merged, s.mean() * u @ vh)

    def test_a_lower_rank_keeps_the_leading_directions_of_the_sum(self):
        updates = [make_update(s) for s in (1, 20)]
        u, s, vh = torch.linalg.svd(updates[0].delta() + updates[1].delta(), full_matrices=False)
        merged = iso_c(updates, [1.0, 1.0], rank=2)
        torch.testing.assert_close(merged.update.delta(), s[:2].mean() * u[:, :2] @ vh[:2])
        kept = (s[:2].square().sum() / s.square().sum()).item()
        assert merged.report["retained_energy"] == pytest.approx(kept)
        share = iso_c(updates, [1.0, 1.0], rank=0.999)
        assert share.update.rank == int((s.square().cumsum(0) / s.square().sum() < 0.999).sum()) + 1

    def test_cancelled_updates_give_nothing(self):
        update = make_update(1, hess=False)
        merged = iso_c([update, replace(update, b=-update.b)], [1.0, 1.0], rank="lossless").update
        assert merged.rank >= 1
        assert merged.delta().abs().max() < 1e-12
        assert isotropic(torch.zeros(0)).numel() == 0
