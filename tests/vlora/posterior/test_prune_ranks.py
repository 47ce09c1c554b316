"""Dropping rank components: the adapter that is left is the one with those components set to zero."""

import math
from dataclasses import replace

import pruning_cases as cases
import pytest
import torch

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.posterior.lora_layout import module_scaling, split_keys
from vlora.posterior.pruning import prune_ranks
from vlora.posterior.signal import component_snr


def zeroed(posterior: Posterior, pruned: Posterior) -> Posterior:
    """The input with the columns of B that pruning dropped set to zero."""
    mean = dict(posterior.mean)
    for keys in split_keys(posterior.mean)[0].values():
        rows = posterior.mean[keys.a], pruned.mean[keys.a]
        gone = [i for i, row in enumerate(rows[0]) if not any(torch.equal(row, other) for other in rows[1])]
        mean[keys.b] = mean[keys.b].index_fill(1, torch.tensor(gone, dtype=torch.long), 0.0)
    return replace(posterior, mean=mean)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("choice", [{"keep_rank": 2}, {"fraction": 0.4}], ids=str)
def test_plain_peft_computes_what_the_zeroed_components_give(tmp_path, layout, choice):
    posterior = cases.make(tmp_path / "in", **cases.LAYOUTS[layout])
    done = prune_ranks(posterior, **choice)
    assert 0 < done.removed < done.total
    modules = split_keys(posterior.mean)[0]
    for name, keys in modules.items():
        scale = module_scaling(done.posterior.adapter_config, name)
        assert scale == pytest.approx(module_scaling(posterior.adapter_config, name), rel=1e-15)
        assert done.posterior.hess[keys.a].shape == done.posterior.mean[keys.a].shape
    before = cases.logits(zeroed(posterior, done.posterior), tmp_path / "zeroed")
    after = cases.logits(done.posterior, tmp_path / "pruned")
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    assert (cases.logits(posterior, tmp_path / "all") - before).abs().max() > 1e-3


def test_the_components_with_the_lowest_ratio_go_and_the_others_are_untouched(tmp_path):
    posterior = cases.make(tmp_path / "in")
    done = prune_ranks(posterior, keep_rank=3)
    for row, (name, keys) in zip(done.modules, split_keys(posterior.mean)[0].items(), strict=True):
        snr = component_snr(posterior, keys)
        kept = [i for i in range(4) if i != int(snr.argmin())]
        assert (row.module, row.total, row.removed) == (name, 4, 1)
        assert row.largest_removed_snr == snr.min()
        assert row.smallest_kept_snr == snr[kept].min()
        for tensors in ("mean", "hess"):
            before, after = getattr(posterior, tensors), getattr(done.posterior, tensors)
            torch.testing.assert_close(after[keys.a], before[keys.a][kept], rtol=0, atol=0)
            torch.testing.assert_close(after[keys.b], before[keys.b][:, kept], rtol=0, atol=0)
    assert done.posterior.adapter_config["r"] == 3
    assert done.posterior.adapter_config["lora_alpha"] == 6
    assert not done.posterior.adapter_config["rank_pattern"]


def test_a_threshold_and_a_common_fraction_leave_ranks_that_differ(tmp_path):
    posterior = cases.make(tmp_path / "in")
    modules = split_keys(posterior.mean)[0]
    ratios = torch.stack([component_snr(posterior, keys) for keys in modules.values()])
    limit = ratios.flatten().sort().values[6].item()
    by_snr, by_share = prune_ranks(posterior, snr=limit), prune_ranks(posterior, fraction=6 / 16)
    assert by_snr.modules == by_share.modules
    assert [row.removed for row in by_snr.modules] == (ratios < limit).sum(1).clamp_max(3).tolist()
    config = by_snr.posterior.adapter_config
    assert config["rank_pattern"] and config["alpha_pattern"]


def test_every_module_keeps_its_best_component(tmp_path):
    posterior = cases.make(tmp_path / "in")
    for done in (prune_ranks(posterior, snr=1e9), prune_ranks(posterior, fraction=1, scope="module")):
        assert done.removed == 3 * 4
        for keys in split_keys(posterior.mean)[0].values():
            best = int(component_snr(posterior, keys).argmax())
            torch.testing.assert_close(done.posterior.mean[keys.a], posterior.mean[keys.a][[best]])


@pytest.mark.parametrize(
    "choice", [{"keep_rank": 4}, {"keep_rank": 99}, {"fraction": 0}, {"snr": 0.0}], ids=str
)
@pytest.mark.parametrize("layout", ["plain", "rslora with patterns"])
def test_pruning_nothing_gives_the_input_back(tmp_path, choice, layout):
    posterior = cases.make(tmp_path / "in", **cases.LAYOUTS[layout])
    if "keep_rank" in choice and "rslora" in layout:
        choice = {"keep_rank": 6}
    done = prune_ranks(posterior, **choice)
    assert done.posterior is posterior
    assert done.removed == done.predicted_loss_increase == 0


