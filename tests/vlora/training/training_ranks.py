"""What the tests of training on two processes run in each."""

from vlora.config import load_config
from vlora.errors import ConfigError, VloraError
from vlora.training import TrainConfig
from vlora.training.processes import on_first_process
from vlora.training.train import run_training


def train_file(path):
    """Train from a file."""
    try:
        return str(run_training(load_config(TrainConfig, path)))
    except VloraError as error:
        return f"{type(error).__name__}: {error}"


def decided(fails):
    """What every process gets of a decision, or of its failure."""

    def decide():
        if fails:
            raise ConfigError("no such thing")
        decide.calls += 1
        return {"lr": 0.1}

    decide.calls = 0
    try:
        return on_first_process(decide), decide.calls
    except ConfigError as error:
        return str(error), decide.calls
