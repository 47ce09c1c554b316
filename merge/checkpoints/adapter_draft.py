"""Draft of a merge of adapters into their base model."""

from vlora.errors import ConfigError
from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.checkpoints.draft import Draft

__all__ = ["draft_adapters"]


def draft_adapters(config: ModelMergeConfig) -> Draft:
    raise ConfigError("soon")