@pytest.mark.parametrize(("r", "alpha"), [(r, alpha) for r in (3, 7, 12) for alpha in (5, 16, 0.3)])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_scaling_is_kept_to_the_last_bit_of_float32(tmp_path, r, alpha, rslora):
    posterior = cases.make(tmp_path / "in", r=r, lora_alpha=alpha, use_rslora=rslora)
    before = alpha / math.sqrt(r) if rslora else alpha / r
    for keep in range(1, r):
        config = prune_ranks(posterior, keep_rank=keep).posterior.adapter_config
        after = module_scaling(config, "model.layers.0.self_attn.q_proj")
        assert torch.tensor(after).equal(torch.tensor(before))
        assert after == pytest.approx(before, rel=1e-12)


def test_predicted_increase_is_exact_where_the_curvature_is_diagonal(tmp_path):
    """Loss 1/2 |dW - dW_0|^2 with orthogonal rows of A and columns of B: removing k costs 1/2 |b_k|^2 |a_k|^2."""
    posterior = cases.make(tmp_path / "in", lora_alpha=4)
    mean, hess = dict(posterior.mean), dict(posterior.hess)
    generator = torch.Generator().manual_seed(5)
    for keys in split_keys(mean)[0].values():
        sizes = torch.rand(4, generator=generator) + 0.5
        mean[keys.a] = torch.linalg.qr(mean[keys.a].T).Q.T * sizes[:, None]
        mean[keys.b] = torch.linalg.qr(mean[keys.b]).Q * sizes.flip(0)
        hess[keys.a] = mean[keys.b].square().sum(0)[:, None].expand_as(mean[keys.a])
        hess[keys.b] = mean[keys.a].square().sum(1).expand_as(mean[keys.b])
    posterior = replace(posterior, mean=mean, hess=hess)
    done = prune_ranks(posterior, keep_rank=2)
    for row, keys in zip(done.modules, split_keys(mean)[0].values(), strict=True):
        change = mean[keys.b] @ mean[keys.a] - done.posterior.mean[keys.b] @ done.posterior.mean[keys.a]
        assert row.predicted_loss_increase == pytest.approx(0.5 * change.square().sum().item(), rel=1e-5)


def test_lineage_gauge_and_calibration_follow(tmp_path):
    posterior = replace(cases.make(tmp_path / "in"), calibration={"format": 1})
    done = prune_ranks(posterior, keep_rank=2).posterior
    done.save_pretrained(tmp_path / "out")
    read = Posterior.from_pretrained(tmp_path / "out")
    assert read.meta.gauge is None and read.calibration is None
    assert read.meta.sources[0]["operation"] == "prune ranks"
    assert len(read.meta.sources[0]["mean_sha256"]) == 64
    assert "8 of 16 rank components" in read.meta.notes[-1]
    assert "prune ranks" in (tmp_path / "out/README.md").read_text()
    again = prune_ranks(read, keep_rank=1).posterior
    assert len(again.meta.notes) == 2
    assert again.meta.sources[0]["sources"] == read.meta.sources


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"use_dora": True}, "use_dora: DoRA rescales the whole weight"),
        ({"init_lora_weights": "olora"}, "initialised with olora"),
    ],
)
def test_adapters_that_are_no_sum_of_components_are_refused(tmp_path, lora, match):
    posterior = cases.make(tmp_path / "in", **lora)
    with pytest.raises(ConfigError, match=match):
        prune_ranks(posterior, keep_rank=2)


def test_bad_input_is_named(tmp_path):
    posterior = cases.make(tmp_path / "in")
    with pytest.raises(ConfigError, match="exactly one of keep_rank, fraction, snr, got none"):
        prune_ranks(posterior)
    with pytest.raises(ConfigError, match="exactly one of .* got keep_rank, snr"):
        prune_ranks(posterior, keep_rank=2, snr=1.0)
    with pytest.raises(ConfigError, match="keep_rank must be at least 1, got 0"):
        prune_ranks(posterior, keep_rank=0)
    with pytest.raises(ConfigError, match="no LoRA factor of this adapter has h"):
        prune_ranks(replace(posterior, hess={}), keep_rank=2)
    with pytest.raises(ConfigError, match="IA3 adapter; only LORA"):
        prune_ranks(replace(posterior, adapter_config={"peft_type": "IA3"}), keep_rank=2)
    wrong = {**posterior.adapter_config, "r": 5}
    with pytest.raises(
        ConfigError, match=r"factors \(16, 4\) and \(4, 16\), but adapter_config.json says r=5"
    ):
        prune_ranks(replace(posterior, adapter_config=wrong), keep_rank=2)
    conv = {k: v[..., None, None] if "q_proj" in k else v for k, v in posterior.mean.items()}
    with pytest.raises(ConfigError, match="convolution with 4-dimensional factors"):
        prune_ranks(replace(posterior, mean=conv), keep_rank=2)
