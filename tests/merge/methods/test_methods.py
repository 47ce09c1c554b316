"""What every merge method must satisfy, on random updates: identities, order, shapes, errors."""

import copy
import re
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import gram, make_update, rand

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge import METHODS
from vlora.merge.methods import get_method, hints
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.linear import linear
from vlora.merge.methods.task_arithmetic import task_arithmetic
from vlora.merge.update import LoraUpdate

CASES = [
    ("linear", {}),
    ("task_arithmetic", {}),
    ("slerp", {}),
    ("ties", {"density": 1.0}),
    ("ties", {"density": 0.5, "space": "knots"}),
    ("ties", {"density": 0.5, "space": "core"}),
    ("dare_linear", {"density": 0.9}),
    ("dare_ties", {"density": 0.9, "space": "core"}),
    ("della", {"density": 0.5}),
    ("tsv", {}),
    ("iso_c", {}),
    ("fisher", {}),
    ("regmean", {}),
    ("mats", {}),
    ("gradient_matching", {"curvature": "kronecker"}),
    ("gradient_matching", {"curvature": "separable"}),
    ("gradient_matching", {"curvature": "isotropic"}),
    ("gradient_matching", {"curvature": "sites"}),
]
CHANGING = ("dare_linear", "dare_ties", "della", "iso_c")  # even a single adapter
IDS = [name + "".join(f"-{value}" for value in options.values()) for name, options in CASES]


def updates_for(options, count=3, **kwargs):
    frozen = {"a": rand(2, 9, seed=77)} if options.get("curvature") == "sites" else {}
    made = [make_update(20 * t + 1, scale=1.0 + t, **frozen, **kwargs) for t in range(count)]
    return [replace(u, activation_gram=gram(9, 7 + t)) for t, u in enumerate(made)]


def settled(name, options):
    """Options under which the method returns a single adapter as it was."""
    return {**options, "density": 1.0} if name == "ties" else options


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
class TestEveryMethod:
    def test_one_adapter_is_unchanged(self, name, options):
        if name in CHANGING:
            pytest.skip("changes a single adapter too")
        (update,) = updates_for(options, 1)
        merged = METHODS[name].function([update], [1.0], rank="keep", **settled(name, options))
        torch.testing.assert_close(merged.update.delta(), update.delta(), rtol=1e-8, atol=1e-8)
        same = merged.update.with_scale(update.scale)
        kept = name in ("linear", "task_arithmetic", "slerp", "gradient_matching")
        if kept and options.get("curvature") != "separable":  # else factors are found anew, in another basis
            torch.testing.assert_close(same.precision_b, update.precision_b)

    def test_order_does_not_matter(self, name, options):
        count = 2 if name == "slerp" else 3
        updates, weights = updates_for(options, count), [0.5, 1.0, 2.0]
        deltas = []
        for order in permutations(range(count)):
            merged = METHODS[name].function(
                [updates[i] for i in order], [weights[i] for i in order], rank=2, **options
            )
            deltas.append(merged.update.delta())
        for delta in deltas[1:]:
            torch.testing.assert_close(delta, deltas[0], rtol=1e-4, atol=1e-4)

    def test_inputs_stay_as_they_were_and_the_result_is_finite(self, name, options):
        updates = updates_for(options, 2)
        before = copy.deepcopy(updates)
        merged = METHODS[name].function(updates, [1.0, 1.0], rank=2, **options).update
        for update, old in zip(updates, before, strict=True):
            torch.testing.assert_close(update.b, old.b, rtol=0, atol=0)
            torch.testing.assert_close(update.precision_b, old.precision_b, rtol=0, atol=0)
        assert merged.b.shape == (7, 2)
        assert merged.a.shape == (2, 9)
        assert merged.b.dtype == torch.float64
        assert torch.isfinite(merged.delta()).all()
        assert merged.precision_b.min() > 0
        assert merged.prior_b >= 0

    def test_an_adapter_without_the_module_is_a_zero_update(self, name, options):
        if name == "slerp":
            pytest.skip("takes two adapters; see test_spectral_methods.py")
        updates = updates_for(options, 2)
        empty = LoraUpdate(torch.zeros(7, 0).double(), torch.zeros(0, 9).double())
        function = METHODS[name].function
        with_empty = function([updates[0], empty, updates[1]], [1.0, 1.0, 1.0], rank=4, **options)
        without = function(updates, [1.0, 1.0], rank=4, **options)
        factor = 2 / 3 if name == "linear" else 1.0  # a mean over three adapters, not two
        torch.testing.assert_close(
            with_empty.update.delta(), factor * without.update.delta(), rtol=1e-6, atol=1e-6
        )

    def test_a_merge_can_be_merged_again(self, name, options):
        updates = updates_for(options)
        first = METHODS[name].function(updates[:2], [1.0, 1.0], rank=2, **options).update
        kinds = ("input_gram", "output_gram", "activation_gram")
        grams = {kind: getattr(updates[0], kind) for kind in kinds}
        again = LoraUpdate(**{**first.__dict__, **grams})
        merged = METHODS[name].function([again, updates[2]], [1.0, 1.0], rank=2, **options)
        assert torch.isfinite(merged.update.delta()).all()


weights_lists = st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3), min_size=1, max_size=4)


