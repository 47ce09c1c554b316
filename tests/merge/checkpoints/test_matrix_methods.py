"""TSV and Iso-C on whole models: the papers' formulas on dense matrices, the adapter merge, threads, resume, plan."""

import hashlib
import json
import math

import pytest
import torch
from checkpoint_cases import llama, lora, merge, raw_model, save_model, settings, tensors_of

from vlora.errors import CheckpointError, ConfigError
from vlora.merge import merge_adapters
from vlora.merge.checkpoints import engine, make_plan
from vlora.merge.checkpoints.plan_text import render
from vlora.merge.checkpoints.run import carry_out
from vlora.merge.low_rank.dense_svd import gram_svd, rounding_level
from vlora.posterior import Posterior
from vlora.posterior.lora_layout import module_scaling, split_keys

SHAPES = {
    "model.embed_tokens.weight": (17, 12),
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.layers.0.mlp.up_proj.weight": (20, 12),
    "model.layers.0.mlp.down_proj.weight": (12, 20),
    "model.norm.weight": (12,),
    "lm_head.weight": (17, 12),
}
WEIGHTS = {"a": 1.0, "b": -0.5, "c": 2.0}


def tensors(seed: int, start: dict | None = None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return made if start is None else {name: start[name] + 0.1 * value for name, value in made.items()}


@pytest.fixture
def world(tmp_path):
    """A base and three models near it; c has the base's q_proj."""
    found = {"base": tensors(0)}
    for i, name in enumerate("abc", 1):
        found[name] = tensors(i, found["base"])
    found["c"]["model.layers.0.self_attn.q_proj.weight"] = found["base"][
        "model.layers.0.self_attn.q_proj.weight"
    ]
    for name, values in found.items():
        raw_model(tmp_path / name, values)
    return tmp_path, found


def values(world, method, **options):
    folder, _ = world
    models = [{"path": str(folder / name), "weight": w} for name, w in WEIGHTS.items()]
    return {"method": method, "models": models, "base_model": str(folder / "base"), **options}


def run(world, method, out="out", **options):
    return tensors_of(merge(world[0] / out, **values(world, method, **options)))


def literal_tsv(deltas, weights, keep):
    """TSV-Merge as the paper writes it: SVDs, stacks, polar factors by full SVDs."""
    parts = [torch.linalg.svd(d.double(), full_matrices=False) for d in deltas]
    u = torch.cat([p[0][:, :keep] for p in parts], dim=1)
    s = torch.cat([w * p[1][:keep] for w, p in zip(weights, parts, strict=True)])
    v = torch.cat([p[2][:keep] for p in parts], dim=0)
    p_u, _, q_u = torch.linalg.svd(u, full_matrices=False)
    p_v, _, q_v = torch.linalg.svd(v, full_matrices=False)
    return p_u @ q_u @ torch.diag(s) @ p_v @ q_v


def literal_iso(deltas, weights, keep=None):
    total = sum(w * d.double() for w, d in zip(weights, deltas, strict=True))
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    return s[:keep].mean() * u[:, :keep] @ vh[:keep]


def check(world, out, formula, scale):
    _, found = world
    for name, merged in out.items():
        base = found["base"][name]
        deltas = [found[m][name] - base for m in "abc"]
        pairs = [(d, w) for d, w in zip(deltas, WEIGHTS.values(), strict=True) if d.any()]
        if "proj" in name:
            wanted = formula([d for d, _ in pairs], [w for _, w in pairs])
        else:
            wanted = torch.stack([w * d for d, w in zip(deltas, WEIGHTS.values(), strict=True)]).mean(0)
        torch.testing.assert_close(merged - base, scale * wanted.float(), rtol=1e-5, atol=2e-6, msg=name)


def test_tsv_is_the_formula_on_every_matrix_and_the_mean_elsewhere(world):
    keep = {3: 4, 2: 6}  # 12 / number of models that changed the matrix
    check(world, run(world, "tsv"), lambda ds, ws: literal_tsv(ds, ws, keep[len(ds)]), 1.0)
    out = run(world, "tsv", "other", task_rank=2, scale=0.7)
    check(world, out, lambda ds, ws: literal_tsv(ds, ws, 2), 0.7)


def test_iso_c_is_the_formula_on_every_matrix_and_the_mean_elsewhere(world):
    check(world, run(world, "iso_c", scale=1.5), literal_iso, 1.5)
    check(world, run(world, "iso_c", "four", rank=4), lambda ds, ws: literal_iso(ds, ws, 4), 1.0)


def test_weights_and_options_per_tensor(world):
    folder, found = world
    models = [
        {"path": str(folder / "a"), "module_weights": {"up_proj": 3.0}},
        {"path": str(folder / "b"), "module_weights": {"up_proj": 0}},
    ]
    out = tensors_of(
        merge(
            folder / "out",
            method="tsv",
            models=models,
            base_model=str(folder / "base"),
            module_options={"scale": {"up_proj": 0.5}},
        )
    )
    name = "model.layers.0.mlp.up_proj.weight"
    expected = found["base"][name] + 1.5 * (found["a"][name] - found["base"][name])
    torch.testing.assert_close(out[name], expected)


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
@pytest.mark.parametrize("shared", [False, True])
def test_models_that_are_base_and_adapter_merge_as_the_adapters_do(tmp_path, method, shared):
    """Model path against adapter path: W = W_0 + s B A in float32, the update at the lossless rank."""
    base = save_model(tmp_path / "base", llama())
    for seed, name in enumerate("xy", 1):
        folder = lora(tmp_path / name, llama(), seed=seed)
        if shared:  # one A, of which the model path sees only the rounded product
            path = folder / "adapter_model.safetensors"
            from safetensors.torch import load_file, save_file

            first = load_file(tmp_path / "x" / "adapter_model.safetensors")
            own = load_file(path)
            save_file({k: first[k] if "lora_A" in k else v for k, v in own.items()}, path)
        merge(
            tmp_path / f"model-{name}", into="model", base_model=str(base), adapters=[{"path": str(folder)}]
        )
    models = [{"path": str(tmp_path / f"model-{name}")} for name in "xy"]
    out = tensors_of(merge(tmp_path / "out", method=method, models=models, base_model=str(base)))
    merged = merge_adapters(
        [Posterior.from_pretrained(str(tmp_path / n)) for n in "xy"], method=method, rank="lossless"
    )
    start, seen = tensors_of(base), 0
    for module, keys in split_keys(merged.mean)[0].items():
        scale = module_scaling(merged.adapter_config, module)
        delta = scale * merged.mean[keys.b].float() @ merged.mean[keys.a].float()
        name = f"{module}.weight"
        torch.testing.assert_close(out[name] - start[name], delta, rtol=1e-4, atol=2e-5, msg=name)
        assert delta.abs().max() > 0.1
        seen += 1
    assert seen == 4
    rest = set(out) - {f"{module}.weight" for module in split_keys(merged.mean)[0]}
    assert all(torch.equal(out[name], start[name]) for name in rest)


@pytest.mark.parametrize("method", ["tsv", "iso_c"])
def test_threads_and_blocks_change_no_byte(tmp_path, method):
    generator = torch.Generator().manual_seed(0)
    base = {f"t{i}.weight": torch.randn(90 + i, 301, generator=generator) for i in range(6)}
    folders = [raw_model(tmp_path / "base", base)]
    for name in "ab":
        near = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator) for key, value in base.items()
        }
        folders.append(raw_model(tmp_path / name, near))
    hashes = set()
    for number, (threads, block) in enumerate([(1, 8.0), (4, 0.01), (2, 0.05)]):
        out = merge(
            tmp_path / f"out{number}",
            method=method,
            models=[{"path": str(f)} for f in folders[1:]],
            base_model=str(folders[0]),
            threads=threads,
            block_megabytes=block,
            dtype="bfloat16",
            verify=number == 0,
        )
        hashes.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_an_interrupted_run_goes_on_bit_for_bit(world, monkeypatch, capfd):
    whole = run(world, "tsv", "whole")
    made, count = engine.make_tensor, [0]

    def fails(*args):
        count[0] += 1
        if count[0] > 3:
            raise KeyboardInterrupt
        return made(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "make_tensor", fails)
        run(world, "tsv", threads=1)
    out = run(world, "tsv", threads=2)
    assert "going on: 3 of 6 tensors" in capfd.readouterr().err
    assert all(torch.equal(out[name], whole[name]) for name in whole)
    notes = [json.loads((world[0] / n / "merge.json").read_text())["notes"] for n in ("whole", "out")]
    assert notes[0] == notes[1]


