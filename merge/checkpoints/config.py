"""Configuration of merges that write a whole model: ``models:`` into a model, or ``adapters:`` with ``into: model``."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from vlora.errors import ConfigError
from vlora.merge.checkpoints.gram_files import NEEDS_GRAMS
from vlora.merge.checkpoints.layout import parse_size
from vlora.merge.config import AdapterSource, MethodOptions
from vlora.merge.methods import get_method
from vlora.merge.options import check_rank

__all__ = ["MODEL_METHODS", "ModelMergeConfig", "ModelSource"]

MODEL_METHODS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "slerp": (),
    "task_arithmetic": ("scale",),
    "ties": ("density", "scale", "normalise"),
    "dare_linear": ("density", "scale", "seed"),
    "dare_ties": ("density", "scale", "normalise", "seed"),
    "della": ("density", "epsilon", "scale", "normalise", "seed"),
    "fisher": ("normalise",),
    "tsv": ("scale", "task_rank"),
    "iso_c": ("scale",),
    "regmean": ("shrink",),
    "mats": ("tau", "scale", "damping", "steps"),
    "gradient_matching": ("tau", "keep", "keep_weight", "scale", "curvature", "negative"),
}
"""Methods for whole checkpoints -> their options."""

NEEDS_BASE = (
    "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "tsv", "iso_c", "mats", "gradient_matching",
)  # fmt: skip
"""Methods on differences to a base model."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One model that goes into a merge."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """Model folder with safetensors weights, or a hub id."""
    weight: float = 1.0
    """How much it counts; ``linear``, ``slerp``, ``fisher`` and sign election use ratios of weights."""
    module_weights: dict[str, float | list[float]] = field(default_factory=dict)
    """Regular expression -> weight for the tensors whose name it matches anywhere, instead of ``weight``; the first
    that matches counts. A list is a gradient over the layers. 0 leaves the model out there."""
    name: str | None = None
    """Short name for messages; the last part of the path if not given."""
    revision: str | None = None
    """Revision of a hub id."""
    fisher: str | None = None
    """``fisher``: folder or file with the diagonal Fisher information, tensors named as in the model."""
    curvature: str | None = None
    """``gradient_matching``, ``mats``, ``regmean``: file with the Grams of the model's linear layers, or a folder that
    has one (``vlora curvature`` makes it); ``curvature.safetensors`` beside the weights if not given."""


@dataclass(frozen=True, kw_only=True)
class ModelMergeConfig(MethodOptions):
    """Models or adapters in, one model folder out, in bounded memory."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: str | None = None
    """For models one of :data:`MODEL_METHODS`, ``linear`` if not given; for adapters any of
    :data:`vlora.merge.METHODS`, ``gradient_matching`` if not given."""
    models: tuple[ModelSource, ...] = ()
    """Models of one architecture; instead of ``adapters``."""
    adapters: tuple[AdapterSource, ...] = ()
    """LoRA adapters to merge into ``base_model``; instead of ``models``."""
    into: Literal["model"] = "model"
    """What comes out."""
    output: str
    """Folder to write; a former merge there is replaced only with ``overwrite``."""
    base_model: str | None = None
    """Model that the adapters belong to, or that methods on differences (:data:`NEEDS_BASE`) take them to."""
    base_revision: str | None = None
    """Revision of a hub id in ``base_model``."""
    rank: Literal["auto", "keep", "lossless"] | int | float | None = None
    """Several adapters: rank of the update that is added to the base; ``auto`` if not given: ``lossless`` where the
    method can, else the inputs' largest. ``iso_c`` of models: leading directions of the sum that are kept, by number or
    share of energy; all of them if not given."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of all floating-point tensors; those of the base (or first model) if not given. Arithmetic is in float32."""
    max_shard_size: str | int = "5GB"
    """Largest output file, as in transformers."""
    threads: int | None = None
    """Tensors in work at once; the number of cores, at most 4, if not given. Does not change the result."""
    block_megabytes: float = 4.0
    """MiB of each input that a thread reads at once. Does not change the result."""
    tokenizer: str | None = None
    """Not given: the common tokenizer, refused if they differ. ``base`` (or the first model's), ``union``, or a
    folder."""
    allow_config_differences: tuple[str, ...] = ()
    """Keys of ``config.json`` that change what the weights compute (heads, norms, positions) and may differ between
    ``models`` all the same; the base's, or the first model's, are kept."""
    verify: bool = True
    """Whether golden identities (:mod:`vlora.merge.checkpoints.verify`) are checked on a few tensors of the output
    before it has its final name."""
    hash_inputs: bool = False
    """Whether ``merge.json`` names the SHA-256 of every weight file of the models; reads them once more. Fingerprints
    are always there."""
    overwrite: bool = False
    """Whether a former merge at ``output`` may be replaced."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before any file is read."""
        if bool(self.models) == bool(self.adapters):
            raise ConfigError("give either models: or adapters: with at least one entry, not both")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if not 0 < self.block_megabytes <= 1024:
            raise ConfigError(f"block_megabytes must lie in (0, 1024], got {self.block_megabytes}")
        parse_size(self.max_shard_size)
        if self.rank is not None:
            check_rank(self.rank)
        (self._check_models if self.models else self._check_adapters)()

    @property
    def chosen_method(self) -> str:
        """The method, with the default filled in."""
        return self.method or ("linear" if self.models else "gradient_matching")

    def _check_adapters(self) -> None:
        self.check_options(self.chosen_method, get_method(self.chosen_method).options)
        if self.base_model is None:
            raise ConfigError("into: model needs base_model, the model that the adapters were trained on")

    def _check_models(self) -> None:
        method = self.chosen_method
        get_method(method)
        self.check_options(method, MODEL_METHODS[method])
        if self.curvature in ("sites", "separable"):
            raise ConfigError(
                f"curvature: {self.curvature} needs the h of adapters; for whole models auto, kronecker or isotropic"
            )
        if method not in NEEDS_GRAMS and any(model.curvature for model in self.models):
            raise ConfigError(
                f"method {method} takes no curvature of models, only {', '.join(NEEDS_GRAMS)} do"
            )
        if method in NEEDS_BASE and self.base_model is None:
            raise ConfigError(f"method {method} works on differences: name the common base in base_model")
        if method == "fisher" and any(model.fisher is None for model in self.models):
            raise ConfigError(
                "method fisher needs fisher: (a file of diagonal Fisher information) for every model"
            )
        if method == "slerp" and len(self.models) != 2:
            raise ConfigError(
                f"slerp interpolates between two models, got {len(self.models)}; merge two at a time"
            )
        if self.rank not in (None, "auto") and (method != "iso_c" or self.rank == "keep"):
            raise ConfigError("rank is for adapters, and for iso_c a number, a share or lossless; remove it")
