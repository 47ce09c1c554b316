"""What `vlora train` finds out about the posterior it has just learnt."""

import logging

import pytest

from vlora import Posterior
from vlora.errors import ConfigError
from vlora.training.train import run_training


def classifier(make_config, *overrides, **keys):
    training = {"max_steps": 60, "per_device_train_batch_size": 8}
    return make_config("sequence_classification", *overrides, training=training, **keys)


def test_h_ranks_like_the_squared_gradients_of_validation_rows(make_config, write_rows):
    rows = [{"text": f"{w} book {n}", "label": int(w == "good")} for n in range(20) for w in ("good", "bad")]
    config = classifier(make_config)
    data = {"train": config.data.train, "validation": write_rows(rows, "dev.jsonl")}
    folder = run_training(classifier(make_config, "optimizer.lr=1e-3", data=data))
    health = Posterior.from_pretrained(folder).meta.health
    assert health["reference_examples"] == 32 and health["reference_held_out"] is True
    assert 0.6 < health["rank_correlation"] <= 1
    assert 0.2 < health["rank_correlation_within"] <= 1
    assert 0.05 < health["hess_to_reference"] < 20
    assert health["share_below_spacing"] == 0
    assert 0 <= health["share_below_spacing_bfloat16"] < 1
    assert "squared gradients of 32 held-out examples" in (folder / "README.md").read_text()


def test_an_h_that_cannot_know_the_data_does_not_rank_like_them(make_config):
    config = classifier(
        make_config, "optimizer.beta2=0.9999999", "optimizer.hess_approx=price", "optimizer.ess=1e6"
    )
    posterior = Posterior.from_pretrained(run_training(config))
    health = posterior.meta.health
    assert health["reference_examples"] == 24 and health["reference_held_out"] is False  # the training rows
    assert health["rank_correlation"] is None or health["rank_correlation"] < 0.5
    assert "still its prior" in posterior.summary()["verdict"]


def test_the_check_can_be_limited_or_left_out(make_config, tmp_path):
    few = run_training(make_config("causal_lm", "health_examples=5", output=str(tmp_path / "few")))
    assert Posterior.from_pretrained(few).meta.health["reference_examples"] == 5
    none = run_training(make_config("causal_lm", "health_examples=0", output=str(tmp_path / "none")))
    assert "rank_correlation" not in Posterior.from_pretrained(none).meta.health
    left, right = (Posterior.from_pretrained(folder) for folder in (few, none))
    assert left.meta.hess_sha256 == right.meta.hess_sha256 and left.meta.mean_sha256 == right.meta.mean_sha256
    with pytest.raises(ConfigError, match="health_examples must be 0"):
        make_config("causal_lm", "health_examples=-1")


def test_a_failed_check_does_not_cost_the_posterior(make_config, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("vlora.fisher.health.squared_gradients", fail)
    with caplog.at_level(logging.WARNING, logger="vlora"):
        folder = run_training(make_config("causal_lm"))
    assert "not compared with squared gradients (out of memory)" in caplog.text
    assert "share_below_spacing" in Posterior.from_pretrained(folder).meta.health
