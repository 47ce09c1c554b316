"""RegMean, gradient matching and MaTS on whole models: literal dense formulas, the adapter merge, files, refusals."""

import hashlib
import json

import pytest
import torch
from checkpoint_cases import llama, lora, merge, raw_model, save_model, settings, tensors_of
from safetensors.torch import save_file

from vlora.errors import CheckpointError, ConfigError, IncompatibleAdaptersError
from vlora.grams import compress_grams, product, read_gram
from vlora.merge import METHODS, merge_adapters
from vlora.merge.checkpoints import make_plan
from vlora.merge.checkpoints.config import MODEL_METHODS
from vlora.merge.checkpoints.plan_text import render
from vlora.posterior import Posterior, fingerprint_weights
from vlora.posterior.lora_layout import module_scaling, split_keys

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (12, 12),
    "model.layers.0.mlp.up_proj.weight": (20, 12),
    "model.layers.0.mlp.down_proj.weight": (12, 20),
    "model.norm.weight": (12,),
}
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
METHOD_NAMES = ("regmean", "gradient_matching", "mats")


def gram(size, seed):
    rows = torch.randn(2 * size, size, generator=torch.Generator().manual_seed(seed))
    rows = rows * torch.linspace(0.1, 3, size)
    return rows.mT @ rows


def grams(shapes, seed, prefix=""):
    """Curvature of every matrix, on a scale of its own."""
    found = {}
    for place, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 2:
            stem, start = f"{prefix}{name.removesuffix('.weight')}", 100 * seed + 3 * place
            found[f"{stem}.input_gram"] = 7.0 * seed * gram(shape[1], start)
            found[f"{stem}.output_gram"] = gram(shape[0], start + 1)
            found[f"{stem}.activation_gram"] = gram(shape[1], start + 2)
    return found


@pytest.fixture
def world(tmp_path):
    """A base and three models near it with curvature beside their weights; the norm has none."""
    generator = torch.Generator().manual_seed(0)
    found = {"base": {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}}
    for name in "abc":
        found[name] = {
            n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in found["base"].items()
        }
    for name, values in found.items():
        raw_model(tmp_path / name, values)
    curvature = {name: grams(SHAPES, i) for i, name in enumerate("abc", 1)}
    for name, values in curvature.items():
        save_file(values, tmp_path / name / "curvature.safetensors")
    return tmp_path, found, curvature


def values(world, method, weights=WEIGHTS, **options):
    models = [{"path": str(world[0] / name), "weight": w} for name, w in weights.items()]
    return {"method": method, "models": models, "base_model": str(world[0] / "base"), **options}


def run(world, method, out="out", **options):
    return tensors_of(merge(world[0] / out, **values(world, method, **options)))


def unit(matrix):
    return matrix.double() * len(matrix) / matrix.double().trace()


def parts(world, name, kind, weights):
    """Differences to the base, Grams of mean diagonal 1, and weights."""
    _, found, curvature = world
    stem = name.removesuffix(".weight")
    deltas = [(found[m][name] - found["base"][name]).double() for m in weights]
    return deltas, [unit(curvature[m][f"{stem}.{kind}"]) for m in weights], list(weights.values())


def literal_matching(deltas, found, weights, tau):
    """X (tau I + sum w G) = sum w D (tau I + G), solved row by row with a dense inverse."""
    one = torch.eye(len(found[0]), dtype=torch.float64)
    total = tau * one + sum(w * g for w, g in zip(weights, found, strict=True))
    pulled = sum(w * d @ (tau * one + g) for w, d, g in zip(weights, deltas, found, strict=True))
    return pulled @ torch.linalg.inv(total)


