"""What a run of ``vlora posterior`` is: an adapter, the data it was trained on, and how wide to make it."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from vlora.data.config import DataConfig, Task, check_counts, check_seed
from vlora.errors import ConfigError

__all__ = ["Fisher", "PosteriorConfig", "PriorScope"]

Fisher = Literal["expected", "sampled", "empirical"]
PriorScope = Literal["matrix", "scalar"]
_COUNTS = (
    "max_examples",
    "curvature_examples",
    "directions",
    "directions_examples",
    "num_samples",
    "batch_size",
)


@dataclass(frozen=True, kw_only=True)
class PosteriorConfig:
    """One post-hoc posterior."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    adapter: str
    """Folder or hub id of a trained LoRA adapter, of PEFT or of vlora; its weights become the mean as they are."""
    task: Task
    """As in ``vlora train``."""
    data: DataConfig
    """Rows the adapter was trained on, and validation rows for ``prior_precision: held_out``."""
    output: str
    """Folder of the posterior."""
    base_model: str | None = None
    """Hub id or folder; None takes what the adapter names."""
    fisher: Fisher | None = None
    """Squared gradients under every class (``expected``), under one label drawn from the model (``sampled``), or under
    the labels of the data (``empirical``). None: expected for up to 8 classes, else sampled."""
    max_examples: int | None = 2048
    """At most so many rows for the squared gradients; N counts all rows."""
    loss_reduction: Literal["mean", "token_mean"] = "mean"
    """``mean``: an example is a row, a text's loss the sum over its tokens, and temperature 1 is Bayes' rule.
    ``token_mean``: h on the scale of ``vlora train``, which averages over tokens."""
    temperature: float = 1.0
    """N / ess; the likelihood enters to the power 1 / temperature."""
    prior_precision: float | Literal["marginal_likelihood", "held_out"] = "marginal_likelihood"
    """A number, the maximum of the evidence, or the best NLL of posterior draws on the validation rows."""
    prior_scope: PriorScope = "matrix"
    """One prior precision per tensor, or one for all; a number is always one for all."""
    prior_grid: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    """held_out: factors on the precision of highest evidence that are tried."""
    num_samples: int = 8
    """held_out: posterior draws, in antithetic pairs, for each factor."""
    deterministic: list[str] = field(default_factory=list)
    """Tensors whose key contains one of these strings keep no variance, e.g. ``lora_A`` where A was frozen."""
    health_examples: int = 64
    """Validation rows whose squared gradients h is compared with; 0: none."""
    curvature: bool = False
    """Gather Kronecker factors for merging as well."""
    curvature_examples: int | None = 2048
    """At most so many rows for that pass."""
    curvature_votes: Literal["auto", "change", "equal"] = "auto"
    """What a row counts: ``auto``, ``change`` (as much as the adapter changed about it) or ``equal``."""
    curvature_joined: bool = True
    """Add the gradients of a row's tokens up before they are squared; false takes tokens as independent."""
    directions: int | None = None
    """Measure so many leading directions of the Fisher matrix over all tensors as well, with the
    labels of ``fisher``, for ``linearised: leading``; the file is so many times the adapter, and measuring takes three
    times that in memory."""
    directions_examples: int | None = 2048
    """At most so many rows for that pass."""
    batch_size: int = 16
    """Rows in one pass."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """As in ``vlora train``."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """As in ``vlora train``."""
    seed: int = 0
    """Seed of the order of rows, of drawn labels and of the posterior's numbered draws."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    trust_remote_code: bool = False
    """Let code from the model's repository run."""
    overwrite: bool = False
    """Replace a former result in ``output``."""

    def __post_init__(self) -> None:
        if not self.output or not self.adapter:
            raise ConfigError("adapter and output must name folders")
        check_seed("seed", self.seed)
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}")
        if not isinstance(self.prior_precision, str) and not self.prior_precision > 0:
            raise ConfigError(f"prior_precision must be > 0, got {self.prior_precision}")
        if not self.prior_grid or min(self.prior_grid) <= 0:
            raise ConfigError(f"prior_grid must hold numbers > 0, got {self.prior_grid}")
        check_counts(self, _COUNTS)
        if self.health_examples < 0:
            raise ConfigError(f"health_examples must be 0 (off) or more, got {self.health_examples}")
        if self.prior_precision == "held_out" and self.data.validation is None:
            raise ConfigError("prior_precision: held_out needs data.validation, rows kept out of training")
        if self.fisher == "expected" and self.task != "sequence_classification":
            raise ConfigError("fisher: expected sums over all classes, which texts do not have; use sampled")
