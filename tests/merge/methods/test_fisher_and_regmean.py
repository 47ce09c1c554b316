"""The two data-weighted averages: closed forms as oracles, what they need, what they refuse."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from merge_cases import gram, make_update, positive, rand

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge.curvature.lift import pull_back
from vlora.merge.methods.fisher import fisher, fisher_merge
from vlora.merge.methods.linear import linear
from vlora.merge.methods.regmean import Shrunk, regmean, regmean_merge, shrunk_total
from vlora.merge.update import LoraUpdate


def shrunk_gram(unit, shrink):
    """The paper's a G + (1 - a) diag(G), and 1e-6 on the diagonal, written out."""
    return shrink * unit + torch.diag((1 - shrink) * unit.diagonal()) + 1e-6 * torch.eye(len(unit)).to(unit)


def separable_update(seed, m=7, n=9, r=2):
    """An update whose h comes from a separable Fisher row col^T, and that Fisher."""
    b, a = rand(m, r, seed=seed), rand(r, n, seed=seed + 1)
    row, col = positive(m, seed=seed + 2), positive(n, seed=seed + 3)
    h_b, h_a = pull_back(b, a, 2.0, [(row, col)], [1.0])
    update = LoraUpdate(b, a, 2.0, h_b + 0.01, h_a + 0.01, 0.01, 0.01, adapter=f"a{seed}", module="q_proj")
    return update, torch.outer(row, col)


def with_inputs(seed, rows=40, **shape):
    """An update and the inputs of its module."""
    update = make_update(seed, **shape)
    x = rand(rows, update.a.shape[1], seed=seed + 7) * torch.linspace(0.2, 2, update.a.shape[1]).double()
    return replace(update, activation_gram=x.mT @ x), x


