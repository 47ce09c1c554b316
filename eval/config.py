"""Settings of an evaluation: which models, on which data, with how many draws."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from vlora.data import RowFormat, Source, Task
from vlora.data.config import check_seed
from vlora.errors import ConfigError
from vlora.eval.metrics.posterior_scale import DEFAULT_LADDER
from vlora.eval.metrics.prior_precision import DEFAULT_PRIORS
from vlora.eval.models_config import ModelsConfig
from vlora.posterior.decisions import LINEARISED, Kind

__all__ = ["CalibrationConfig", "EvalConfig", "EvalDataConfig", "GateConfig", "Scoring"]

Scoring = Literal["auto", "batched", "loop"]
"""How draws are run: side by side where possible, side by side or an error, one after another."""


@dataclass(frozen=True, kw_only=True)
class EvalDataConfig(RowFormat):
    """Evaluation data: where the rows are and how to read them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    test: Source
    """Rows to evaluate on, with right answers."""
    validation: Source | None = None
    """Labelled rows apart from the test rows, to fit the baseline's temperature and, by ``vlora calibrate``, the
    posterior's width."""
    ood: dict[str, Source] = field(default_factory=dict)
    """Further sets by name, reported as groups of that name; right answers are optional."""
    reference: Source | None = None
    """Labelled rows of the training data; with them every model also gets the distance of an item's hidden state from
    theirs as a score for foreign inputs. Not for causal_lm."""
    task_file: str | None = None
    """Task whose file says how rows become prompts; set by ``task: NAME``, see ``docs/hallucination.md``."""
    fewshot: Source | None = None
    """Rows with answers for the examples in a task's prompts."""
    label_probs: str | None = None
    """Column with the known distribution of the right answer over the choices, where the data have one."""
    max_rows: int | None = None
    """Take only so many rows of every set, chosen by ``data.seed``."""
    seed: int = 0
    """Seed of the choice of rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed("data.seed", self.seed)
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"data.max_rows must be at least 1, got {self.max_rows}")
        taken = sorted({"all", "test", "validation"} & self.ood.keys())
        if taken:
            raise ConfigError(f"data.ood: {taken[0]!r} is the name of a built-in group; choose another name")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """A second limit for "don't know", fitted on rows with right answers alone."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    score: str
    """What is compared, as ``calibration.score``."""
    quantile: float = 0.95
    """Share of the validation rows that pass; nothing is answered above this quantile of the score."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ConfigError(f"calibration.gate.quantile must lie between 0 and 1, got {self.quantile}")


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What ``vlora calibrate`` fits on the validation rows; ``vlora eval`` does not read it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    ladder: tuple[float, ...] = DEFAULT_LADDER
    """Factors on the standard deviations to try first, rising; each costs ``num_samples`` passes."""
    refine: int = 4
    """Further factors to try around the best one."""
    prior_grid: tuple[float, ...] = DEFAULT_PRIORS
    """Prior precisions to try for the linearised predictive, rising; one forward and K backward passes for all of them.
    Empty: fit none. Not for texts."""
    predictor: Literal["samples", "mean", "linearised", "kronecker", "leading"] = "samples"
    """Whose probabilities ``vlora predict`` gives, and sets and the threshold for "don't know" are fitted to: the draws
    at their fitted width, the mean, or the linearised predictive under its fitted prior, with independent weights, with
    Kronecker factors or with leading directions. A plain adapter has its mean alone."""
    threshold_share: float = 0.5
    """Share of the validation rows that is kept from the width and temperatures to fit prediction sets and the
    threshold for "don't know" on; 0 fits none. Both are then verified on the test and out-of-distribution rows."""
    score: str = "max_probability"
    """Uncertainty that is held against the threshold for "don't know": ``max_probability`` (1 - confidence),
    ``entropy``, ``expected_entropy``, ``mutual_information``, ``logit_variance`` (linearised predictors),
    ``share_left`` (``leading``: the share of the prior variance that the data left, a score for foreign inputs),
    ``variation_ratio`` (draws), and for multiple choice ``entropy_times_base`` and ``mutual_information_times_base``,
    times the entropy of the base model."""
    gate: GateConfig | None = None
    """A second limit, on another score: nothing is answered where the model knows less than about most rows with right
    answers."""
    num_thresholds: int = 100
    """Thresholds to test at most, quantiles of the score on the rows that width and temperatures are fitted on;
    ``max_probability`` has a fixed grid."""
    alpha: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Shares of items whose prediction set may miss the right choice; one set of rules for each."""
    risk: float = 0.05
    """Error rate allowed among the answers that are not "don't know"."""
    delta: float = 0.1
    """Chance, over validation sets, that the fitted threshold breaks ``risk``."""

    def __post_init__(self) -> None:
        rising = list(self.ladder) == sorted(set(self.ladder))
        if len(self.ladder) < 2 or not rising or not self.ladder[0] > 0:
            raise ConfigError(
                f"calibration.ladder must be two or more positive factors in rising order, got {list(self.ladder)}"
            )
        grid = list(self.prior_grid)
        if len(grid) == 1 or grid != sorted(set(grid)) or (grid and not grid[0] > 0):
            raise ConfigError(
                f"calibration.prior_grid must be two or more positive numbers in rising order, or empty, got {grid}"
            )
        if self.predictor in LINEARISED and not grid:
            raise ConfigError(
                f"calibration.predictor: {self.predictor} needs the prior that calibration.prior_grid fits"
            )
        if not 0 <= self.threshold_share < 1:
            raise ConfigError(f"calibration.threshold_share must be in [0, 1), got {self.threshold_share}")
        for name, value in (("risk", self.risk), ("delta", self.delta), *(("alpha", a) for a in self.alpha)):
            if not 0 < value < 1:
                raise ConfigError(f"calibration.{name} must lie between 0 and 1, got {value}")
        if self.refine < 0 or self.num_thresholds < 1:
            raise ConfigError(
                f"calibration.refine must be 0 or more and num_thresholds at least 1, got {self.refine} and "
                f"{self.num_thresholds}"
            )

    @property
    def rule_scores(self) -> dict[str, str]:
        """Setting -> score that a rule for "don't know" compares."""
        gate = {} if self.gate is None else {"calibration.gate.score": self.gate.score}
        return {"calibration.score": self.score, **gate}


