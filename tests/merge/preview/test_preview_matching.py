"""The preview of gradient matching against merges that were built, in full and in a basis that is too small."""

import pytest
import torch
from matching_oracle import losses
from merge_cases import add_curvature, add_posterior, gram, make_update, two

from vlora.merge import merge_adapters
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.quadratic import increase, metric_of, product
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.preview.build import build_model, solve_in_full
from vlora.merge.preview.matching import full_losses, matching_core

TAU = 0.4


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    _, plain = two(tmp_path_factory.mktemp("matching"))
    return [add_curvature(add_posterior(p, seed), 50 * seed) for seed, p in enumerate(plain, 1)]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 1.4), (0.0, 1.0), (-0.5, 0.7)])
def test_it_is_the_quadratic_at_the_merge_that_was_built(pair, weights):
    inputs = read_inputs(pair, ["a", "b"])
    model = build_model(inputs, ["a", "b"], scale=0.8, tau=TAU, box=(min(0.0, *weights), 1.5))
    assert len(model.cores) == len(inputs.modules) == 6
    given = torch.tensor([weights], dtype=torch.float64)
    predicted, variance = model.predict(given)
    solved = solve_in_full(inputs, model, given, TAU)
    full, better = model.predict(given, solved)
    assert variance is not None and better is not None
    kept = [(p, w) for p, w in zip(pair, weights, strict=True) if w]
    settings = {"tau": TAU, "scale": 0.8, "rank": "lossless", "curvature": "kronecker"}
    merged = merge_adapters([p for p, _ in kept], weights=[w for _, w in kept], **settings)
    built = read_inputs([merged], ["m"])
    worth = model.without()
    for task in (0, 1):
        own = [inputs.update(task, module) for module in inputs.modules]
        total = sum(increase(metric_of(u), built.update(0, u.module), u) for u in own)
        assert full[0, task].item() == pytest.approx(total, rel=1e-5)  # the merge is stored in float32
        assert predicted[0, task].item() == pytest.approx(total, abs=1e-3 * worth[task].item())
    torch.testing.assert_close(variance, better, rtol=0.02 if min(weights) >= 0 else 0.08, atol=0)
    sums = build_model(inputs, ["a", "b"])
    torch.testing.assert_close(worth, sums.without())
    ones = torch.ones(1, 2, dtype=torch.float64)
    assert sums.predict(ones)[0].sum() > 1.2 * model.predict(ones)[0].sum()


def wide_updates():
    """Three adapters of rank 4 on 300 inputs with correlated Grams."""
    updates = []
    for seed in (1, 20, 40):
        update = make_update(seed, 10, 300, 4)
        object.__setattr__(update, "input_gram", gram(300, seed))
        updates.append(update)
    return updates


@pytest.mark.parametrize(
    ("weights", "tolerance"),
    [
        ((1.0, 0.25, 1.0), 1e-9),
        ((1.0, 1.0, 1.0), 1e-9),
        ((1 / 3, 1 / 3, 1 / 3), 1e-9),
        ((0.0, 1.0, 0.0), 1e-9),
        ((0.7, 0.2, 1.3), 5e-3),
    ],
)
def test_in_a_small_basis_snapshots_are_exact_and_the_rest_close(weights, tolerance):
    updates = wide_updates()
    core = matching_core(updates, [0, 1, 2], [True] * 3, TAU)
    assert core.grams.shape == (3, 168, 168)  # 12 rows of A, and 13 snapshots of 12 rows
    given = torch.tensor([weights], dtype=torch.float64)
    predicted = losses(core, given, 1.0)[0]
    kept = [(u, w) for u, w in zip(updates, weights, strict=True) if w]
    merged = gradient_matching(
        [u for u, _ in kept], [w for _, w in kept], rank="lossless", tau=TAU, curvature="kronecker"
    ).update
    exact = torch.tensor([increase(metric_of(u), merged, u) for u in updates], dtype=torch.float64)
    torch.testing.assert_close(full_losses(updates, [True] * 3, given, TAU, 1.0)[0], exact)
    whole = torch.tensor([0.5 * product(metric_of(u), u, u) for u in updates], dtype=torch.float64)
    assert ((predicted - exact).abs() / whole).max() < tolerance
