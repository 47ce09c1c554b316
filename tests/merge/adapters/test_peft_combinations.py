"""PEFT's own add_weighted_adapter beside our methods: equal where it is right, and by how much it is not elsewhere."""

import math
import warnings

import pytest
import torch
from merge_cases import peft_deltas, tiny_llama, two
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from vlora.merge.methods.ties import elect_and_merge
from vlora.merge.run import merge_adapters


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folders, posteriors = two(tmp_path_factory.mktemp("pair"), second={"lora_alpha": 2})
    return folders, posteriors, [peft_deltas(f) for f in folders]


def peft_merge(folders, weights, kind, seed=0, **settings):
    model = PeftModel.from_pretrained(tiny_llama(), folders[0], adapter_name="one")
    model.load_adapter(folders[1], adapter_name="two")
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=kind, **settings)
    layers = {
        n.removeprefix("base_model.model."): x for n, x in model.named_modules() if isinstance(x, LoraLayer)
    }
    return {name: layer.get_delta_weight("both").detach().double() for name, layer in layers.items()}


def our_merge(posteriors, folder, **settings):
    merge_adapters(posteriors, **settings).save_pretrained(folder)
    return peft_deltas(folder)


def small(deltas):
    """Modules of 6 outputs, which rank 6 holds exactly (PEFT's svd fails beyond the smaller side)."""
    return {module: delta for module, delta in deltas.items() if "v_proj" in module}


def relative(found, expected):
    error = sum((found[m] - expected[m]).square().sum() for m in expected)
    return math.sqrt(error / sum(e.square().sum() for e in expected.values()))


def test_ties_svd_is_ours_at_weights_of_one(pair, tmp_path):
    """The published formula, on updates: PEFT 0.21.2 has it, scaling and all (it was alpha / r times too strong
    before)."""
    folders, posteriors, _ = pair
    theirs = peft_merge(folders, [1.0, 1.0], "ties_svd", density=0.4, svd_rank=3)
    ours = our_merge(posteriors, tmp_path / "m", method="ties", density=0.4, rank=3)
    assert relative(ours, theirs) < 1e-5


def test_ties_svd_with_other_weights_is_not_a_mean(pair, tmp_path):
    """PEFT divides by the number of adapters that agree, not by their weights: weights of 3 give three times the
    update. Ours is the weighted mean, as mergekit's; `scale` is the factor."""
    folders, posteriors, _ = pair
    theirs = peft_merge(folders, [3.0, 3.0], "ties_svd", density=0.4, svd_rank=3)
    plain = our_merge(posteriors, tmp_path / "m", method="ties", density=0.4, rank=3, weights=[3.0, 3.0])
    scaled = our_merge(posteriors, tmp_path / "s", method="ties", density=0.4, rank=3, scale=3.0)
    assert relative(scaled, theirs) < 1e-5
    assert relative({m: 3 * d for m, d in plain.items()}, theirs) < 1e-5


def test_ties_svd_elects_signs_without_the_weights(pair):
    """PEFT elects signs before it applies weights, so that taking an adapter away (-1) keeps entries of the *sum's*
    sign. The negative of an adapter must merge like that adapter with its factors negated: PEFT's does not."""
    folders, _, deltas = pair
    theirs = small(peft_merge(folders, [1.0, -1.0], "ties_svd", density=1.0, svd_rank=6))
    negated = {m: elect_and_merge([deltas[0][m], -deltas[1][m]], [1.0, 1.0]) for m in theirs}
    ours = {m: elect_and_merge([deltas[0][m], deltas[1][m]], [1.0, -1.0]) for m in theirs}
    assert relative(ours, negated) < 1e-12
    assert relative(theirs, negated) > 0.3


@pytest.mark.parametrize("kind", ["svd", "cat"])
def test_sums_of_updates_agree(pair, tmp_path, kind):
    """`cat` and `svd` at full rank are the weighted sum, negative weights included."""
    folders, posteriors, deltas = pair
    settings = {"svd_rank": 4} if kind == "svd" else {}
    theirs = peft_merge(folders, [0.7, -1.3], kind, **settings)
    ours = our_merge(
        posteriors, tmp_path / "m", method="task_arithmetic", weights=[0.7, -1.3], rank="lossless"
    )
    assert relative(ours, {m: 0.7 * deltas[0][m] - 1.3 * deltas[1][m] for m in ours}) < 1e-5
    assert relative(theirs, ours) < 1e-5


@pytest.mark.parametrize(("kind", "settings"), [("linear", {}), ("ties", {"density": 0.5})])
def test_combinations_of_factors_are_not_combinations_of_updates(pair, kind, settings):
    """`linear`, `ties` and the `dare_*` of PEFT work on A and B apart. The product then holds cross terms B_1 A_2,
    which mean nothing: on independent adapters the result is as far from the intended one as no adapter at all."""
    folders, _, deltas = pair
    theirs = peft_merge(folders, [1.0, 1.0], kind, **settings)
    sums = {m: deltas[0][m] + deltas[1][m] for m in theirs}
    if kind == "ties":
        sums = {m: elect_and_merge([deltas[0][m], deltas[1][m]], [1.0, 1.0]) for m in theirs}
    assert relative(theirs, sums) > 0.7


def test_dare_linear_svd_is_ours_in_expectation(pair, tmp_path):
    """Both are unbiased for the weighted sum; their masks differ, and ours are the same in every run."""
    folders, posteriors, deltas = pair
    theirs = [
        small(peft_merge(folders, [1.0, 0.5], "dare_linear_svd", density=0.5, svd_rank=6, seed=s))
        for s in range(12)
    ]
    mean = {m: torch.stack([t[m] for t in theirs]).mean(0) for m in theirs[0]}
    settings = {"method": "dare_linear", "weights": [1.0, 0.5], "density": 0.5, "rank": 6}
    ours = [small(our_merge(posteriors, tmp_path / str(s), seed=s, **settings)) for s in range(12)]
    ours_mean = {m: torch.stack([t[m] for t in ours]).mean(0) for m in ours[0]}
    total = {m: deltas[0][m] + 0.5 * deltas[1][m] for m in mean}
    # One draw is off by about sqrt((1 - p) / p) = 1, a mean of 12 by .29; without the rescaling, by more than .5.
    assert relative(mean, total) < 0.4
    assert relative(ours_mean, total) < 0.4
    again = small(our_merge(posteriors, tmp_path / "again", seed=0, **settings))
    assert all(torch.equal(again[m], ours[0][m]) for m in again)
