"""Zeroing entries: which ones, what draws do, what stays for merging."""

from dataclasses import replace

import pruning_cases as cases
import pytest
import torch

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.posterior.lora_layout import split_keys
from vlora.posterior.pruning import prune_entries
from vlora.posterior.signal import entry_snr


@pytest.fixture
def posterior(tmp_path):
    return cases.make(tmp_path / "in", target_modules=["q_proj"], modules_to_save=["lm_head"])


def lora_keys(posterior):
    return [key for keys in split_keys(posterior.mean)[0].values() for key in (keys.a, keys.b)]


def test_a_fraction_of_every_tensor_goes_lowest_ratio_first(posterior):
    done = prune_entries(posterior, fraction=0.3)
    assert done.removed == 4 * 19  # 30 % of 64, rounded down
    for keys in split_keys(posterior.mean)[0].values():
        for key, ratio in entry_snr(posterior, keys).items():
            gone = done.posterior.mean[key] == 0
            assert gone.sum() == 19
            assert ratio[gone].max() < ratio[~gone].min()
            torch.testing.assert_close(
                done.posterior.mean[key][~gone], posterior.mean[key][~gone], rtol=0, atol=0
            )


def test_a_common_fraction_and_a_threshold_compare_all_tensors(posterior):
    ratios = {
        k: v for keys in split_keys(posterior.mean)[0].values() for k, v in entry_snr(posterior, keys).items()
    }
    limit = torch.cat([v.flatten() for v in ratios.values()]).sort().values[64].item()
    common = prune_entries(posterior, fraction=0.25, scope="adapter")
    below = prune_entries(posterior, snr=limit)
    for key, ratio in ratios.items():
        assert (common.posterior.mean[key] == 0).equal(ratio < limit)
        assert (below.posterior.mean[key] == 0).equal(ratio < limit)
    assert common.modules == below.modules


def test_everything_but_lora_factors_is_untouched(posterior):
    done = prune_entries(posterior, fraction=0.9).posterior
    rest = posterior.mean.keys() - set(lora_keys(posterior))
    assert len(rest) == 1
    for key in rest:
        assert done.mean[key] is posterior.mean[key]
    assert done.adapter_config == posterior.adapter_config


def test_removed_entries_are_zero_in_every_draw_and_keep_their_evidence(posterior, tmp_path):
    done = prune_entries(posterior, fraction=0.5).posterior
    done.save_pretrained(tmp_path / "out")
    read = Posterior.from_pretrained(tmp_path / "out")
    for key in lora_keys(posterior):
        gone = read.mean[key] == 0
        for draw in range(3):
            assert (read.sample(draw)[key][gone] == 0).all()
            torch.testing.assert_close(read.sample(draw)[key][~gone], posterior.sample(draw)[key][~gone])
        assert torch.equal(read.site().precision[key], posterior.site().precision[key])
    wide = read.at_temperature(5.0)
    assert all((wide.sample(0)[key] == 0).equal(read.mean[key] == 0) for key in lora_keys(posterior))


def test_plain_peft_loads_the_zeroed_mean(posterior, tmp_path):
    done = prune_entries(posterior, fraction=0.5).posterior
    mean = {k: v.clone() for k, v in posterior.mean.items()}
    for keys in split_keys(posterior.mean)[0].values():
        for key, ratio in entry_snr(posterior, keys).items():
            mean[key][ratio < ratio.flatten().sort().values[32]] = 0
    expected = cases.logits(replace(posterior, mean=mean), tmp_path / "zeroed")
    assert cases.logits(done, tmp_path / "pruned").equal(expected)


def test_predicted_increase_is_half_h_m_squared(posterior):
    done = prune_entries(posterior, fraction=0.4)
    expected = sum(
        0.5
        * (posterior.hess[key] * (posterior.mean[key] - done.posterior.mean[key]) ** 2).double().sum().item()
        for key in lora_keys(posterior)
    )
    assert done.predicted_loss_increase == pytest.approx(expected, rel=1e-6)
    assert "100 of 256 entries" in done.posterior.meta.notes[-1]


def test_nothing_to_prune_and_pruning_twice(posterior):
    for choice in ({"fraction": 0.0}, {"fraction": 0.001}, {"snr": 0.0}):
        assert prune_entries(posterior, **choice).posterior is posterior
    once = prune_entries(posterior, fraction=0.5).posterior
    twice = prune_entries(once, fraction=0.5)
    assert twice.predicted_loss_increase == 0
    assert all(once.mean[key].equal(twice.posterior.mean[key]) for key in once.mean)


def test_dora_magnitudes_are_left_alone_and_the_factors_pruned(tmp_path):
    posterior = cases.make(tmp_path / "in", use_dora=True)
    done = prune_entries(posterior, fraction=0.5).posterior
    magnitudes = [key for key in posterior.mean if "magnitude" in key]
    assert len(magnitudes) == 4
    assert all(done.mean[key].equal(posterior.mean[key]) for key in magnitudes)
    assert all((done.mean[key] == 0).any() for key in lora_keys(posterior))


def test_bad_input_is_named(posterior):
    with pytest.raises(ConfigError, match="fraction must lie between 0 and 1, got 1.5"):
        prune_entries(posterior, fraction=1.5)
    with pytest.raises(ConfigError, match="snr must be 0 or more, got nan"):
        prune_entries(posterior, snr=float("nan"))
    with pytest.raises(ConfigError, match="exactly one of fraction, snr, got fraction, snr"):
        prune_entries(posterior, fraction=0.5, snr=1.0)
    with pytest.raises(ConfigError, match="no LoRA factor of this adapter has h"):
        prune_entries(replace(posterior, hess={}), fraction=0.5)
