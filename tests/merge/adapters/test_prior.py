"""Priors from files: against the formula with dense matrices, in every form, and refused where damaged."""

import json
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, gram, make_update, positive, rand, two
from safetensors.torch import save_file

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.grams import compress_grams
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.prior import PriorFile, read_prior
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.posterior import Posterior

MODULE, TAU = "layers.0.q_proj", 0.4


def prior_of(matrix, output=None):
    tensors = {f"{MODULE}.input_gram": matrix}
    return PriorFile("p", tensors if output is None else {**tensors, f"{MODULE}.output_gram": output})


def pair(**settings):
    return [make_update(1, **settings), make_update(20, **settings)]


@pytest.mark.parametrize("weights", [(1.0, 0.6), (0.7, -0.4)])
def test_kronecker_matching_is_the_formula_with_the_matrix_in_place_of_tau(weights):
    updates, eye = pair(), torch.eye(9, dtype=torch.float64)
    found = gradient_matching(updates, weights, rank="lossless", tau=TAU, prior=prior_of(7 * gram(9, 3)))
    prior = TAU * (0.99 * normalised_gram(gram(9, 3), "p") + 0.01 * eye)
    grams = [normalised_gram(u.input_gram, "u") for u in updates]
    total = prior + sum(abs(w) * g for w, g in zip(weights, grams, strict=True))
    whole = sum(w * u.delta() @ (g + prior) for w, u, g in zip(weights, updates, grams, strict=True))
    torch.testing.assert_close(found.update.delta(), whole @ torch.linalg.inv(total))
    plain = gradient_matching(updates, weights, rank="lossless", tau=TAU).update.delta()
    assert (found.update.delta() - plain).norm() > 1e-2 * plain.norm()


def test_the_identity_is_the_isotropic_prior_variances_and_all():
    updates, eye = pair(), torch.eye(9, dtype=torch.float64)
    for rank in ("lossless", 2):
        one = gradient_matching(updates, [1.0, 0.5], rank=rank, tau=TAU).update
        two_ = gradient_matching(updates, [1.0, 0.5], rank=rank, tau=TAU, prior=prior_of(3 * eye)).update
        torch.testing.assert_close(one.delta(), two_.delta())
        torch.testing.assert_close(one.precision_a, two_.precision_a)
    alone = gradient_matching(updates[:1], [1.0], rank="lossless", prior=prior_of(gram(9, 3))).update
    torch.testing.assert_close(alone.delta(), updates[0].delta())


def test_separable_matching_takes_both_diagonals():
    """At full rank the weighted re-factorisation is exact, so it is the weighted mean entry by entry."""
    updates = pair(grams=False, m=5, n=4, r=4)
    columns, rows = positive(4, seed=1), positive(5, seed=2)
    merged = gradient_matching(
        updates, [1.0, 0.5], rank=4, tau=TAU, prior=prior_of(columns, torch.diag(rows))
    )
    assert merged.report["curvature"] == "separable"
    row, column = (0.99 * v / v.mean() + 0.01 for v in (rows, columns))
    prior = TAU * torch.outer(row, column)
    lifted = [torch.outer(*(v / v.mean() for v in lift_update(u))) for u in updates]
    above = sum(w * (prior + p) * u.delta() for w, p, u in zip((1, 0.5), lifted, updates, strict=True))
    expected = above / (prior + lifted[0] + 0.5 * lifted[1])
    torch.testing.assert_close(merged.update.delta(), expected, rtol=1e-3, atol=1e-4)


