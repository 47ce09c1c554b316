"""A training run whose prior is learned writes a posterior with one prior precision per tensor."""

import pytest

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.posterior.pruning import prune_ranks
from vlora.training.train import run_training

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_the_posterior_carries_the_learned_priors(make_config, tmp_path):
    config = make_config(
        "causal_lm",
        "optimizer.prior=empirical_bayes",
        "optimizer.ess=1e5",
        "optimizer.prior_update_every=2",
        "optimizer.prior_pull=false",
    )
    posterior = Posterior.from_pretrained(run_training(config))
    decays = posterior.meta.weight_decay
    assert isinstance(decays, dict) and decays.keys() == posterior.hess.keys()
    assert len(set(decays.values())) > len(decays) // 2 and min(decays.values()) > 0
    assert not isinstance(posterior.meta.ess, dict)
    small = prune_ranks(posterior, keep_rank=2).posterior
    small.save_pretrained(tmp_path / "small")
    assert Posterior.from_pretrained(tmp_path / "small").meta.weight_decay == decays
    assert posterior.scaled(2.0).meta.ess == posterior.meta.ess / 4


def test_a_flat_prior_cannot_be_learned(make_config):
    config = make_config(
        "causal_lm", "optimizer.prior=empirical_bayes", "optimizer.ess=1e5", "optimizer.weight_decay=0"
    )
    with pytest.raises(ConfigError, match="starts from a weight_decay above 0"):
        run_training(config)
