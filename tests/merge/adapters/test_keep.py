"""What the base is to keep: the merge with one more adapter that has no update, and what is refused."""

from dataclasses import replace

import pytest
import torch
from merge_cases import gram, make_update, positive

from vlora.errors import IncompatibleAdaptersError
from vlora.grams import compress_grams
from vlora.merge.adapters.keep import KeepFile
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.methods.gradient_matching import gradient_matching

MODULE, TAU, WEIGHT = "layers.0.q_proj", 0.4, 1.7


def keep_of(matrix, output=None, stem=MODULE):
    tensors = {f"{stem}.input_gram": matrix}
    return KeepFile("k", tensors if output is None else {**tensors, f"{stem}.output_gram": output})


def pair(**settings):
    return [make_update(1, **settings), make_update(20, **settings)]


def idle(columns, output=None):
    """An adapter of these Grams without an update."""
    like = make_update(50)
    return replace(like, b=0 * like.b, input_gram=columns, output_gram=output, adapter="base")


def diagonal(last):
    return torch.tensor([5.0, *[1.0] * 7, last], dtype=torch.float64)


def short(values=(4.0, 2.0), tail=0.5):
    key = f"{MODULE}.input_gram"
    parts = {"vectors": torch.eye(9)[:, :2], "values": torch.tensor(values), "tail": torch.tensor([tail])}
    return {f"{key}.{name}": part for name, part in parts.items()}


def with_nan(size):
    """NaN off the diagonal alone."""
    found = torch.eye(size, dtype=torch.float64)
    found[0, 1] = found[1, 0] = torch.nan
    return found


@pytest.mark.parametrize("weights", [(1.0, 0.6), (0.7, -0.4)])
def test_kronecker_matching_has_the_matrix_in_the_total_alone(weights):
    updates, eye, known = pair(), torch.eye(9, dtype=torch.float64), 7 * gram(9, 3)
    found = gradient_matching(
        updates, weights, rank="lossless", tau=TAU, keep=keep_of(known), keep_weight=WEIGHT
    )
    grams = [normalised_gram(u.input_gram, "u") for u in updates]
    total = TAU * eye + WEIGHT * normalised_gram(known, "k")
    total = total + sum(abs(w) * g for w, g in zip(weights, grams, strict=True))
    whole = sum(w * u.delta() @ (g + TAU * eye) for w, u, g in zip(weights, updates, grams, strict=True))
    torch.testing.assert_close(found.update.delta(), whole @ torch.linalg.inv(total))
    assert found.update.rank == sum(u.rank for u in updates)
    assert found.update.precision_a is not None  # the merge still knows how sure it is


@pytest.mark.parametrize("rank", ["lossless", 2])
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("output", [None, gram(7, 8)])
def test_it_is_the_merge_with_an_adapter_without_update(rank, short, output):
    updates = pair()
    tensors = {f"{MODULE}.input_gram": gram(9, 3)}
    tensors = compress_grams(tensors, 3) if short else tensors
    keep = KeepFile("k", tensors if output is None else {**tensors, f"{MODULE}.output_gram": output})
    columns = keep.matrix(MODULE, "input_gram", 9)
    one = gradient_matching(updates, [1.0, 0.5], rank=rank, tau=TAU, keep=keep, keep_weight=WEIGHT).update
    more = [*updates, idle(columns, output)]
    other = gradient_matching(more, [1.0, 0.5, WEIGHT], rank=rank, tau=TAU, curvature="kronecker").update
    torch.testing.assert_close(one.delta(), other.delta())


def test_beside_a_prior_it_adds_to_the_total_alone():
    from vlora.merge.adapters.prior import PriorFile

    updates, prior, known = pair(), gram(9, 4), gram(9, 3)
    found = gradient_matching(
        updates,
        [1.0, 1.0],
        rank="lossless",
        tau=TAU,
        prior=PriorFile("p", {f"{MODULE}.input_gram": prior}),
        keep=keep_of(known),
    ).update
    base = TAU * (0.99 * normalised_gram(prior, "p") + 0.01 * torch.eye(9, dtype=torch.float64))
    grams = [normalised_gram(u.input_gram, "u") for u in updates]
    above = sum(u.delta() @ (g + base) for u, g in zip(updates, grams, strict=True))
    total = base + normalised_gram(known, "k") + sum(grams)
    torch.testing.assert_close(found.delta(), above @ torch.linalg.inv(total))


def test_separable_matching_takes_both_diagonals():
    """At full rank the weighted re-factorisation is exact, so it is the weighted mean entry by entry."""
    updates = pair(grams=False, m=5, n=4, r=4)
    columns, rows = positive(4, seed=1), positive(5, seed=2)
    merged = gradient_matching(
        updates,
        [1.0, 0.5],
        rank=4,
        tau=TAU,
        keep=keep_of(columns, torch.diag(rows)),
        keep_weight=WEIGHT,
    )
    assert merged.report["curvature"] == "separable"
    lifted = [torch.outer(*(v / v.mean() for v in lift_update(u))) for u in updates]
    above = sum(w * (TAU + p) * u.delta() for w, p, u in zip((1, 0.5), lifted, updates, strict=True))
    held = WEIGHT * torch.outer(rows / rows.mean(), columns / columns.mean())
    expected = above / (TAU + lifted[0] + 0.5 * lifted[1] + held)
    torch.testing.assert_close(merged.update.delta(), expected, rtol=1e-3, atol=1e-4)
    plain = gradient_matching(updates, [1.0, 0.5], rank=4, tau=TAU, keep=keep_of(columns), keep_weight=0)
    without = gradient_matching(updates, [1.0, 0.5], rank=4, tau=TAU)
    assert torch.equal(plain.update.delta(), without.update.delta())