def test_the_plan_says_what_one_matrix_takes_and_what_is_averaged(world):
    plan = make_plan(settings(world[0] / "out", **values(world, "tsv", threads=2)), dry=True)
    text = render(plan)
    assert "tensors    6 (3 Tsv, 3 WeightedSum) in F32" in text
    held = 8 * (4 * 12 * 20 + 7 * 12 * 12)
    assert plan.estimate.held_bytes == held and plan.estimate.memory_bytes >= 2 * held
    assert f"largest    {held / 1e3:.2f} kB of that a thread for model.layers.0.mlp.down_proj.weight" in text
    assert "3 of 6 tensors are no weight matrices" in text and "multiply-adds of matrix algebra" in text
    assert plan.to_json()["held_bytes"] == held
    entries = {name: math.prod(shape) * 4 for name, shape in SHAPES.items()}
    matrices = sum(size for name, size in entries.items() if "proj" in name)
    assert plan.bytes_read == 4 * (sum(entries.values()) - matrices) + 11 * matrices


def test_lineage_identities_and_agreement(world):
    run(world, "tsv")
    found = json.loads((world[0] / "out" / "merge.json").read_text())
    assert found["identities"]["single"] < 1e-6 and found["identities"]["written"] == 0
    assert found["tensors"] == {"total": 6, "Tsv": 3, "WeightedSum": 3}
    assert {"cosine", "distance"} <= set(found["agreement"]["mlp.up_proj.weight"])
    assert any("no weight matrices" in note for note in found["notes"])