def test_whole_short_and_diagonal_files_with_either_name_are_one_prior(tmp_path):
    diagonal = torch.tensor([5.0, 3.0, *[1.0] * 7])
    key = f"base_model.model.{MODULE}.input_gram"
    forms = [{key: torch.diag(diagonal)}, {f"{MODULE}.input_gram": diagonal}]
    forms.append(compress_grams({key: torch.diag(diagonal)}, 2))
    found = []
    for number, tensors in enumerate(forms):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        (tmp_path / str(number)).mkdir()
        save_file(tensors, tmp_path / str(number) / "curvature.safetensors")
        for path in (f"{number}.safetensors", str(number)):
            prior = read_prior(str(tmp_path / path))
            found.append(gradient_matching(pair(), [1.0, 0.5], rank="lossless", prior=prior).update.delta())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_a_posterior_folder_gives_the_diagonals_of_its_h(tmp_path):
    _, plain = two(tmp_path)
    posterior = add_posterior(plain[0], 1)
    posterior.save_pretrained(tmp_path / "p")
    update = read_inputs([posterior], ["x"]).update(0, "model.layers.0.self_attn.q_proj")
    row, column = lift_update(update)
    found = read_prior(str(tmp_path / "p")).of(update.module, 12, 12)
    torch.testing.assert_close(found.columns, 0.99 * column / column.mean() + 0.01)
    torch.testing.assert_close(found.rows, 0.99 * row / row.mean() + 0.01)
    with pytest.raises(ConfigError, match="neither curvature.safetensors nor h"):
        read_prior(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other.input_gram": torch.eye(9)}, "has no input_gram for layers.0.q_proj; gather it"),
        ({f"{MODULE}.input_gram": torch.eye(8)}, r"has the shape \(8, 8\), the module needs 9 x 9"),
        ({f"{MODULE}.input_gram": torch.ones(8)}, r"has the shape \(8, 8\)"),
        ({f"{MODULE}.input_gram": torch.full((9, 9), torch.nan)}, "is not finite and positive"),
        ({f"{MODULE}.input_gram": -torch.ones(9)}, "is not finite, or not positive"),
        ({f"{MODULE}.input_gram": torch.diag(torch.tensor([-1.0, *[5.0] * 8]))}, "has negative eigenvalues"),
        (
            {f"{MODULE}.input_gram": torch.eye(9), f"{MODULE}.output_gram": torch.eye(9)},
            "output_gram of layers.0.q_proj.* needs 7 x 7",
        ),
        (
            {
                f"{MODULE}.input_gram.vectors": torch.eye(9)[:, :1],
                f"{MODULE}.input_gram.values": torch.tensor([9.0]),
                f"{MODULE}.input_gram.tail": torch.tensor([-0.5]),
            },
            "has negative eigenvalues",
        ),
    ],
)
def test_what_is_no_precision_is_refused(tensors, message):
    with pytest.raises(IncompatibleAdaptersError, match=message):
        gradient_matching(pair(), [1.0, 1.0], prior=PriorFile("p", tensors))


def test_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="no file or folder .*nowhere; give curvature.safetensors"):
        read_prior(str(tmp_path / "nowhere"))
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ConfigError, match="text is no safetensors file"):
        read_prior(str(tmp_path / "text"))
    save_file({"weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="holds no input_gram of any module \\(first key weight\\)"):
        read_prior(str(tmp_path / "w.safetensors"))
    with pytest.raises(ConfigError, match="prior must be a path, got 3"):
        merge_adapters(two(tmp_path)[1], prior=3)


def test_through_the_command_with_its_lineage(tmp_path):
    folders, plain = two(tmp_path)
    paths = []
    for seed, posterior in enumerate(plain, 1):
        add_curvature(add_posterior(posterior, seed), 50 * seed).save_pretrained(tmp_path / f"p{seed}")
        paths.append({"path": str(tmp_path / f"p{seed}")})
    prior = add_curvature(plain[0], 900)
    save_file(dict(prior.curvature), tmp_path / "prior.safetensors")
    values = {"adapters": paths, "output": str(tmp_path / "m"), "prior": str(tmp_path / "prior.safetensors")}
    config = load_config(MergeConfig, values)
    done = run_merge(config)
    report = json.loads((done / "merge_report.json").read_text())
    assert report["options"]["prior"] == values["prior"] and report["prior"]["path"] == values["prior"]
    assert len(report["prior"]["sha256"]) == 64
    assert set(report["sensitivity"]) == {"modules", "half", "double", "isotropic"}
    inputs = [Posterior.from_pretrained(p["path"]) for p in paths]
    one = merge_adapters(inputs, prior=values["prior"])
    other = merge_adapters(inputs)
    merged = Posterior.from_pretrained(done)
    assert all(torch.equal(merged.mean[k], one.mean[k]) for k in one.mean)
    assert any((one.mean[k] - other.mean[k]).abs().max() > 1e-3 for k in one.mean)
    with pytest.raises(IncompatibleAdaptersError, match="is it of this base model"):
        wrong = {k: v[:5, :5].contiguous() for k, v in prior.curvature.items()}
        save_file(wrong, tmp_path / "wrong.safetensors")
        run_merge(replace(config, prior=str(tmp_path / "wrong.safetensors"), output=str(tmp_path / "n")))
    assert not (tmp_path / "n").exists()


def test_a_random_prior_changes_little_where_the_data_say_much():
    """The prior's part falls with tau, as that of tau I does."""
    updates = pair()
    base = gradient_matching(updates, [1.0, 1.0], rank="lossless", tau=1e-6).update.delta()
    x = rand(9, 9, seed=3)
    for prior in (None, prior_of(x @ x.mT)):
        moved = gradient_matching(updates, [1.0, 1.0], rank="lossless", tau=1e-5, prior=prior).update.delta()
        assert (moved - base).norm() < 1e-2 * base.norm()
