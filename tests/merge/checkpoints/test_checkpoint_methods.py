"""Models into a model: every method equal to its pure function, whatever blocks and threads; numbers per place."""

import hashlib

import pytest
import torch
from checkpoint_cases import merge, odd_tensors, raw_model, settings, tensors_of

from vlora.errors import ConfigError
from vlora.merge.checkpoints.masks import MaskSource
from vlora.merge.checkpoints.rules import elect
from vlora.merge.checkpoints.tiles import TILE, Tiling
from vlora.merge.methods.fisher import fisher_merge
from vlora.merge.methods.slerp import slerp_merge
from vlora.merge.methods.sparsify import keep_by_magnitude, keep_random
from vlora.merge.methods.ties import elect_and_merge, ties_merge
from vlora.posterior.hashing import fingerprint_weights

WEIGHTS = {2: [1.0, 2.5], 3: [1.0, -0.5, 2.0]}


@pytest.fixture
def world(tmp_path):
    """A base and three models near it, as folders and as tensors."""
    tensors = {"base": odd_tensors(0)}
    tensors |= {name: odd_tensors(i, start=tensors["base"]) for i, name in enumerate("abc", 1)}
    for name, values in tensors.items():
        raw_model(tmp_path / name, values)
    return tmp_path, tensors


def run(world, method, count=2, out="out", base=True, **options):
    folder, _ = world
    models = [{"path": str(folder / n), "weight": w} for n, w in zip("abc", WEIGHTS[count], strict=False)]
    where = {"base_model": str(folder / "base")} if base else {}
    return merge(folder / out, method=method, models=models, **where, **options)


def uniform(model, tensor, shape, by_rows, seed):
    tiling, content = Tiling.of(shape, by_rows), str(fingerprint_weights(str(model)))
    parts = [MaskSource(seed, content, tensor).uniform(tile) for tile in tiling.tiles(range(tiling.numel))]
    return torch.cat(parts).view(shape) if shape else parts[0].view(shape)


def check(world, out, expected, count=2, tolerance=1e-6):
    _, tensors = world
    for name, value in tensors_of(out).items():
        base = tensors["base"][name]
        wanted = expected(name, base, [tensors[m][name] for m in "abc"[:count]])
        torch.testing.assert_close(
            value, wanted, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert value.shape == base.shape


@pytest.mark.parametrize("count", [2, 3])
def test_linear_and_task_arithmetic(world, count):
    weights = WEIGHTS[count]
    share = [w / sum(weights) for w in weights]
    out = run(world, "linear", count, base=False)
    check(world, out, lambda n, b, ms: sum(w * m for w, m in zip(share, ms, strict=True)), count)
    out = run(world, "task_arithmetic", count, "sum", scale=0.3)
    check(
        world,
        out,
        lambda n, b, ms: b + sum(0.3 * w * (m - b) for w, m in zip(weights, ms, strict=True)),
        count,
    )


def test_slerp_on_weights_and_on_differences(world):
    out = run(world, "slerp", base=False)
    check(world, out, lambda n, b, ms: slerp_merge(ms, WEIGHTS[2]), tolerance=1e-5)
    out = run(world, "slerp", out="differences")
    check(world, out, lambda n, b, ms: b + slerp_merge([m - b for m in ms], WEIGHTS[2]), tolerance=1e-5)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("density", "normalise"), [(0.2, True), (0.011, False), (0.9, True), (1.0, True)])
