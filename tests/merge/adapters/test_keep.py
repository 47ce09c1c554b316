"""What the base is to keep: the merge with one more adapter that has no update, in every path, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, gram, make_update, positive, tiny_llama, two
from safetensors.torch import load_file, save_file

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.grams import compress_grams
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.keep import KeepFile, read_keep
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.plan import make_adapter_plan
from vlora.merge.preview import preview
from vlora.merge.unmerge.run import remove_contributors
from vlora.posterior import Posterior

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
        ({f"{MODULE}.input_gram": torch.full((9, 9), torch.nan)}, "is not finite and positive"),
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


def test_settings_that_mean_nothing(tmp_path):
    _, plain = two(tmp_path)
    with pytest.raises(ConfigError, match="no file or folder .*nowhere; give .*, or leave keep out"):
        read_keep(str(tmp_path / "nowhere"))
    for settings, message in (
        ({"keep_weight": 1.0}, "keep_weight is the weight of keep, which is not given"),
        ({"module_options": {"keep_weight": {"q_proj": 2.0}}}, "keep_weight is the weight of keep"),
        ({"keep": "x", "keep_weight": -1.0}, "keep_weight must be >= 0, got -1.0"),
        ({"keep": 3}, "keep must be a path, got 3"),
        ({"keep": "x", "curvature": "sites"}, "keep goes with curvature: kronecker or separable"),
        ({"keep": "x", "method": "ties"}, "method ties has no option 'keep'"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge_adapters(plain, **settings)
    with pytest.raises(ConfigError, match="summed by sites, which keep cannot enter; leave keep out"):
        load_config(MergeConfig, {"adapters": [{"path": "a"}], "output": "o", "keep": "x", "ancestor": "y"})


@pytest.fixture
def merge(tmp_path):
    """Two adapters with curvature on disk, the Grams of a base, and a folder with an adapter without update."""
    _, plain = two(tmp_path)
    paths = []
    for seed, posterior in enumerate(plain, 1):
        add_curvature(add_posterior(posterior, seed), 50 * seed).save_pretrained(tmp_path / f"p{seed}")
        paths.append({"path": str(tmp_path / f"p{seed}")})
    known = add_curvature(plain[0], 900)
    (tmp_path / "k").mkdir()
    bare = {key.removeprefix("base_model.model."): v for key, v in known.curvature.items()}
    save_file(bare, tmp_path / "k" / "curvature.safetensors")
    mean = {k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in known.mean.items()}
    replace(known, mean=mean).save_pretrained(tmp_path / "idle")
    values = {
        "adapters": paths,
        "output": str(tmp_path / "m"),
        "keep": str(tmp_path / "k"),
        "keep_weight": WEIGHT,
    }
    return tmp_path, values


def test_through_the_command_in_memory_and_with_its_lineage(merge):
    tmp_path, values = merge
    done = run_merge(load_config(MergeConfig, values))
    report = json.loads((done / "merge_report.json").read_text())
    assert report["keep"]["path"] == values["keep"] and report["keep"]["weight"] == WEIGHT
    assert len(report["keep"]["sha256"]) == 64 and report["options"]["keep_weight"] == WEIGHT
    assert set(report["sensitivity"]) == {"modules", "half", "double", "without_keep"}
    merged = Posterior.from_pretrained(done)
    assert any("holds the merge at the base model, weight 1.7" in note for note in merged.meta.notes)
    assert merged.has_hess and len(merged.meta.sources) == 2
    inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
    one = merge_adapters(inputs, keep=values["keep"], keep_weight=WEIGHT)
    assert all(torch.equal(merged.mean[k], one.mean[k]) for k in one.mean)
    nothing = merge_adapters(inputs, keep=values["keep"], keep_weight=0.0)
    without = merge_adapters(inputs)
    assert all(torch.equal(nothing.mean[k], without.mean[k]) for k in without.mean)
    third = Posterior.from_pretrained(tmp_path / "idle")
    other = merge_adapters([*inputs, third], weights=[1.0, 1.0, WEIGHT])
    for key in (k for k in one.mean if ".lora_B." in k):
        deltas = [
            p.mean[key].double()
            @ p.mean[key.replace("lora_B", "lora_A")].double()
            * p.adapter_config["lora_alpha"]
            / p.adapter_config["r"]
            for p in (one, other)
        ]
        torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-5, atol=1e-5)


def test_values_per_module_and_an_adapter_alone(merge):
    _, values = merge
    inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
    some = {"module_options": {"keep_weight": {"q_proj": 0.0}}}
    found = merge_adapters(inputs, keep=values["keep"], **some)
    without, whole = merge_adapters(inputs), merge_adapters(inputs, keep=values["keep"])
    for key in found.mean:
        like = without if "q_proj" in key else whole
        assert torch.equal(found.mean[key], like.mean[key]), key
    alone = merge_adapters(inputs[:1], keep=values["keep"])
    assert any(not torch.equal(alone.mean[k], inputs[0].mean[k]) for k in alone.mean if "lora_A" in k)


def test_into_the_base_it_is_the_same_update(merge):
    tmp_path, values = merge
    from peft import PeftModel

    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    adapter = run_merge(load_config(MergeConfig, values))
    expected = PeftModel.from_pretrained(tiny_llama(), adapter).merge_and_unload().state_dict()
    given = {
        **values,
        "output": str(tmp_path / "model"),
        "base_model": str(tmp_path / "base"),
        "into": "model",
    }
    done = run_model_merge(load_config(ModelMergeConfig, given))
    found = load_file(done / "model.safetensors")
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
    lineage = json.loads((done / "merge.json").read_text())
    kept = next(source for source in lineage["inputs"] if source["role"] == "keep")
    assert kept["weight"] == WEIGHT and len(kept["sha256"]) == 64
    assert "| keep | keep | 1.7 |" in (done / "README.md").read_text()


def test_the_plan_knows_it(merge):
    tmp_path, values = merge
    config = load_config(MergeConfig, values)
    plan, without = (make_adapter_plan(c) for c in (config, replace(config, keep=None, keep_weight=None)))
    assert not plan.problems and plan.seconds > 0
    assert plan.bytes_read > without.bytes_read and plan.memory_bytes > without.memory_bytes
    few = {k: v for k, v in load_file(tmp_path / "k" / "curvature.safetensors").items() if "v_proj" in k}
    save_file(few, tmp_path / "few.safetensors")
    plan = make_adapter_plan(replace(config, keep=str(tmp_path / "few.safetensors")))
    assert (
        len(plan.problems) == 1 and "has no input_gram for model.layers.0.mlp.down_proj" in plan.problems[0]
    )
    assert "no file or folder gone" in make_adapter_plan(replace(config, keep="gone")).problems[0]
    for place in ("p1", "p2"):
        (tmp_path / place / "curvature.safetensors").unlink()
    assert not make_adapter_plan(config).problems  # separable, by h
    plain = replace(
        config,
        adapters=tuple(
            replace(s, path=str(tmp_path / n)) for s, n in zip(config.adapters, "ab", strict=True)
        ),
    )
    assert any("keep goes with Kronecker or separable" in text for text in make_adapter_plan(plain).problems)


def test_a_preview_says_that_it_does_not_know_it(merge):
    _, values = merge
    with pytest.raises(ConfigError, match="a preview does not know what keep holds"):
        inputs = [Posterior.from_pretrained(p["path"]) for p in values["adapters"]]
        preview(load_config(MergeConfig, values), inputs)


def test_removal_merges_again_with_the_same_file_only(merge):
    tmp_path, values = merge
    done = run_merge(load_config(MergeConfig, values))
    result = remove_contributors(done, ["p2"], tmp_path / "left")
    assert result.reproduced
    left = Posterior.from_pretrained(tmp_path / "left")
    alone = merge_adapters(
        [Posterior.from_pretrained(tmp_path / "p1")], keep=values["keep"], keep_weight=WEIGHT
    )
    assert all(torch.equal(left.mean[k], alone.mean[k]) for k in alone.mean)
    other = {k: v + torch.eye(len(v)) for k, v in load_file(tmp_path / "k" / "curvature.safetensors").items()}
    save_file(other, tmp_path / "k" / "curvature.safetensors")
    with pytest.raises(IncompatibleAdaptersError, match="keep .* is not the file that was merged with"):
        remove_contributors(done, ["p2"], tmp_path / "again")
    with pytest.raises(ConfigError, match="is or holds the input"):
        over = {"output": str(tmp_path / "idle"), "keep": str(tmp_path / "idle"), "overwrite": True}
        run_merge(load_config(MergeConfig, {**values, **over}))