@dataclass(frozen=True, kw_only=True)
class EvalConfig(ModelsConfig):
    """Evaluate one or more adapters of one base model: ``vlora eval CONFIG.yaml``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    task: Task
    """``sequence_classification``, ``multiple_choice`` (by the choices' likelihood), ``causal_lm``, or the name of a
    task file such as ``arc_easy``, which is then spelled out."""
    data: EvalDataConfig
    """Test, validation and out-of-distribution rows."""
    scoring: Scoring = "auto"
    """How draws are run: ``batched`` (side by side in one pass), ``loop`` (one after another, every prompt in full), or
    ``auto``: side by side with shared prompts where adapter and model allow it."""
    linearised: bool | Literal["kronecker", "leading"] = False
    """Also the linearised predictive, from one forward and K backward passes an item; for causal_lm the variance of
    every text's log-probability, from one backward pass. ``kronecker``: with weights correlated within a tensor, for
    posteriors that have curvature.safetensors. ``leading``: over all tensors, for posteriors that have
    directions.safetensors."""
    linearised_prior: float | Literal["auto", "stored"] | None = "auto"
    """Posterior of the linearised predictive: ``auto`` (temperature 1 under the prior that calibration fitted; where it
    fitted none, that of the draws), ``stored`` (as fitted), a prior precision, or None, that of the draws. With leading
    directions the number is the precision of what they leave out."""
    store: str | None = None
    """Folder of scores by content, to share between evaluations; None keeps them in the output, in ``scores``."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """Search of ``vlora calibrate``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.reference is not None and self.task == "causal_lm":
            raise ConfigError(
                "data.reference gives a score of classes and choices, not of texts; leave it out"
            )
        prior = self.linearised_prior
        if isinstance(prior, (int, float)) and not prior > 0:
            raise ConfigError(f"linearised_prior must be above 0, got {prior}")

    @property
    def linearised_kind(self) -> Kind:
        """Covariance of the weights in the linearised predictive."""
        return self.linearised if isinstance(self.linearised, str) else "independent"