def test_ties_trims_exactly(world, count, density, normalise):
    out = run(world, "ties", count, density=density, normalise=normalise, scale=0.7)

    def expected(name, base, models):
        deltas = [m - base for m in models]
        return base + 0.7 * ties_merge(deltas, WEIGHTS[count], density, normalise)

    check(world, out, expected, count)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_masks_are_those_of_the_place(world, method):
    out = run(world, method, density=0.4, seed=7, scale=0.5)
    by_rows = method == "della"

    def expected(name, base, models):
        sparse = []
        for model, tensor in zip("ab", models, strict=True):
            u = uniform(world[0] / model, name, tuple(base.shape), by_rows, 7)
            delta = tensor - base
            if by_rows:
                rows = delta.reshape(-1, base.shape[-1] if base.ndim else 1)
                kept = keep_by_magnitude(rows, 0.4, 0.2, u.reshape(rows.shape)).view(base.shape)
            else:
                kept = keep_random(delta, 0.4, u)
            sparse.append(kept)
        if method == "dare_linear":
            merged = sum(w * t for w, t in zip(WEIGHTS[2], sparse, strict=True))
        else:
            merged = elect_and_merge(sparse, WEIGHTS[2])
        return base + 0.5 * merged

    check(world, out, expected)


def test_masks_keep_the_wanted_share_and_differ_between_models(world):
    draws = [uniform(world[0] / model, "big.weight", (301, 517), False, 0) for model in "ab"]
    assert all(abs((u < 0.4).float().mean() - 0.4) < 0.005 for u in draws)
    assert abs(torch.corrcoef(torch.stack([u.flatten() for u in draws]))[0, 1]) < 0.01
    assert len(draws[0].unique()) > 0.98 * draws[0].numel()  # tiles do not repeat each other


@pytest.mark.parametrize("normalise", [True, False])
def test_fisher_with_files_of_the_same_keys(world, normalise):
    folder, tensors = world
    fishers = {m: {k: v.square() for k, v in odd_tensors(i).items()} for i, m in enumerate("ab", 40)}
    for name, values in fishers.items():
        raw_model(folder / f"fisher-{name}", values)
    models = [
        {"path": str(folder / n), "weight": w, "fisher": str(folder / f"fisher-{n}")}
        for n, w in zip("ab", (1, 3), strict=True)
    ]
    out = merge(folder / "out", method="fisher", models=models, normalise=normalise)

    def expected(name, base, ms):
        found = [fishers[m][name] for m in "ab"]
        found = [f.clamp_min(1e-6 * f.mean()) for f in found]
        return fisher_merge(ms, [f / f.mean() if normalise else f for f in found], [1, 3])

    check(world, out, expected, tolerance=1e-5)


@pytest.mark.parametrize(
    "method", ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della"]
)
def test_threads_and_blocks_change_no_byte(world, method):
    hashes = set()
    for number, (threads, block) in enumerate([(1, 8.0), (3, 0.01), (2, 0.6)]):
        out = run(world, method, out=f"out{number}", threads=threads, block_megabytes=block, dtype="bfloat16")
        hashes.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_weights_per_tensor_and_leaving_out(world):
    folder, tensors = world
    models = [
        {"path": str(folder / "a"), "module_weights": {"^big": 3.0}},
        {"path": str(folder / "b"), "module_weights": {"vector": 0.0}},
    ]
    out = tensors_of(merge(folder / "out", models=models))
    a, b = tensors["a"], tensors["b"]
    torch.testing.assert_close(out["big.weight"], 0.75 * a["big.weight"] + 0.25 * b["big.weight"])
    assert torch.equal(out["vector.weight"], a["vector.weight"])
    torch.testing.assert_close(out["odd.weight"], (a["odd.weight"] + b["odd.weight"]) / 2)
    models[0]["module_weights"] = {"no_such": 1.0}
    with pytest.raises(ConfigError, match="'a': the pattern 'no_such' of module_weights matches none of 7"):
        merge(folder / "other", models=models)


def test_weight_0_for_all_needs_a_base(world):
    folder, tensors = world
    models = [{"path": str(folder / name), "module_weights": {"^odd": 0}} for name in "ab"]
    message = (
        r"odd\.weight: module_weights give 0 to every model that has it; leave one in, or give base_model"
    )
    with pytest.raises(ConfigError, match=message):
        merge(folder / "out", models=models)
    out = merge(folder / "out", models=models, method="task_arithmetic", base_model=str(folder / "base"))
    assert torch.equal(tensors_of(out)["odd.weight"], tensors["base"]["odd.weight"])