def test_models_in_16_bits_are_told_apart_from_their_rounding(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {"t.weight": torch.randn(64, 96, generator=generator)}
    folders = [raw_model(tmp_path / "base", {k: v.bfloat16() for k, v in base.items()})]
    for name in "ab":
        update = torch.randn(64, 2, generator=generator) @ torch.randn(2, 96, generator=generator)
        near = {"t.weight": (base["t.weight"].bfloat16().float() + 0.3 * update).bfloat16()}
        folders.append(raw_model(tmp_path / name, near))
    common = {"models": [{"path": str(f)} for f in folders[1:]], "base_model": str(folders[0])}
    for method, key in (("tsv", "task_rank"), ("iso_c", "rank")):
        out = merge(tmp_path / method, method=method, **common)
        notes = json.loads((out / "merge.json").read_text())["notes"]
        assert any(f"base + LoRA, set {key} to what the adapters have" in note for note in notes)
        out = merge(tmp_path / f"{method}-set", method=method, **common, **{key: 2})
        notes = json.loads((out / "merge.json").read_text())["notes"]
        assert not any("base + LoRA" in note for note in notes)


def test_what_cannot_be_is_one_line(world):
    folder, found = world
    bad = {**found["b"], "model.layers.0.mlp.up_proj.weight": torch.full((20, 12), float("nan"))}
    raw_model(folder / "bad", bad)
    for method in ("tsv", "iso_c"):
        models = [{"path": str(folder / "a")}, {"path": str(folder / "bad")}]
        with pytest.raises(
            CheckpointError, match=r"bad/model\.safetensors holds NaN or infinity in .*up_proj"
        ):
            merge(folder / "out", method=method, models=models, base_model=str(folder / "base"))
        with pytest.raises(ConfigError, match=f"method {method} works on differences: name the common base"):
            settings(folder / "out", method=method, models=models)
    for options in ({"rank": 4}, {"density": 0.5}):
        with pytest.raises(
            ConfigError, match="rank is for adapters, and for iso_c|tsv has no option density"
        ):
            settings(folder / "out", **values(world, "tsv", **options))
    with pytest.raises(
        ConfigError, match="rank is for adapters, and for iso_c a number, a share or lossless"
    ):
        settings(folder / "out", **values(world, "iso_c", rank="keep"))
    assert not (folder / "out").exists()


def test_equal_models_and_models_that_changed_nothing(world):
    folder, found = world
    models = [{"path": str(folder / "a"), "name": name} for name in "xy"]
    out = tensors_of(merge(folder / "twice", method="tsv", models=models, base_model=str(folder / "base")))
    name = "model.layers.0.mlp.up_proj.weight"
    delta = found["a"][name] - found["base"][name]
    u, s, vh = torch.linalg.svd(delta)
    torch.testing.assert_close(out[name] - found["base"][name], u[:, :6] * s[:6] @ vh[:6], atol=1e-5, rtol=0)
    models = [{"path": str(folder / "base"), "name": name} for name in "xy"]
    out = tensors_of(merge(folder / "same", method="iso_c", models=models, base_model=str(folder / "base")))
    assert all(torch.equal(value, found["base"][name]) for name, value in out.items())
    assert not carry_out(make_plan(settings(folder / "again", **values(world, "iso_c")))).samefile(folder)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4)])
def test_triples_from_a_gram_are_those_of_the_svd(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)).double()
    u, s, vh = gram_svd(matrix)
    torch.testing.assert_close(s, torch.linalg.svdvals(matrix))
    torch.testing.assert_close((u * s) @ vh, matrix)
    torch.testing.assert_close(u.mT @ u, torch.eye(len(s), dtype=torch.float64))
    assert [len(gram_svd(matrix, 2)[1]), len(gram_svd(matrix, None, s[0].item())[1])] == [min(2, len(s)), 0]
    assert gram_svd(torch.zeros(shape).double())[0].shape == (shape[0], 0)


def test_rounding_stays_below_its_level():
    generator = torch.Generator().manual_seed(1)
    for shape in ((200, 300), (50, 50)):
        weight = torch.randn(shape, generator=generator)
        error = torch.linalg.matrix_norm((weight.bfloat16().float() - weight).double(), 2).item()
        level = rounding_level(weight.square().mean().item(), shape, torch.finfo(torch.bfloat16).eps)
        assert 0.3 * level < error < level
