"""What calibrations and predictions of answers need not compute."""

from dataclasses import replace

from vlora.eval.generation.config import GenerationConfig

__all__ = ["slim"]


def slim(config: GenerationConfig) -> GenerationConfig:
    """The settings without what neither score nor confidence needs: p(True) and the states for EigenScore."""
    rules = config.calibration
    p_true = config.p_true if "p_true" in f"{rules.score} {rules.confidence}" else None
    return replace(config, p_true=p_true, eigenscore=config.eigenscore and rules.score == "eigenscore")