class TestFisher:
    def test_is_the_elementwise_average(self):
        pairs = [separable_update(s, r=3) for s in (1, 20, 40)]
        weights = [1.0, 0.5, 2.0]
        deltas, fishers = [u.delta() for u, _ in pairs], [f for _, f in pairs]
        expected = sum(w * f * d for w, f, d in zip(weights, fishers, deltas, strict=True))
        expected = expected / sum(w * f for w, f in zip(weights, fishers, strict=True))
        merged = fisher([u for u, _ in pairs], weights, rank=7, normalise=False)
        torch.testing.assert_close(merged.update.delta(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fisher_merge(deltas, fishers, weights), expected)
        assert merged.report["curvature"] == "fisher"

    def test_the_rank_is_found_in_the_metric_of_the_total_fisher(self):
        pairs = [separable_update(s) for s in (1, 20)]
        total = pairs[0][1] + pairs[1][1]
        target = sum(f * u.delta() for u, f in pairs) / total
        merged = fisher([u for u, _ in pairs], [1.0, 1.0], rank=2, normalise=False).update.delta()
        u, s, vh = torch.linalg.svd(target)
        plain = (u[:, :2] * s[:2]) @ vh[:2]
        assert (total * (merged - target).square()).sum() < (total * (plain - target).square()).sum()

    def test_normalised_fishers_do_not_see_the_amount_of_data(self):
        (first, _), (second, _) = separable_update(1), separable_update(20)
        more = replace(
            second,
            precision_b=100 * (second.precision_b - 0.01) + 0.01,
            precision_a=100 * (second.precision_a - 0.01) + 0.01,
        )
        equal = [fisher([first, s], [1.0, 1.0], rank=4).update.delta() for s in (second, more)]
        torch.testing.assert_close(equal[0], equal[1], rtol=1e-5, atol=1e-6)
        raw = [fisher([first, s], [1.0, 1.0], rank=4, normalise=False).update.delta() for s in (second, more)]
        assert (raw[1] - second.delta()).norm() < 0.2 * (raw[0] - second.delta()).norm()

    def test_equal_fishers_are_the_mean(self):
        a = rand(2, 9, seed=5)
        h = positive(7, 2, seed=6)
        updates = [replace(make_update(s, a=a), precision_b=h, prior_b=0.0) for s in (1, 20)]
        merged = fisher(updates, [1.0, 3.0]).update
        torch.testing.assert_close(merged.delta(), linear(updates, [1.0, 3.0]).update.delta())

    def test_with_one_frozen_a_it_is_exact_in_b(self):
        a = rand(2, 9, seed=5)
        updates = [make_update(1, a=a, scale=2.0), make_update(20, a=a, scale=3.0)]
        h = [u.precision_b - u.prior_b for u in (updates[0], updates[1].with_scale(2.0))]
        b = (h[0] * updates[0].b + 2 * h[1] * 1.5 * updates[1].b) / (h[0] + 2 * h[1])
        merged = fisher(updates, [1.0, 2.0], normalise=False, rank="lossless")
        torch.testing.assert_close(merged.update.delta(), 2.0 * b @ a)
        assert merged.report["exact"]
        small = fisher(updates, [1.0, 2.0], normalise=False, rank=1)
        u, s, vh = torch.linalg.svd(2.0 * b @ a)
        torch.testing.assert_close(small.update.delta(), s[0] * torch.outer(u[:, 0], vh[0]))

    def test_one_adapter_and_the_order_of_several(self):
        updates, weights = [separable_update(s)[0] for s in (1, 20, 40)], [1.0, 0.5, 2.0]
        torch.testing.assert_close(
            fisher(updates[:1], [0.3]).update.delta(), updates[0].delta(), rtol=1e-6, atol=1e-6
        )
        deltas = [
            fisher([updates[i] for i in order], [weights[i] for i in order], rank=7).update.delta()
            for order in permutations(range(3))
        ]
        for delta in deltas[1:]:
            torch.testing.assert_close(delta, deltas[0], rtol=1e-4, atol=1e-4)

    def test_what_it_needs_is_named(self):
        updates = [make_update(1), make_update(20, hess=False)]
        with pytest.raises(
            IncompatibleAdaptersError, match="needs h of every .*'adapter20' .*`vlora posterior`"
        ):
            fisher(updates, [1.0, 1.0])
        with pytest.raises(ConfigError, match="takes positive weights, got -1 for 'adapter1'"):
            fisher([make_update(1)], [-1.0])
        with pytest.raises(
            IncompatibleAdaptersError, match="Fisher-weighted average has no lossless factors"
        ):
            fisher([make_update(1), make_update(20)], [1.0, 1.0], rank="lossless")


class TestRegMean:
    def test_plain_form_solves_the_least_squares_problem(self):
        """The paper's objective, minimised by lstsq on the stacked inputs and outputs."""
        weights, inputs = [rand(7, 9, seed=s) for s in (1, 2)], [rand(30, 9, seed=s) for s in (3, 4)]
        stacked = torch.cat([inputs[0], 2.0**0.5 * inputs[1]])
        outputs = torch.cat([inputs[0] @ weights[0].mT, 2.0**0.5 * inputs[1] @ weights[1].mT])
        expected = torch.linalg.lstsq(stacked, outputs).solution.mT
        grams = [Shrunk(x.mT @ x, 1.0, torch.zeros(9).double()) for x in inputs]
        total = shrunk_total(grams, [1.0, 2.0], "a module")
        torch.testing.assert_close(regmean_merge(weights, grams, [1.0, 2.0], total), expected)

    @pytest.mark.parametrize("shrink", [0.0, 0.9, 1.0])
    def test_factors_give_the_dense_formula(self, shrink):
        updates = [with_inputs(1)[0], with_inputs(20, r=3)[0]]
        unit = [u.activation_gram / u.activation_gram.diagonal().mean() for u in updates]
        grams = [shrunk_gram(g, shrink) for g in unit]
        expected = sum(w * u.delta() @ g for w, u, g in zip([1.0, 2.0], updates, grams, strict=True))
        expected = expected @ torch.linalg.inv(grams[0] + 2 * grams[1])
        merged = regmean(updates, [1.0, 2.0], rank="lossless", shrink=shrink)
        torch.testing.assert_close(merged.update.delta(), expected)
        assert merged.report["curvature"] == "activations"
        assert merged.update.precision_b.min() > 0

    def test_a_wide_module_is_solved_in_float32_and_refined(self):
        """Above 1024 inputs, to the dense formula in double precision."""
        n, updates = 1030, []
        for seed in (1, 2):
            x = rand(40, n, seed=seed)
            updates.append(LoraUpdate(rand(3, 2, seed=seed), rand(2, n, seed=seed), activation_gram=x.mT @ x))
        grams = [shrunk_gram(u.activation_gram / u.activation_gram.diagonal().mean(), 0.9) for u in updates]
        expected = sum(u.delta() @ g for u, g in zip(updates, grams, strict=True)) @ torch.linalg.inv(
            sum(grams)
        )
        found = regmean(updates, [1.0, 1.0], rank="lossless").update.delta()
        assert (found - expected).norm() < 1e-7 * expected.norm()

    def test_a_shrunk_gram_is_the_product_with_the_matrix_written_out(self):
        g, rows = gram(4, 1), rand(3, 4, seed=2)
        unit = 1 / g.diagonal().mean().item()
        torch.testing.assert_close(rows @ Shrunk.of(g, unit, "here", 0.9), rows @ shrunk_gram(unit * g, 0.9))
        stored = Shrunk.of(g.float(), unit, "here", 0.9)
        torch.testing.assert_close(rows @ stored, rows @ shrunk_gram(unit * g.float().double(), 0.9))
        dead = Shrunk.of(torch.diag(torch.tensor([2.0, 0.0])).double(), 1.0, "here", 1.0)
        assert torch.linalg.eigvalsh(torch.eye(2).double() @ dead).min() > 0

    def test_it_fits_the_outputs_better_than_the_mean(self):
        pairs = [with_inputs(1), with_inputs(20)]
        updates = [u for u, _ in pairs]

        def error(merged):
            scaled = [x / x.square().mean().sqrt() for _, x in pairs]
            return sum(
                (x @ (merged - u.delta()).mT).square().sum() for u, x in zip(updates, scaled, strict=True)
            )

        best = regmean(updates, [1.0, 1.0], rank="lossless", shrink=1.0).update.delta()
        assert error(best) < 0.9 * error(linear(updates, [1.0, 1.0], rank="lossless").update.delta())
        small = regmean(updates, [1.0, 1.0], rank=2, shrink=1.0).update.delta()
        u, s, vh = torch.linalg.svd(best)
        assert error(small) <= error((u[:, :2] * s[:2]) @ vh[:2])

    def test_equal_inputs_are_the_mean(self):
        updates = [replace(make_update(s), activation_gram=gram(9, 3)) for s in (1, 20)]
        merged = regmean(updates, [1.0, 3.0], rank="lossless").update.delta()
        torch.testing.assert_close(merged, linear(updates, [1.0, 3.0], rank="lossless").update.delta())

    def test_one_adapter_and_the_order_of_several(self):
        updates, weights = [with_inputs(s)[0] for s in (1, 20, 40)], [1.0, 0.5, 2.0]
        torch.testing.assert_close(regmean(updates[:1], [0.3]).update.delta(), updates[0].delta())
        first = regmean(updates, weights, rank="lossless").update.delta()
        second = regmean(updates[::-1], weights[::-1], rank="lossless").update.delta()
        torch.testing.assert_close(first, second)

    def test_inputs_that_never_occur_leave_it_finite(self):
        update = with_inputs(1)[0]
        dead = update.activation_gram.clone()
        dead[0], dead[:, 0] = 0, 0
        merged = regmean([replace(update, activation_gram=dead)] * 2, [1.0, 1.0], rank="lossless").update
        torch.testing.assert_close(merged.delta(), update.delta())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, "'adapter20' in layers.0.q_proj has only the gradient-weighted one; gather it"),
            ({"input_gram": None}, "has none; gather it with collect_curvature.*activations=True"),
            ({"activation_gram": gram(5, 1)}, "has 5 inputs, its A has 9; the file belongs to another"),
            ({"activation_gram": torch.zeros(9, 9).double()}, "is zero; gather it on data of the task"),
        ],
    )
    def test_what_it_needs_is_named(self, changes, message):
        second = replace(make_update(20), **changes)
        with pytest.raises(IncompatibleAdaptersError, match=message):
            regmean([with_inputs(1)[0], second], [1.0, 1.0])

    def test_negative_weights_are_refused(self):
        with pytest.raises(ConfigError, match="RegMean takes positive weights, got -1; .*gradient_matching"):
            regmean([with_inputs(1)[0], with_inputs(20)[0]], [1.0, -1.0])
