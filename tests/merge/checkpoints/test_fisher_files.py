"""Fisher files that hold what no Fisher information is: named and refused, or, where zero, counted as documented."""

import json
import re

import pytest
import torch
from checkpoint_cases import merge, raw_model, tensors_of

from vlora.errors import CheckpointError


def weights(seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(6, 5, generator=generator) for k in ("p.weight", "q.weight")}


@pytest.fixture
def world(tmp_path):
    for seed, name in enumerate("ab"):
        raw_model(tmp_path / name, weights(seed))
        raw_model(tmp_path / f"fisher-{name}", {k: v.square() for k, v in weights(seed + 7).items()})
    return tmp_path


def with_fisher(world, change, **options):
    """Merge a and b, one entry or all of b's Fisher changed."""
    fishers = tensors_of(world / "fisher-b")
    change(fishers)
    raw_model(world / "changed", fishers)
    files = {"a": "fisher-a", "b": "changed"}
    models = [{"path": str(world / m), "fisher": str(world / f)} for m, f in files.items()]
    return merge(world / "out", method="fisher", models=models, **options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fisher_that_is_not_finite_is_named(world, value):
    def change(fishers):
        fishers["q.weight"][2, 3] = value

    with pytest.raises(
        CheckpointError, match=r"changed/model\.safetensors holds NaN or infinity in q\.weight"
    ):
        with_fisher(world, change)
    assert not (world / "out").exists()


def test_a_negative_fisher_is_refused(world):
    def change(fishers):
        fishers["p.weight"][0, 0] = -1e-9

    message = (
        r"changed/model\.safetensors holds negative entries in p\.weight, and a Fisher information has none"
    )
    with pytest.raises(CheckpointError, match=message):
        with_fisher(world, change)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_fisher_of_zeros_is_noted_and_counts_flat_or_not_at_all(world, normalise, capfd):
    out = with_fisher(world, lambda fishers: fishers["q.weight"].zero_(), normalise=normalise)
    (note,) = json.loads((out / "merge.json").read_text())["notes"]
    effect = "all entries count alike" if normalise else "the model does not count there unless all are zero"
    assert re.search(rf"changed/.* is all zero in 1 of 2 tensors, first q\.weight: {effect}", note)
    assert note in capfd.readouterr().err and note in (out / "README.md").read_text()
    a, b, f = weights(0)["q.weight"], weights(1)["q.weight"], weights(7)["q.weight"].square()
    expected = (f / f.mean() * a + b) / (f / f.mean() + 1) if normalise else a
    torch.testing.assert_close(tensors_of(out)["q.weight"], expected)


def test_if_all_fishers_are_zero_it_is_the_mean(world):
    models = []
    for name in "ab":
        raw_model(world / f"zero-{name}", {k: torch.zeros(6, 5) for k in weights(0)})
        models.append({"path": str(world / name), "fisher": str(world / f"zero-{name}")})
    out = tensors_of(merge(world / "out", method="fisher", models=models, normalise=False))
    torch.testing.assert_close(out["p.weight"], (weights(0)["p.weight"] + weights(1)["p.weight"]) / 2)
