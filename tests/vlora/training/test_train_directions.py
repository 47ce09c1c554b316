"""Leading directions at the end of training."""

import logging
from pathlib import Path

import pytest
import torch

from vlora import Posterior
from vlora.errors import ConfigError, DataError
from vlora.training import directions
from vlora.training.train import run_training

SHORT = {"max_steps": 2, "per_device_train_batch_size": 5}


def refused(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run_training(config)
    assert "\n" not in str(caught.value) and not Path(config.output).exists()


@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_they_are_measured_at_the_mean_on_training_rows(make_config, task, monkeypatch):
    seen = {}

    def recorded(model, batches, *, parameters, **settings):
        seen.update(settings, weights={key: p.detach().clone() for key, p in parameters.items()})
        return measure(model, batches, parameters=parameters, **settings)

    measure = directions.leading_fisher
    monkeypatch.setattr(directions, "leading_fisher", recorded)
    posterior = Posterior.from_pretrained(
        run_training(make_config(task, training=SHORT, directions=6, directions_examples=10))
    )
    found = posterior.directions
    assert found is not None and set(found.keys) == set(posterior.hess)
    assert 1 <= len(found.values) <= 6
    assert all(torch.equal(seen["weights"][key], posterior.mean[key]) for key in posterior.hess)
    assert (seen["num_examples"], seen["max_examples"]) == (posterior.meta.num_examples, 10)


def test_a_failure_after_training_leaves_the_posterior(make_config, monkeypatch, caplog):
    def broken(*args, **settings):
        raise DataError("tokens of a layer cannot be told apart")

    monkeypatch.setattr(directions, "leading_fisher", broken)
    with caplog.at_level(logging.WARNING, logger="vlora"):
        folder = run_training(make_config("causal_lm", training=SHORT, directions=6))
    assert Posterior.from_pretrained(folder).directions is None
    assert "not measured (tokens of a layer cannot be told apart); the posterior is complete" in caplog.text


def test_what_could_not_be_measured_is_refused_before_training(make_config):
    refused(make_config("causal_lm", directions=4, peft={"type": "ia3"}), "directions need .* linear layers")
    for name in ("directions", "directions_examples"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            make_config(**{name: 0})
    with pytest.raises(
        ConfigError, match="optimizer.name ivon trains; for an adapter of adamw, run vlora post"
    ):
        make_config(directions=4, optimizer={"name": "adamw"})
