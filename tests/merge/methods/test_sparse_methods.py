"""TIES, DARE and DELLA against literal transcriptions of their papers, and what sparse merges must satisfy."""

import math
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import make_update, rand

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.low_rank import spaces
from vlora.merge.methods.dare import dare_linear, dare_linear_merge, dare_ties, dare_ties_merge
from vlora.merge.methods.della import della, della_merge
from vlora.merge.methods.sparsify import (
    drop_by_magnitude,
    drop_random,
    keep_largest,
    mask_generator,
    update_mask,
)
from vlora.merge.methods.ties import elect_and_merge, ties, ties_merge


def literal_ties(vectors, weights, density):
    """Algorithm 1 of the TIES paper on nested lists, with the weights of mergekit's consensus, entry by entry."""
    trimmed = []
    for vector in vectors:
        ranked = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))
        top = set(ranked[: max(1, int(density * len(vector)))])
        trimmed.append([x if i in top else 0.0 for i, x in enumerate(vector)])
    merged = []
    for entry in zip(*trimmed, strict=True):
        total = sum(w * x for w, x in zip(weights, entry, strict=True))
        sign = math.copysign(1, total) if total else 0
        agreeing = [(w, x) for w, x in zip(weights, entry, strict=True) if sign * w * x > 0]
        divisor = sum(abs(w) for w, _ in agreeing)
        merged.append(sum(w * x for w, x in agreeing) / divisor if agreeing else 0.0)
    return merged


def masks(count, seed=3):
    return [mask_generator(seed, f"adapter{i}", "q_proj") for i in range(count)]


class TestSparsify:
    @settings(deadline=None, max_examples=40)
    @given(size=st.integers(1, 60), density=st.floats(0.01, 1), seed=st.integers(0, 99))
    def test_exactly_the_largest_stay(self, size, density, seed):
        tensor = rand(size, seed=seed)
        kept = keep_largest(tensor, density)
        count = max(1, int(density * size))
        assert int((kept != 0).sum()) == count
        assert kept.abs().sum() == pytest.approx(
            tensor.abs().sort(descending=True).values[:count].sum().item()
        )
        assert torch.equal(kept[kept != 0], tensor[kept != 0])

    def test_equal_magnitudes_stay_together(self):
        tensor = torch.tensor([1.0, -1.0, 2.0, 0.5])
        assert keep_largest(tensor, 0.5).tolist() == [1.0, -1.0, 2.0, 0.0]

    @pytest.mark.parametrize("density", [0.2, 0.7])
    def test_random_dropping_keeps_the_expectation(self, density):
        tensor = torch.ones(400, 500, dtype=torch.float64)
        kept = drop_random(tensor, density, mask_generator(0, "a", "m"))
        assert set(kept.unique().tolist()) == {0.0, 1 / density}
        error = math.sqrt((1 - density) / density / tensor.numel())
        assert abs(kept.mean().item() - 1) < 4 * error

    def test_density_one_keeps_everything(self):
        tensor = rand(5, 6, seed=1)
        assert torch.equal(drop_random(tensor, 1.0, mask_generator(0, "a", "m")), tensor)
        assert torch.equal(keep_largest(tensor, 1.0), tensor)

    def test_magnitude_dropping_follows_the_ranks(self):
        """Probabilities of the DELLA paper: equal steps over the window, largest magnitude kept most often."""
        row = torch.tensor([0.1, -4.0, 2.0, -0.5, 1.0], dtype=torch.float64)
        tensor = row.expand(40_000, 5).contiguous()
        kept = drop_by_magnitude(tensor, 0.5, 0.4, mask_generator(1, "a", "m"))
        expected = torch.tensor([0.3, 0.7, 0.6, 0.4, 0.5], dtype=torch.float64)
        torch.testing.assert_close((kept != 0).double().mean(0), expected, rtol=0, atol=0.012)
        torch.testing.assert_close(kept.max(0).values[2], 2.0 / expected[2])
        torch.testing.assert_close(kept.mean(0), row, rtol=0.05, atol=0)

    def test_without_a_window_magnitude_dropping_is_random_dropping(self):
        tensor = rand(7, 9, seed=2)
        first = drop_by_magnitude(tensor, 0.4, 0.0, mask_generator(5, "a", "m"))
        torch.testing.assert_close(first, drop_random(tensor, 0.4, mask_generator(5, "a", "m")))

    @pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.3), (0.9, 0.4)])
    def test_a_window_outside_probabilities_is_refused(self, density, epsilon):
        with pytest.raises(ConfigError, match=r"gives probabilities from .*; lower epsilon"):
            drop_by_magnitude(rand(3, 4, seed=1), density, epsilon, mask_generator(0, "a", "m"))

    def test_masks_depend_on_seed_content_and_module_alone(self):
        def draw(*names):
            return torch.rand(50, generator=mask_generator(*names)).tolist()

        assert draw(1, "a", "q") == draw(1, "a", "q")
        others = [draw(2, "a", "q"), draw(1, "b", "q"), draw(1, "a", "v")]
        assert all(draw(1, "a", "q") != other for other in others)