@settings(deadline=None, max_examples=30)
@given(weights=weights_lists, scale=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_task_arithmetic_lossless_is_the_weighted_sum(weights, scale, seed):
    updates = [make_update(seed + 20 * t, r=1 + t, scale=0.5 + t) for t in range(len(weights))]
    merged = task_arithmetic(updates, weights, rank="lossless", scale=scale).update
    expected = scale * sum(w * u.scale * u.b @ u.a for w, u in zip(weights, updates, strict=True))
    torch.testing.assert_close(merged.delta(), expected, rtol=1e-9, atol=1e-9)


def test_linear_is_the_weighted_mean():
    updates = [make_update(1), make_update(20)]
    merged = linear(updates, [1.0, 3.0], rank="lossless").update
    torch.testing.assert_close(merged.delta(), 0.25 * updates[0].delta() + 0.75 * updates[1].delta())
    twice = linear([updates[0], updates[0]], [2.0, 5.0]).update
    torch.testing.assert_close(twice.delta(), updates[0].delta())


def test_keeping_the_rank_is_the_truncated_svd_of_the_sum():
    updates = [make_update(1), make_update(20)]
    merged = task_arithmetic(updates, [1.0, 1.0], rank="keep")
    u, s, vh = torch.linalg.svd(updates[0].delta() + updates[1].delta())
    torch.testing.assert_close(merged.update.delta(), (u[:, :2] * s[:2]) @ vh[:2])
    assert merged.report["retained_energy"] == pytest.approx((s[:2] ** 2).sum().item() / (s**2).sum().item())


def test_a_common_frozen_a_is_kept_by_plain_sums_too():
    a = rand(2, 9, seed=5)
    updates = [make_update(1, scale=2.0, a=a), make_update(20, scale=2.0, a=a)]
    merged = task_arithmetic(updates, [1.0, -0.5], rank="lossless").update
    assert merged.a is a
    assert merged.scale == 2.0
    torch.testing.assert_close(merged.b, updates[0].b - 0.5 * updates[1].b)
    variance = 1 / updates[0].precision_b + 0.25 / updates[1].precision_b
    torch.testing.assert_close(1 / merged.precision_b, variance)


@pytest.mark.parametrize("curvature", ["sites", "isotropic"])
def test_a_common_frozen_a_can_still_be_truncated(curvature):
    a = rand(2, 9, seed=5)
    updates = [make_update(1, scale=3.0, a=a), make_update(20, scale=3.0, a=a)]
    full = gradient_matching(updates, [1.0, 1.0], curvature=curvature).update
    merged = gradient_matching(updates, [1.0, 1.0], curvature=curvature, rank=1)
    u, s, vh = torch.linalg.svd(full.delta())
    torch.testing.assert_close(merged.update.delta(), s[0] * torch.outer(u[:, 0], vh[0]))
    assert merged.report["exact"] is False


def test_gradient_matching_without_knowledge_is_the_sum():
    updates = [make_update(s, hess=False, grams=False) for s in (1, 20)]
    merged = gradient_matching(updates, [1.0, 0.5], rank="lossless", scale=2.0)
    plain = task_arithmetic(updates, [1.0, 0.5], rank="lossless", scale=2.0)
    torch.testing.assert_close(merged.update.delta(), plain.update.delta())
    assert merged.report["curvature"] == "isotropic"
    assert merged.update.precision_b is None


@pytest.mark.parametrize(
    ("curvature", "message"),
    [
        ("kronecker", "'adapter20' has none for layers.0.q_proj; gather curvature"),
        ("separable", "'adapter20' has none for layers.0.q_proj; give its posterior folder"),
        ("sites", "needs one frozen A and h on B"),
    ],
)
def test_curvature_asked_for_but_missing_is_named(curvature, message):
    updates = [make_update(1), make_update(20, hess=False, grams=False)]
    with pytest.raises(IncompatibleAdaptersError, match=message):
        gradient_matching(updates, [1.0, 1.0], curvature=curvature)


def test_separable_has_no_lossless_form():
    with pytest.raises(IncompatibleAdaptersError, match="no lossless factors .*set rank to a number"):
        gradient_matching(
            [make_update(1), make_update(20)], [1.0, 1.0], rank="lossless", curvature="separable"
        )


def test_a_mean_needs_a_positive_sum_of_weights():
    with pytest.raises(ConfigError, match="sum of the weights, which is 0; .*task_arithmetic"):
        linear([make_update(1), make_update(20)], [1.0, -1.0])


@pytest.mark.parametrize(
    ("name", "near"),
    [("TIES", "ties"), ("dare-linear", "dare_linear"), ("iso_cc", "iso_c"), ("fischer", "fisher")],
)
def test_an_unknown_method_is_answered_with_the_nearest(name, near):
    with pytest.raises(ConfigError, match=f"unknown merge method {name!r}; did you mean {near!r}"):
        get_method(name)
    with pytest.raises(
        ConfigError, match="unknown merge method 'xyz'; methods: linear, slerp, task_arithmetic"
    ):
        get_method("xyz")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("KnOTS", "a choice of coordinates here, not a method: method ties, .* with space: knots"),
        ("core-space", "a choice of coordinates here, not a method: .* with space: core"),
        ("breadcrumbs", r"not supported \(drops the largest .*\); nearest: ties"),
        ("model_stock", "not supported .*; nearest: linear"),
        ("nuslerp", "that is method slerp"),
        ("karcher", "not supported .*; nearest: slerp for two adapters"),
        ("cat", "that is method task_arithmetic, with rank: lossless"),
        ("k-fac", "that is method mats"),
    ],
)
def test_names_of_other_tools_are_answered_with_what_they_are_here(name, told):
    with pytest.raises(ConfigError, match=f"unknown merge method {name!r}; {told}.*; methods: linear, slerp"):
        get_method(name)


def test_hints_name_methods_that_there_are():
    for name, told in hints._ELSEWHERE.items():
        assert name not in METHODS
        named = re.findall(r"(?:method|nearest:) ([a-z_]+)", told)
        assert named or "not supported" in told
        assert set(named) - {"with"} <= set(METHODS), told