def test_equal_models_come_back(world):
    folder, tensors = world
    for method in ("linear", "task_arithmetic", "ties", "slerp"):
        base = {"base_model": str(folder / "a")} if method in ("task_arithmetic", "ties") else {}
        models = [{"path": str(folder / "a"), "name": name} for name in "xy"]
        out = tensors_of(merge(folder / method, method=method, models=models, **base))
        for name, value in out.items():
            torch.testing.assert_close(value, tensors["a"][name], rtol=3e-7, atol=0)


def test_bf16_is_rounded_once(tmp_path):
    tensors = [odd_tensors(i, torch.bfloat16) for i in (1, 2)]
    folders = [raw_model(tmp_path / str(i), t) for i, t in enumerate(tensors)]
    out = tensors_of(merge(tmp_path / "out", models=[{"path": str(f)} for f in folders]))
    for name, value in out.items():
        assert torch.equal(value, ((tensors[0][name].float() + tensors[1][name].float()) / 2).bfloat16())


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_election_without_comparisons_is_the_same(count, normalise):
    generator = torch.Generator().manual_seed(count)
    tensors = [torch.randn(5000, generator=generator) for _ in range(count)]
    for tensor in tensors:
        tensor[torch.rand(5000, generator=generator) < 0.4] = 0
    weights = [1.0, -2.0, 0.5, 1.0, 3.0][:count]
    expected = elect_and_merge(tensors, weights, normalise)
    assert torch.equal(elect([t.clone() for t in tensors], weights, normalise), expected)


def test_tiles_depend_on_the_shape_alone():
    for shape, by_rows in [
        ((301, 517), True),
        ((301, 517), False),
        ((3, 2 * TILE), True),
        ((), False),
        ((0, 4), True),
    ]:
        tiling = Tiling.of(shape, by_rows)
        whole = list(tiling.tiles(range(tiling.numel))) if tiling.numel else []
        for entries in (1, 1000, TILE + 1, 10**9):
            found = [tile for block in tiling.blocks(entries) for tile in tiling.tiles(block)]
            assert found == whole
        assert len(whole) == tiling.count
        assert all(not by_rows or len(tile) % shape[-1] == 0 for tile in whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"method": "gradient_matching"},
            "method gradient_matching works on differences: name the common base in base_model",
        ),
        ({"method": "tie"}, "unknown merge method 'tie'; did you mean 'ties'"),
        ({"method": "ties"}, "method ties works on differences: name the common base in base_model"),
        ({"method": "linear", "scale": 2}, "method linear has no option scale, its options: none"),
        ({"method": "ties", "base_model": "x", "space": "core"}, "method ties has no option space"),
        ({"method": "fisher"}, "needs fisher: .* for every model"),
        ({"method": "slerp", "models": [{"path": "x"}] * 3}, "slerp interpolates between two models, got 3"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"block_megabytes": 0}, r"block_megabytes must lie in \(0, 1024\]"),
        ({"max_shard_size": "5 potatoes"}, "max_shard_size must be a size such as 5GB"),
        ({"rank": 4}, "rank is for adapters"),
        ({"adapters": [{"path": "x"}]}, "either models: or adapters:"),
        ({"models": []}, "either models: or adapters:"),
        ({"models": [], "adapters": [{"path": "x"}]}, "into: model needs base_model"),
        ({"dtype": "int8"}, "dtype"),
        ({"threads": True}, "threads: expected a number, got true"),
        ({"max_shard_size": True}, "max_shard_size: expected a number, got true"),
        ({"models": [{"path": "x", "weight": False}]}, r"models\.0\.weight: expected a number, got false"),
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        settings(tmp_path / "out", **{"models": [{"path": "x"}, {"path": "y"}], **values})
    assert "\n" not in str(caught.value)