class TestTies:
    @settings(deadline=None, max_examples=40)
    @given(
        weights=st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-2), min_size=1, max_size=4),
        density=st.floats(0.05, 1),
        seed=st.integers(0, 99),
    )
    def test_is_the_algorithm_of_the_paper(self, weights, density, seed):
        tensors = [rand(4, 6, seed=seed + 10 * t) for t in range(len(weights))]
        expected = literal_ties([t.flatten().tolist() for t in tensors], weights, density)
        merged = ties_merge(tensors, weights, density)
        torch.testing.assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64))

    def test_by_hand(self):
        first = torch.tensor([4.0, -3.0, 1.0, 2.0])
        second = torch.tensor([2.0, 1.0, -5.0, 2.0])
        assert elect_and_merge([first, second], [1.0, 1.0]).tolist() == [3.0, -3.0, -5.0, 2.0]
        assert elect_and_merge([first, second], [1.0, 1.0], False).tolist() == [6.0, -3.0, -5.0, 4.0]
        assert elect_and_merge([first, second], [3.0, 1.0]).tolist() == [3.5, -3.0, -5.0, 2.0]

    def test_a_negative_weight_is_the_negative_adapter(self):
        first, second = rand(5, 5, seed=1), rand(5, 5, seed=2)
        negative = ties_merge([first, second], [1.0, -0.7], 0.6)
        torch.testing.assert_close(negative, ties_merge([first, -second], [1.0, 0.7], 0.6))

    def test_no_majority_is_no_update(self):
        assert not elect_and_merge([torch.ones(2, 2), -torch.ones(2, 2)], [1.0, 1.0]).any()

    def test_one_untrimmed_adapter_comes_back(self):
        update = make_update(1)
        merged = ties([update], [0.3], density=1.0)
        torch.testing.assert_close(merged.update.delta(), update.delta())
        assert merged.report["exact"]

    def test_agreeing_adapters_of_one_direction_are_averaged(self):
        update = make_update(1)
        twice = replace(update, b=2 * update.b)
        merged = ties([update, twice], [1.0, 1.0], density=1.0).update
        torch.testing.assert_close(merged.delta(), 1.5 * update.delta())

    def test_the_rank_is_the_truncated_svd_and_the_report_says_its_energy(self):
        updates = [make_update(1), make_update(20)]
        dense = 0.5 * ties_merge([u.delta() for u in updates], [1.0, 2.0], 0.3)
        u, s, vh = torch.linalg.svd(dense)
        merged = ties(updates, [1.0, 2.0], density=0.3, scale=0.5, rank=3)
        torch.testing.assert_close(merged.update.delta(), (u[:, :3] * s[:3]) @ vh[:3])
        kept = (s[:3].square().sum() / s.square().sum()).item()
        assert merged.report["retained_energy"] == pytest.approx(kept)
        assert merged.report["space"] == "full"
        whole = ties(updates, [1.0, 2.0], density=0.3, scale=0.5, rank=7)
        torch.testing.assert_close(whole.update.delta(), dense)
        assert whole.report["retained_energy"] == pytest.approx(1)

    def test_a_share_of_energy_chooses_the_rank(self):
        updates = [make_update(1), make_update(20)]
        values = torch.linalg.svdvals(ties_merge([u.delta() for u in updates], [1.0, 1.0], 0.3)).square()
        shares = values.cumsum(0) / values.sum()
        merged = ties(updates, [1.0, 1.0], density=0.3, rank=0.9)
        assert merged.update.rank == int((shares < 0.9).sum()) + 1
        assert merged.report["retained_energy"] == pytest.approx(shares[merged.update.rank - 1].item())


