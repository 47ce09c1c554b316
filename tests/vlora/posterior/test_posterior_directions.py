"""Leading directions as part of a posterior: in its folder, under a prior, and gone where the adapter changes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlora import Posterior
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.merge import merge_adapters
from vlora.posterior.calibration import under_prior
from vlora.posterior.kinds import available_kinds, missing, output_covariances, source_identity
from vlora.posterior.leading import Leading
from vlora.posterior.pruning import prune_entries, prune_ranks
from vlora.recipes.inspect import describe


def gradients(posterior, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(count, *h.shape, generator=generator) for key, h in posterior.hess.items()}


@pytest.fixture
def directed(posterior):
    return replace(posterior, directions=Leading.of([gradients(posterior, 6)], 6))


def test_the_folder_gives_them_back_and_says_so(directed, tmp_path):
    directed.save_pretrained(tmp_path / "out")
    again = Posterior.from_pretrained(tmp_path / "out")
    assert again.directions is not None and again.directions.keys == directed.directions.keys
    assert torch.equal(again.directions.vectors, directed.directions.vectors)
    assert torch.equal(again.directions.values, directed.directions.values)
    assert "spans gradients of training examples (6 directions)" in (tmp_path / "out/README.md").read_text()
    assert describe(str(tmp_path / "out"))["leading_directions"] == 6
    assert available_kinds(again) == ["independent", "leading"]
    (tmp_path / "out/directions.safetensors").unlink()
    bare = Posterior.from_pretrained(tmp_path / "out")
    assert bare.directions is None and available_kinds(bare) == ["independent"]
    assert "directions.safetensors" in str(missing(bare, "leading"))


def test_temperature_and_prior_are_those_of_the_posterior(directed, tmp_path):
    """What the directions leave out has precision alpha / T' at another temperature; at first l_k / T, T = N / ess."""
    flat = torch.cat([g.flatten(1) for _, g in sorted(gradients(directed, 6).items())], 1).double()
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    known, identity = vectors[:, -6:], torch.eye(flat.shape[1], dtype=torch.float64)
    ratios = known @ torch.diag(values[-6] / values[-6:]) @ known.T + identity - known @ known.T
    asked = {key: value.unflatten(0, (1, 3)) for key, value in gradients(directed, 3, seed=1).items()}
    jacobian = torch.cat([g.flatten(2) for _, g in sorted(asked.items())], 2).double()
    bayes = under_prior(directed, 7.0)
    cases = {
        float(values[-6]) / 0.02: directed,  # temperature 200 / 1e4
        7.0: directed.with_prior(7.0),
        7.0 / 4: bayes.scaled(2.0),
        90.0: bayes.with_prior(90.0),
    }
    found = output_covariances(list(cases.values()), "leading")(asked)
    for one, precision in zip(found, cases, strict=True):
        want = jacobian @ (ratios / precision) @ jacobian.mT
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-5 * float(want.max()))
    grid = output_covariances([directed.at_temperature(1.0)], "leading", priors=[7.0, 90.0])(asked)
    for one, other in zip(grid, (found[1], found[3]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)
    bayes.save_pretrained(tmp_path / "out")
    again = Posterior.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(output_covariances([again], "leading")(asked)[0], found[1], rtol=1e-9, atol=0)
    assert source_identity(again, "leading") != source_identity(directed, "leading")


def test_priors_or_widths_of_single_tensors_have_no_covariance_of_this_kind(directed):
    own = dict.fromkeys(directed.hess, 1.0)
    assert directed.with_prior(own).directions is not None  # one value for all
    own[next(iter(own))] = 2.0
    assert directed.with_prior(own).directions is None
    uneven = replace(directed, meta=replace(directed.meta, ess=dict.fromkeys(directed.hess, 10.0)))
    with pytest.raises(ConfigError, match="ess differs between tensors; set temperature: 1"):
        output_covariances([uneven], "leading")
    with pytest.raises(ConfigError, match="has no leading directions .* measure them with vlora posterior"):
        output_covariances([replace(directed, directions=None)], "leading")


def test_a_changed_adapter_has_none(directed, tmp_path):
    directed.save_pretrained(tmp_path / "a")
    loaded = Posterior.from_pretrained(tmp_path / "a")
    for pruned in (prune_entries(loaded, fraction=0.3), prune_ranks(loaded, keep_rank=2)):
        assert pruned.removed and pruned.posterior.directions is None
    assert prune_entries(loaded, fraction=0.0).posterior.directions is not None
    assert merge_adapters([loaded, loaded], method="linear").directions is None
    alone = merge_adapters([loaded], method="linear")
    assert alone.directions is not None and torch.equal(
        alone.mean[alone.directions.keys[0]], loaded.mean[alone.directions.keys[0]]
    )


def test_a_file_of_another_adapter_is_refused(directed, tmp_path):
    directed.save_pretrained(tmp_path / "out")
    path = tmp_path / "out/directions.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, key: tensors[key][:, :2].contiguous()}, path)
    with pytest.raises(
        PosteriorFormatError, match=r"belongs to another adapter: .*lora_A.* has shape \(6, 2"
    ):
        Posterior.from_pretrained(tmp_path / "out")
    path.write_bytes(b"cut")
    with pytest.raises(PosteriorFormatError, match="directions.safetensors: truncated or damaged"):
        Posterior.from_pretrained(tmp_path / "out")
    short = {k: v for k, v in directed.hess.items() if "lora_B" in k}
    with pytest.raises(PosteriorFormatError, match="the posterior has 4 stochastic ones"):
        replace(directed, hess=short).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert json.loads((tmp_path / "out/posterior.json").read_text())["format"] == 1
