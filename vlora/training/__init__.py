"""Training: a configuration in, a posterior folder out.

``TrainConfig`` describes a run, ``vlora.training.train.run_training`` does it.
"""

from vlora.training.config import OptimizerConfig, TrainConfig

__all__ = ["OptimizerConfig", "TrainConfig"]