class TestDareAndDella:
    def test_dare_linear_is_masked_and_rescaled_task_arithmetic(self):
        """Equations of the DARE paper, with the same masks drawn by hand."""
        tensors = [rand(6, 8, seed=s) for s in (1, 2, 3)]
        weights, density = [1.0, -0.5, 2.0], 0.3
        expected = torch.zeros(6, 8, dtype=torch.float64)
        for weight, tensor, generator in zip(weights, tensors, masks(3), strict=True):
            mask = (torch.rand(6, 8, generator=generator) < density).double()
            expected += weight * (mask * tensor) / density
        torch.testing.assert_close(dare_linear_merge(tensors, weights, density, masks(3)), expected)

    def test_dare_ties_elects_signs_on_what_is_left(self):
        tensors = [rand(6, 8, seed=s) for s in (1, 2, 3)]
        sparse = [drop_random(t, 0.4, g) for t, g in zip(tensors, masks(3), strict=True)]
        expected = literal_ties([t.flatten().tolist() for t in sparse], [1.0, 2.0, 1.0], 1.0)
        merged = dare_ties_merge(tensors, [1.0, 2.0, 1.0], 0.4, masks(3))
        torch.testing.assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64))

    def test_della_without_a_window_is_dare_ties(self):
        updates = [make_update(1), make_update(20)]
        first = della(updates, [1.0, 1.0], epsilon=0.0, seed=4, rank=3).update.delta()
        second = dare_ties(updates, [1.0, 1.0], seed=4, rank=3).update.delta()
        torch.testing.assert_close(first, second)

    def test_della_is_drop_elect_fuse(self):
        tensors = [rand(6, 8, seed=s) for s in (1, 2)]
        sparse = [drop_by_magnitude(t, 0.5, 0.2, g) for t, g in zip(tensors, masks(2), strict=True)]
        expected = literal_ties([t.flatten().tolist() for t in sparse], [1.0, 1.0], 1.0)
        merged = della_merge(tensors, [1.0, 1.0], 0.5, 0.2, masks(2))
        torch.testing.assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64))

    def test_density_one_is_the_sum(self):
        updates = [make_update(1), make_update(20)]
        merged = dare_linear(updates, [0.5, 2.0], density=1.0, rank=4).update
        torch.testing.assert_close(merged.delta(), 0.5 * updates[0].delta() + 2 * updates[1].delta())

    def test_masks_follow_the_update_not_its_place_or_name(self):
        updates, weights = [make_update(s) for s in (1, 20, 40)], [1.0, 0.5, 2.0]
        deltas = []
        for order in permutations(range(3)):
            listed = [replace(updates[i], adapter=f"adapter {place}") for place, i in enumerate(order)]
            deltas.append(dare_linear(listed, [weights[i] for i in order], rank=3).update.delta())
        for delta in deltas[1:]:
            torch.testing.assert_close(delta, deltas[0])
        other = dare_linear(updates, weights, rank=3, seed=1).update.delta()
        assert (other - deltas[0]).norm() > 0.1 * deltas[0].norm()

    def test_masks_do_not_see_how_the_scaling_is_written(self):
        update = make_update(1, scale=2.0)
        other = replace(update, b=2 * update.b, scale=1.0, adapter="again")
        assert torch.equal(
            torch.rand(9, generator=update_mask(0, update)), torch.rand(9, generator=update_mask(0, other))
        )
        one_step_more = replace(update, b=update.b * (1 + 1e-9))
        assert not torch.equal(
            torch.rand(9, generator=update_mask(0, update)),
            torch.rand(9, generator=update_mask(0, one_step_more)),
        )

    @pytest.mark.parametrize("method", [dare_linear, dare_ties, della])
    def test_an_adapter_listed_twice_is_one_with_the_sum_of_the_weights(self, method):
        first, second = make_update(1), make_update(20)
        twice = method([first, second, replace(first, adapter="copy")], [0.3, 1.0, 0.5], rank=7)
        once = method([first, second], [0.8, 1.0], rank=7)
        torch.testing.assert_close(twice.update.delta(), once.update.delta())

    def test_averaged_over_seeds_dare_is_task_arithmetic(self):
        updates = [make_update(1), make_update(20)]
        runs = [
            dare_linear(updates, [1.0, 1.0], seed=s, rank=7, density=0.5).update.delta() for s in range(400)
        ]
        total = updates[0].delta() + updates[1].delta()
        spread = (updates[0].delta().square() + updates[1].delta().square()).sqrt() / 20
        assert ((torch.stack(runs).mean(0) - total).abs() < 4.5 * spread).all()


def test_dense_merges_have_no_lossless_form():
    with pytest.raises(IncompatibleAdaptersError, match="no lossless factors .*space: knots or core"):
        ties([make_update(1), make_update(20)], [1.0, 1.0], rank="lossless")


def test_a_module_too_large_for_dense_updates_is_named(monkeypatch):
    monkeypatch.setattr(spaces, "LARGEST_DENSE", 50)
    updates = [make_update(1), make_update(20)]
    with pytest.raises(IncompatibleAdaptersError, match="q_proj has 63 entries, too many .*space: knots"):
        ties(updates, [1.0, 1.0])
    assert ties(updates, [1.0, 1.0], space="core").update.rank == 2


def test_an_unknown_space_is_refused():
    with pytest.raises(ConfigError, match="space must be one of full, knots, core, got 'low'"):
        ties([make_update(1)], [1.0], space="low")
