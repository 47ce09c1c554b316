"""What a training run is: the configuration of ``vlora train``."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from vlora.data.config import DataConfig, Task, check_counts, check_seed
from vlora.errors import ConfigError

__all__ = ["OptimizerConfig", "TrainConfig"]

_ABOVE_ZERO = (
    "lr",
    "ess",
    "init_std",
    "hess_init",
    "clip_radius",
    "max_std",
    "max_std_ratio",
    "noise_cost",
    "max_step",
    "grad_batch_size",
    "eps",
    "min_8bit_size",
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer. None means: derived from the number of examples and steps (ivon), or its usual value.

    ``name: adamw`` reads ``lr``, ``beta1``, ``beta2``, ``weight_decay`` and ``eps`` and ignores the rest, so one
    file serves both optimizers.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Literal["ivon", "adamw"] = "ivon"
    """``ivon`` learns a posterior; ``adamw`` is the baseline and learns a point."""
    lr: float | None = None
    """Peak learning rate, on AdamW's scale unless ``hess_approx: price``; None: by width and steps (``default_lr``)."""
    ess: float | None = None
    """IVON: effective sample size, in examples, fixed; larger is a narrower posterior. None: see ``noise_cost``."""
    noise_cost: float | None = None
    """IVON: nats by which the loss of a draw may exceed that of the mean; sets ``ess`` during the run (0.01)."""
    init_std: float | None = None
    """IVON: standard deviation of the first draws, in parameter units (0.001)."""
    hess_init: float | None = None
    """IVON: start of h."""
    max_std: float | None = None
    """IVON: largest typical standard deviation that ``noise_cost`` may lead to (0.1)."""
    max_std_ratio: float | None = None
    """IVON: widest standard deviation of an entry in units of the typical one, where ``weight_decay`` is derived."""
    max_step: float | None = None
    """IVON with price: largest move of one entry in one step, where ``clip_radius`` is derived."""
    beta1: float | None = None
    """Decay of the gradient average."""
    beta2: float | None = None
    """Decay of the average of h (IVON) or of squared gradients (AdamW)."""
    weight_decay: float | None = None
    """IVON: prior precision / ess. AdamW: decoupled weight decay (0 if None)."""
    clip_radius: float | None = None
    """IVON: largest preconditioned step of an entry."""
    max_grad_norm: float | None = None
    """IVON with gradsq: largest norm of the gradient where it enters the mean; 0 for none. None: that of
    ``training.max_grad_norm``, 1 by default, which is the one of AdamW and of IVON with price."""
    hess_approx: Literal["price", "gradsq"] | None = None
    """IVON: estimate h by reparameterisation or by squared gradients."""
    grad_batch_size: float | None = None
    """IVON with gradsq: examples averaged in one gradient."""
    rescale_lr: bool | None = None
    """IVON: multiply ``lr`` by ``hess_init + weight_decay``."""
    debias: bool | None = None
    """IVON: correct the gradient average for its start at zero."""
    state_bits: Literal[8, 32] = 32
    """IVON: 8 keeps the gradient average and h in 8 bits, about 6 instead of 12 bytes of state per parameter."""
    min_8bit_size: int = 4096
    """IVON with 8-bit state: tensors with fewer entries keep float32 state."""
    stochastic_rounding: bool = False
    """IVON with a bfloat16 adapter: round draws at random, so that the format does not swallow narrow noise."""
    prior: Literal["fixed", "empirical_bayes"] = "fixed"
    """IVON: keep ``weight_decay``, or learn one per tensor from its posterior, starting there."""
    prior_update_every: int = 10
    """IVON with a learned prior: steps between two updates of it."""
    prior_pull: bool = True
    """IVON: false leaves the pull of the mean towards zero out of the update."""
    eps: float | None = None
    """AdamW: added to the denominator."""

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"optimizer.{name} must be > 0, got {value}")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"optimizer.{name} must be in [0, 1), got {value}")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ConfigError(f"optimizer.weight_decay must be >= 0, got {self.weight_decay}")
        if self.hess_approx == "price" and self.init_std is not None and self.hess_init is not None:
            raise ConfigError("optimizer: give init_std or hess_init, not both; one fixes the other")
        if self.noise_cost is not None and (self.ess is not None or self.weight_decay is not None):
            raise ConfigError(
                "optimizer: noise_cost sets ess and weight_decay during the run; give one or the others"
            )
        if self.noise_cost is not None and self.prior != "fixed":
            raise ConfigError(
                "optimizer: noise_cost sets the prior, prior empirical_bayes learns it; choose one"
            )
        if self.hess_approx == "price" and self.noise_cost is not None:
            raise ConfigError("optimizer: noise_cost needs hess_approx gradsq")
        if self.prior == "empirical_bayes" and self.ess is None and self.hess_approx != "price":
            raise ConfigError("optimizer: prior empirical_bayes needs a fixed ess; give optimizer.ess")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run: base model, task, data, adapter, optimizer, output."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    base_model: str
    """Hub id or folder of the frozen model."""
    task: Task
    """``sequence_classification``, ``causal_lm`` or ``multiple_choice`` (learns the right choice as response)."""
    data: DataConfig
    """What to learn from."""
    output: str
    """Folder of the posterior; ``<output>.work`` holds checkpoints while the run lasts."""
    peft: dict[str, Any] = field(default_factory=lambda: {"type": "lora"})
    """``type`` and the arguments of that PEFT configuration class; what is left out has PEFT's default."""
    start: str | None = None
    """Adapter or posterior, folder or hub id, that training goes on from instead of a random start; its weights, rank,
    scaling and targets are kept, so what ``peft`` says must agree. Recorded as ``ancestor`` in ``posterior.json``, for
    merges of one lineage. The optimizer starts afresh, and its prior stays the one of mean zero."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and its settings."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Base weights in LLM.int8 or NF4 by bitsandbytes."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the base weights that are not quantised."""
    adapter_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the adapter while it trains; a new head is always float32. IVON's mean and h are float32 in any case."""
    training: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``transformers.TrainingArguments`` that vlora does not own, such as ``num_train_epochs``."""
    seed: int = 0
    """Seed of the adapter's start, the order of the data, dropout and the noise."""
    revision: str | None = None
    """Revision of the base model on the hub."""
    trust_remote_code: bool = False
    """Let code from the model's repository run."""
    curvature: bool = False
    """Gather Kronecker factors for merging."""
    curvature_source: Literal["pass", "training"] = "pass"
    """In one more pass over the training data afterwards, or from every training step, which costs little beside the
    step itself; a resumed run then has the steps since the resumption."""
    curvature_examples: int | None = 2048
    """At most so many examples for the pass."""
    curvature_votes: Literal["auto", "change", "equal"] = "auto"
    """What an example counts: ``auto``, ``change`` (as much as the adapter changed about it) or ``equal``."""
    curvature_joined: bool = True
    """Add the gradients of an example's tokens up before they are squared; false takes tokens as independent."""
    curvature_rank: int | None = None
    """Leading directions that are kept of every factor, the rest as one isotropic value; None keeps all, which is large
    for wide layers."""
    directions: int | None = None
    """After IVON, measure so many leading directions of the Fisher matrix over all tensors, on training rows with
    labels drawn from the model, for ``linearised: leading``; the file is so many times the adapter, and measuring takes
    three times that in memory."""
    directions_examples: int | None = 2048
    """At most so many examples for that pass."""
    health_examples: int = 64
    """After IVON, rows (of validation if there is one) whose squared gradients h is compared with, but no more than
    2 % of the rows trained on, or 32; 0: none."""
    overwrite: bool = False
    """Replace a former result in ``output``, and the checkpoints of another configuration."""
    resume: Literal["auto", "never"] = "auto"
    """Go on from the last checkpoint of the same configuration and data, or start again."""

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output must name a folder")
        check_seed("seed", self.seed)
        check_counts(self, ("curvature_examples", "curvature_rank", "directions", "directions_examples"))
        if self.directions is not None and self.optimizer.name != "ivon":
            raise ConfigError(
                "directions belong to a posterior, which optimizer.name ivon trains; for an adapter of adamw, run "
                "vlora posterior with directions afterwards"
            )
        if self.health_examples < 0:
            raise ConfigError(f"health_examples must be 0 (off) or more, got {self.health_examples}")