@pytest.mark.parametrize("grams", [True, False])
def test_a_diagonal_is_the_matrix_with_it(grams):
    for output in (None, positive(7, seed=3)):
        whole = keep_of(torch.diag(diagonal(2.0)), None if output is None else torch.diag(output))
        found = [
            gradient_matching(pair(grams=grams), [1.0, 0.5], rank=2, keep=keep, keep_weight=WEIGHT)
            for keep in (keep_of(diagonal(2.0), output), whole)
        ]
        torch.testing.assert_close(*(merged.update.delta() for merged in found))


@pytest.mark.parametrize("grams", [True, False])
@pytest.mark.parametrize("zeros", [torch.zeros(9), torch.zeros(9, 9)])
def test_zeros_have_no_part(grams, zeros):
    """No gradient came here: nothing is known that could be kept, in whatever form it is stored."""
    updates, rank = pair(grams=grams), "lossless" if grams else 2
    found = gradient_matching(updates, [1.0, 0.5], rank=rank, keep=keep_of(zeros), keep_weight=WEIGHT)
    without = gradient_matching(updates, [1.0, 0.5], rank=rank)
    torch.testing.assert_close(found.update.delta(), without.update.delta())


def test_an_adapter_is_taken_out_beside_it():
    """X (tau I + w P + G_1 - c G_2) = W_1 (tau I + G_1) - c W_2 (tau I + G_2)."""
    updates, eye, known = pair(), torch.eye(9, dtype=torch.float64), gram(9, 3)
    found = gradient_matching(
        updates,
        [1.0, -0.1],
        rank="lossless",
        tau=TAU,
        negative="remove",
        keep=keep_of(known),
        keep_weight=WEIGHT,
    )
    one, two_ = (normalised_gram(u.input_gram, "u") for u in updates)
    total = TAU * eye + WEIGHT * normalised_gram(known, "k") + one - 0.1 * two_
    above = updates[0].delta() @ (one + TAU * eye) - 0.1 * updates[1].delta() @ (two_ + TAU * eye)
    torch.testing.assert_close(found.update.delta(), above @ torch.linalg.inv(total))
    assert found.report["clamped_fraction"] == 0


@pytest.mark.parametrize("grams", [True, False])
def test_a_large_weight_draws_the_merge_to_the_base(grams):
    updates = pair(grams=grams)
    sizes = [
        gradient_matching(updates, [1.0, 1.0], rank=2, keep=keep_of(gram(9, 3)), keep_weight=w)
        .update.delta()
        .norm()
        for w in (0.0, 1.0, 10.0, 1e6)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] and sizes[3] < 1e-3 * sizes[0]


def test_one_adapter_is_drawn_too_and_sites_are_not_chosen():
    update, keep = make_update(1), keep_of(gram(9, 3))
    alone = gradient_matching([update], [1.0], rank="lossless", keep=keep).update
    assert (alone.delta() - update.delta()).norm() > 1e-2 * update.delta().norm()
    a = update.a
    frozen = [make_update(1, a=a), make_update(20, a=a)]
    found = gradient_matching(frozen, [1.0, 1.0], rank="lossless", keep=keep)
    assert found.report["curvature"] == "kronecker"
    assert gradient_matching(frozen, [1.0, 1.0], keep=keep, keep_weight=0).report["curvature"] == "sites"


@pytest.mark.parametrize(
    ("curvature", "message"),
    [("sites", "sites know no other curvature"), ("isotropic", "no adapter's curvature would stand against")],
)
def test_curvatures_that_it_cannot_stand_beside(curvature, message):
    a = make_update(1).a
    frozen = [make_update(1, a=a), make_update(20, a=a)]
    with pytest.raises(IncompatibleAdaptersError, match=message):
        gradient_matching(frozen, [1.0, 1.0], curvature=curvature, keep=keep_of(gram(9, 3)))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other.input_gram": torch.eye(9)}, "keep k has no input_gram for layers.0.q_proj; gather it"),
        ({f"{MODULE}.input_gram": torch.eye(8)}, r"keep k .* the shape \(8, 8\), the module needs 9 x 9"),
        ({f"{MODULE}.input_gram": torch.full((9, 9), torch.nan)}, "keep k .* is not finite and positive"),
        ({f"{MODULE}.input_gram": diagonal(torch.nan)}, "keep k .* is not finite, or not positive"),
        ({f"{MODULE}.input_gram": diagonal(-1.0)}, "keep k .* is not finite, or not positive"),
        (
            short(values=[4.0, torch.nan]),
            r"keep k \(input_gram of layers.0.q_proj\) is not finite and positive",
        ),
        (short(tail=torch.nan), "keep k .* is not finite and positive"),
        (short(tail=-0.1), "keep k .* has negative eigenvalues"),
        (
            {f"{MODULE}.input_gram": torch.eye(9), f"{MODULE}.output_gram": with_nan(7)},
            r"keep k \(output_gram of layers.0.q_proj\) is not finite and positive",
        ),
        ({f"{MODULE}.input_gram": torch.diag(torch.tensor([-1.0, *[5.0] * 8]))}, "has negative eigenvalues"),
        (
            {f"{MODULE}.input_gram": torch.eye(9), f"{MODULE}.output_gram": torch.eye(9)},
            "output_gram of layers.0.q_proj.* needs 7 x 7",
        ),
    ],
)
def test_what_is_no_curvature_is_refused(tensors, message):
    with pytest.raises(IncompatibleAdaptersError, match=message):
        gradient_matching(pair(), [1.0, 1.0], keep=KeepFile("k", tensors))