def check(world, out, formula):
    _, found, _ = world
    for name, merged in out.items():
        if "proj" in name:
            wanted = formula(name)
            delta = (merged - found["base"][name]).double()
            torch.testing.assert_close(delta, wanted, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("short", [False, True])
def test_what_the_base_is_to_keep_stands_in_the_total_alone(world, short):
    folder, found, _ = world
    kept = {k: v for k, v in grams(SHAPES, 9).items() if "input" in k}
    stored = compress_grams(kept, 3) if short else kept
    save_file(stored, folder / "keep.safetensors")
    out = run(world, "gradient_matching", tau=0.4, keep=str(folder / "keep.safetensors"), keep_weight=1.5)

    def formula(name):
        deltas, curvatures, weights = parts(world, name, "input_gram", WEIGHTS)
        key = f"{name.removesuffix('.weight')}.input_gram"
        known = unit(read_gram(stored, key))
        return literal_matching(
            [*deltas, torch.zeros_like(deltas[0])], [*curvatures, known], [*weights, 1.5], 0.4
        )

    check(world, out, formula)
    total = sum(
        w * (found[m]["model.norm.weight"] - found["base"]["model.norm.weight"]) for m, w in WEIGHTS.items()
    )
    torch.testing.assert_close(out["model.norm.weight"], found["base"]["model.norm.weight"] + total)
    lineage = json.loads((folder / "out" / "merge.json").read_text())["inputs"]
    assert [source["weight"] for source in lineage if source["role"] == "keep"] == [1.5]
    nothing = run(
        world, "gradient_matching", "nothing", keep=str(folder / "keep.safetensors"), keep_weight=0.0
    )
    without = run(world, "gradient_matching", "without")
    assert all(torch.equal(nothing[key], without[key]) for key in without)


def test_what_the_base_is_to_keep_needs_all_matrices_and_curvature_of_every_model(world):
    folder, _, curvature = world
    q_proj = {k: v for k, v in grams(SHAPES, 9).items() if "q_proj.input" in k}
    save_file(q_proj, folder / "few.safetensors")
    plan = make_plan(
        settings(folder / "out", **values(world, "gradient_matching", keep=str(folder / "few.safetensors")))
    )
    assert any("curvature of 'keep' has no input_gram for 2 tensors" in problem for problem in plan.problems)
    with pytest.raises(ConfigError, match="keep: no file or folder .*gone"):
        make_plan(settings(folder / "out", **values(world, "gradient_matching", keep=str(folder / "gone"))))
    with pytest.raises(ConfigError, match="method regmean has no option keep"):
        settings(folder / "out", **values(world, "regmean", keep="x"))
    for name in curvature:
        (folder / name / "curvature.safetensors").unlink()
    keep = values(world, "gradient_matching", keep=str(folder / "few.safetensors"))
    found = " ".join(make_plan(settings(folder / "out", **keep)).problems)
    assert "needs curvature of every model because of keep, and 'a', 'b', 'c' has none: gather it" in found
    assert found.count("or leave keep out") == 1 and "isotropic" not in found
    asked = make_plan(settings(folder / "out", **keep, curvature="kronecker")).problems
    assert asked and not any("keep" in problem for problem in asked)
    assert not make_plan(settings(folder / "out", **keep, keep_weight=0.0)).problems
    save_file(curvature["a"], folder / "a" / "curvature.safetensors")
    found = " ".join(make_plan(settings(folder / "out", **keep)).problems)
    assert "needs curvature of every model, and 'b', 'c' has none" in found
    assert "or leave keep out and set curvature: isotropic for the plain sum" in found


def test_a_diagonal_is_refused_by_the_plan(world):
    folder, _, curvature = world
    kept = {k: v for k, v in grams(SHAPES, 9).items() if "input" in k}
    key = "model.layers.0.mlp.up_proj.input_gram"
    save_file({**kept, key: kept[key].diagonal().contiguous()}, folder / "keep.safetensors")
    given = values(world, "gradient_matching", keep=str(folder / "keep.safetensors"))
    (problem,) = make_plan(settings(folder / "out", **given)).problems
    assert problem == (
        "keep in model.layers.0.mlp.up_proj: input_gram has the shape (12,), and whole models take square Grams or "
        "leading directions, no diagonals; gather it with vlora curvature"
    )
    own = {**curvature["b"], key: curvature["b"][key].diagonal().contiguous()}
    save_file(own, folder / "b" / "curvature.safetensors")
    (problem,) = make_plan(settings(folder / "out", **values(world, "gradient_matching"))).problems
    assert problem.startswith(
        "the curvature of 'b' in model.layers.0.mlp.up_proj: input_gram has the shape (12,)"
    )


def test_every_method_is_there_for_whole_models():
    assert set(MODEL_METHODS) == set(METHODS)


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_gradient_matching_is_the_closed_form_and_the_sum_elsewhere(world, tau):
    _, found, _ = world
    out = run(world, "gradient_matching", tau=tau, scale=0.9)
    check(world, out, lambda n: 0.9 * literal_matching(*parts(world, n, "input_gram", WEIGHTS), tau))
    base = found["base"]["model.norm.weight"]
    total = sum(w * (found[m]["model.norm.weight"] - base) for m, w in WEIGHTS.items())
    torch.testing.assert_close(out["model.norm.weight"], base + 0.9 * total)


def test_negative_weights_negate_or_remove(world):
    weights = {"a": 1.0, "b": -0.3}

    def negated(name):
        deltas, found, _ = parts(world, name, "input_gram", weights)
        return literal_matching([deltas[0], -deltas[1]], found, [1.0, 0.3], 0.3)

    check(world, run(world, "gradient_matching", weights=weights), negated)
    weights = {"a": 1.0, "b": -0.01}  # small enough that nothing is clamped
    out = run(world, "gradient_matching", "removed", weights=weights, negative="remove")
    check(world, out, lambda n: literal_matching(*parts(world, n, "input_gram", weights), 0.3))
    with pytest.raises(IncompatibleAdaptersError, match=r"indefinite precision in model\.layers.*negate"):
        run(world, "gradient_matching", "no", weights={"a": 0.01, "b": -5.0}, negative="remove", tau=0.01)
    assert not list(world[0].glob("*no*"))


@pytest.mark.parametrize("shrink", [0.9, 0.3])
def test_regmean_is_the_least_squares_solution_and_the_mean_elsewhere(world, shrink):
    folder, found, _ = world
    out = run(world, "regmean", shrink=shrink)

    def formula(name):
        _, known, weights = parts(world, name, "activation_gram", WEIGHTS)
        known = [shrink * g + torch.diag((1 - shrink) * g.diagonal() + 1e-6) for g in known]
        stack = torch.cat([w**0.5 * torch.linalg.cholesky(g).mT for w, g in zip(weights, known, strict=True)])
        seen = [
            w**0.5 * torch.linalg.cholesky(g).mT @ found[m][name].double().mT
            for w, g, m in zip(weights, known, WEIGHTS, strict=True)
        ]
        return torch.linalg.lstsq(stack, torch.cat(seen)).solution.mT - found["base"][name].double()

    check(world, out, formula)
    name = "model.norm.weight"
    torch.testing.assert_close(out[name], sum(w * found[m][name] for m, w in WEIGHTS.items()) / 3.5)
    models = values(world, "regmean")["models"]
    alone = tensors_of(merge(folder / "nobase", method="regmean", models=models, shrink=shrink))
    assert all(torch.equal(alone[name], out[name]) for name in out)  # the base has no part in it


def test_mats_is_the_linear_system_with_both_sides(world):
    def formula(name):
        deltas, right, weights = parts(world, name, "input_gram", WEIGHTS)
        m, n = deltas[0].shape
        left = [(s + 10.0 * torch.eye(m)) / 11.0 for s in parts(world, name, "output_gram", WEIGHTS)[1]]
        system = 0.3 * torch.eye(m * n, dtype=torch.float64)
        target = torch.zeros(m, n, dtype=torch.float64)
        for w, d, s, g in zip(weights, deltas, left, right, strict=True):
            system = system + w * torch.kron(s, g)
            target = target + w * (s @ d @ g + 0.3 * d)
        return torch.linalg.solve(system, target.flatten()).view(m, n)

    out = run(world, "mats")
    for name in SHAPES:
        if "proj" in name:
            delta = (out[name] - world[1]["base"][name]).double()
            expected = formula(name)
            assert (delta - expected).norm() < 1e-3 * expected.norm()
    # findings of the solver go through the journal
    assert any("conjugate gradients took" in note for note in lineage(world)["notes"])


def lineage(world, out="out"):
    return json.loads((world[0] / out / "merge.json").read_text())


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("short", [False, True])
def test_models_that_are_base_and_adapter_merge_as_the_adapters_do(tmp_path, method, short):
    """Model path against adapter path, with the adapters' own curvature files, at full rank."""
    base = save_model(tmp_path / "base", llama())
    shapes = {
        f"model.layers.{i}.{part}.weight": shape
        for i in range(2)
        for part, shape in (("self_attn.q_proj", (12, 12)), ("mlp.down_proj", (12, 20)))
    }
    models = []
    for seed, name in enumerate("xy", 1):
        folder = lora(tmp_path / name, llama(), seed=seed)
        curvature = grams(shapes, seed, "base_model.model.")
        curvature = {k: v for k, v in curvature.items() if method == "regmean" or "activation" not in k}
        save_file(compress_grams(curvature, 2) if short else curvature, folder / "curvature.safetensors")
        into = {"into": "model", "base_model": str(base), "adapters": [{"path": str(folder)}]}
        merge(tmp_path / f"model-{name}", **into)
        models.append(
            {"path": str(tmp_path / f"model-{name}"), "curvature": str(folder), "weight": 0.5 * seed}
        )
    options = {} if method == "regmean" else {"tau": 0.5}
    out = merge(tmp_path / "out", method=method, models=models, base_model=str(base), **options)
    rank = 12 if method == "mats" else "lossless"
    adapters = [Posterior.from_pretrained(str(tmp_path / n)) for n in "xy"]
    merged = merge_adapters(adapters, method=method, weights=[0.5, 1.0], rank=rank, **options)
    start, found = tensors_of(base), tensors_of(out)
    modules = split_keys(merged.mean)[0]
    assert len(modules) == 4
    for module, keys in modules.items():
        delta = merged.mean[keys.b].float() @ merged.mean[keys.a].float()
        delta = module_scaling(merged.adapter_config, module) * delta
        ours = found[f"{module}.weight"] - start[f"{module}.weight"]
        assert delta.norm() > 0.5
        assert (ours - delta).norm() < (1e-3 if method == "mats" else 1e-5) * delta.norm(), module
    rest = set(found) - {f"{module}.weight" for module in modules}
    for name in rest:
        torch.testing.assert_close(found[name], start[name], rtol=1e-6, atol=0)
    roles = [s["role"] for s in json.loads((out / "merge.json").read_text())["inputs"]]
    assert roles == ["base", "model", "model", "curvature", "curvature"]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_threads_and_blocks_change_no_byte_and_identities_hold(world, method):
    hashes = set()
    for number, (threads, block) in enumerate([(1, 8.0), (4, 0.0001), (2, 0.001)]):
        run(world, method, f"out{number}", threads=threads, block_megabytes=block, dtype="bfloat16")
        hashes.add(hashlib.sha256((world[0] / f"out{number}" / "model.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1
    found = lineage(world, "out0")
    assert found["identities"]["single"] < 1e-6 and found["identities"]["written"] == 0
    assert "cosine" in found["agreement"]["mlp.up_proj.weight"]


def test_the_plan_says_what_curvature_takes_and_who_has_none(world):
    plan = make_plan(settings(world[0] / "out", **values(world, "gradient_matching", threads=1)), dry=True)
    text = render(plan)
    assert "tensors    4 (3 GradientMatching, 1 WeightedSum) in F32" in text
    assert "1 of 4 tensors have no curvature, first model.norm.weight: they get the weighted sum" in text
    held = (4 * 3 + 20) * 20 * 20
    assert f"largest    {held / 1e3:.2f} kB of that a thread for model.layers.0.mlp.down_proj.weight" in text
    assert "curvature curvature of a" in text
    weights = 4 * 4 * sum(v.numel() for v in world[1]["base"].values())
    assert plan.bytes_read == weights + 3 * 4 * (12 * 12 + 12 * 12 + 20 * 20)


def test_a_changed_curvature_file_starts_anew(world):
    config = settings(world[0] / "out", **values(world, "gradient_matching"))
    before = make_plan(config).signature()
    save_file(grams(SHAPES, 9), world[0] / "b" / "curvature.safetensors")
    assert make_plan(config).signature() != before


def test_without_any_curvature_gradient_matching_is_the_sum_and_says_so(world):
    for name in "abc":
        (world[0] / name / "curvature.safetensors").unlink()
    out = run(world, "gradient_matching")
    plain = run(world, "task_arithmetic", "sum")
    assert all(torch.equal(out[name], plain[name]) for name in out)
    assert any("no model has a curvature.safetensors" in note for note in lineage(world)["notes"])
    for method, options in (("mats", {}), ("regmean", {}), ("gradient_matching", {"curvature": "kronecker"})):
        with pytest.raises(
            CheckpointError, match=f"{method} needs curvature of every model, and 'a', 'b', 'c'"
        ):
            run(world, method, "no", **options)


def test_isotropic_is_the_sum_whatever_there_is(world):
    out = run(world, "gradient_matching", curvature="isotropic")
    plain = run(world, "task_arithmetic", "sum")
    assert all(torch.equal(out[name], plain[name]) for name in out)


def changed(world, model, change):
    curvature = dict(world[2][model])
    change(curvature)
    save_file(curvature, world[0] / model / "curvature.safetensors")


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("method", "change", "error", "message"),
    [
        ("gradient_matching", lambda c: c.pop(f"{UP}.input_gram"), CheckpointError,
         r"the curvature of 'b' has no input_gram for 1 tensors, first model\.layers\.0\.mlp\.up_proj\.weight"),
        ("regmean", lambda c: [c.pop(k) for k in list(c) if "activation" in k], CheckpointError,
         r"'b' has no activation_gram for 3 tensors.*vlora curvature, activations: true"),
        ("mats", lambda c: c.update({f"{UP}.output_gram": torch.eye(12)}), CheckpointError,
         r"curvature of 'b' in .*up_proj has other sizes \(input_gram 12, output_gram 12\) than .*\(20, 12\)"),
        ("gradient_matching", lambda c: c.update({"other.input_gram": torch.eye(12)}), CheckpointError,
         "of 'b' has curvature of other, which the models do not have"),
        ("gradient_matching", lambda c: c[f"{UP}.input_gram"].fill_(float("nan")), IncompatibleAdaptersError,
         f"curvature of 'b' in {UP} is not finite and positive; gather it again"),
        ("regmean", lambda c: c[f"{UP}.activation_gram"].zero_(), IncompatibleAdaptersError,
         f"the activation Gram of 'b' in {UP} is zero"),
        ("mats", lambda c: c.clear() or c.update(x=torch.eye(2)), CheckpointError, "holds no Gram"),
    ],
)  # fmt: skip
def test_curvature_that_does_not_fit_is_named(world, method, change, error, message):
    changed(world, "b", change)
    with pytest.raises(error, match=message) as caught:
        run(world, method)
    assert "\n" not in str(caught.value)
    assert not list(world[0].glob("*out*"))


def test_what_cannot_be_is_one_line(world):
    folder = world[0]
    for method in ("regmean", "mats"):
        with pytest.raises(ConfigError, match=r"takes positive weights, got -1 on .*task_arithmetic"):
            run(world, method, weights={"a": 1.0, "b": -1.0})
    for kind in ("sites", "separable"):
        with pytest.raises(
            ConfigError, match=f"curvature: {kind} needs the h of adapters; for whole models auto"
        ):
            settings(folder / "out", **values(world, "gradient_matching", curvature=kind))
    models = [{"path": str(folder / "a"), "curvature": str(folder / "b")}, {"path": str(folder / "b")}]
    with pytest.raises(
        ConfigError, match="method linear takes no curvature of models, only regmean, mats, grad"
    ):
        settings(folder / "out", method="linear", models=models)
    models[0]["curvature"] = str(folder / "nothing")
    with pytest.raises(CheckpointError, match="'a': no curvature file .*nothing; correct curvature"):
        run(world, "regmean", models=models)


def test_a_file_beside_the_weights_is_no_weights(world):
    folder = world[0]
    before = fingerprint_weights(str(folder / "a"))
    (folder / "a" / "curvature.safetensors").unlink()
    assert fingerprint_weights(str(folder / "a")) == before
    changed(world, "a", lambda c: None)
    (folder / "a" / "model.safetensors").rename(
        folder / "a" / "weights.safetensors"
    )  # one file of another name
    run(world, "gradient_matching")


def test_products_with_a_matrix_in_another_precision():
    rows, matrix = torch.randn(3, 700, dtype=torch.float64), torch.randn(700, 700)
    assert torch.equal(product(rows, matrix), product(rows, matrix.double())) or torch.allclose(
        product(rows, matrix), rows @ matrix.double(), rtol=1e-12
    )
    assert product(rows, matrix).dtype == torch.float64
