"""Configuration of ``vlora merge``."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from vlora.errors import ConfigError
from vlora.merge.methods import get_method
from vlora.merge.options import (
    OPTIONS,
    check_ancestor_options,
    check_keep_options,
    check_module_options,
    check_option,
    check_rank,
    keep_counts,
)

__all__ = [
    "AdapterSource",
    "MergeConfig",
    "MethodOptions",
    "check_apart",
    "distinct",
    "group_module_weights",
    "group_weights",
]


def distinct(names: Sequence[str]) -> list[str]:
    """Names with a number appended where two are the same."""
    return [f"{name} #{i + 1}" if list(names).count(name) > 1 else name for i, name in enumerate(names)]


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """One adapter that goes into a merge."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """Posterior or PEFT adapter folder, or a hub id."""
    weight: float = 1.0
    """How much it counts; negative takes it away. Means (``linear``, ``slerp``, ``fisher``, ``regmean``, sign election)
    use ratios of weights, the other methods use them as given."""
    module_weights: dict[str, float | list[float]] = field(default_factory=dict)
    """Regular expression -> weight in the modules whose name it matches anywhere, instead of ``weight``; the first
    that matches counts. A list is a gradient from the first layer to the last (:mod:`vlora.merge.layers`). 0 leaves the
    adapter out there. A pattern that matches nothing is refused."""
    name: str | None = None
    """Short name for messages and the report; the last part of the path if not given."""
    revision: str | None = None
    """Revision of a hub id."""
    group: str | None = None
    """Task of the adapter, where several adapters (seeds) of one task go in: each member counts ``weight``, and every
    weight of ``module_weights``, divided by the number of members, so that seeds with equal settings are their mean;
    ``vlora merge preview`` gives one weight to the group."""


def check_apart(output: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that is, or holds, one of the inputs, since writing would replace them, or that lies inside one.

    Args:
        output: The folder to write.
        inputs: Folders or hub ids.

    Raises:
        ConfigError: Which input.
    """
    target = output.resolve()
    for given in filter(None, inputs):
        place = Path(given).expanduser().resolve()
        if place.exists() and (place == target or target in place.parents):
            raise ConfigError(f"output {output} is or holds the input {given}; choose another folder")
        if place.is_dir() and place in target.parents:
            raise ConfigError(f"output {output} lies inside the input {given}; choose a folder beside it")


def group_weights(sources: Sequence[AdapterSource]) -> list[float]:
    """Weight of each adapter; members of a group share theirs."""
    groups = [source.group for source in sources]
    return [s.weight / groups.count(s.group) if s.group else s.weight for s in sources]


def group_module_weights(sources: Sequence[AdapterSource]) -> list[dict[str, float | list[float]]]:
    """``module_weights`` of each adapter; members of a group share them as they share ``weight``."""
    groups = [source.group for source in sources]
    shares = [groups.count(s.group) if s.group else 1 for s in sources]
    return [
        {pattern: _divided(weight, share) for pattern, weight in s.module_weights.items()}
        for s, share in zip(sources, shares, strict=True)
    ]


def _divided(weight: float | list[float], share: int) -> float | list[float]:
    return [value / share for value in weight] if isinstance(weight, list) else weight / share


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Keys of the methods, the same for every kind of merge; None is the method's own default."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    tau: float | None = None
    """``gradient_matching``, ``mats``: prior precision relative to an adapter's mean curvature; .3 if not given."""
    prior: str | None = None
    """``gradient_matching`` of adapters: safetensors file, or curvature or posterior folder, with the prior's precision
    per module (:mod:`vlora.merge.adapters.prior`), which ``tau`` multiplies; isotropic if not given."""
    keep: str | None = None
    """``gradient_matching``: ``curvature.safetensors`` of the base model on inputs that it is to go on serving well, as
    ``vlora curvature`` writes it, or a folder that has one: draws the merge towards the base where that is sure
    (:mod:`vlora.merge.adapters.keep`)."""
    keep_weight: float | None = None
    """How much ``keep`` counts, as an adapter's weight does; 1 if not given, 0 for not at all."""
    ancestor: str | None = None
    """``gradient_matching`` of adapters: posterior folder that all of them went on from; their natural parameters are
    then summed relative to it (curvature ``sites``), in its rank (:mod:`vlora.merge.methods.lineage`)."""
    scale: float | None = None
    """Factor on the merged update (lambda or alpha in the papers); 1 if not given. Not for means."""
    curvature: str | None = None
    """``gradient_matching``: ``auto``, ``sites``, ``kronecker``, ``separable`` or ``isotropic``."""
    negative: str | None = None
    """``gradient_matching``: a negative weight merges the adapter's negative (``negate``) or takes its data out of the
    sum (``remove``); ``remove`` for curvature ``sites``, else ``negate`` if not given."""
    density: float | None = None
    """``ties`` (.2 if not given), ``dare_linear``, ``dare_ties``, ``della`` (.5): share of entries that stay."""
    epsilon: float | None = None
    """``della``: width of the window of probabilities around ``density``; .2 if not given."""
    seed: int | None = None
    """``dare_linear``, ``dare_ties``, ``della``: start of the masks, one per adapter and module, by their
    content: names and order do not count; 0 if not given."""
    space: str | None = None
    """``ties``, ``dare_linear``, ``dare_ties``, ``della``: coordinates whose entries are compared, ``full`` (the update
    itself, the default), ``knots`` or ``core``."""
    normalise: bool | None = None
    """``ties``, ``dare_ties``, ``della``: mean (true, the default) or sum of what agrees; ``fisher``: each Fisher at
    mean 1 (true, the default) or as N h."""
    task_rank: int | None = None
    """``tsv``: singular triples that each adapter contributes; min(m, n) / number of adapters if not given."""
    damping: float | None = None
    """``mats``: how far the output side is drawn to the identity, (S + d I) / (1 + d), d = 10 if not given; 0 is the
    paper's."""
    steps: int | None = None
    """``mats``: upper limit of conjugate gradient steps; 100 if not given."""
    shrink: float | None = None
    """``regmean``: factor on the off-diagonal entries of the Grams; .9 if not given."""
    module_options: dict[str, dict[str, float | list[float]]] = field(default_factory=dict)
    """Option (``density``, ``epsilon``, ``scale``, ``tau``, ``shrink`` or ``keep_weight``) -> regular expression -> its
    value, or gradient over the layers, in the modules whose name it matches; the first that matches counts."""
    num_layers: int | None = None
    """Layers of the model, for gradients; as many as the modules show (or the base's config says) if not given."""

    def options(self) -> dict[str, Any]:
        """Method options that were given."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in OPTIONS}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def keeps(self) -> bool:
        """Whether the base model has a say anywhere."""
        return keep_counts(self.options(), self.module_options)

    def files(self) -> list[str]:
        """What is read beside adapters and models: ancestor, prior and keep."""
        return [path for path in (self.ancestor, self.prior, self.keep if self.keeps else None) if path]

    def check_options(self, method: str, known: Sequence[str]) -> None:
        """Refuse options that the method does not have, and values that they cannot have.

        Raises:
            ConfigError: Which option, and what was expected.
        """
        for option, value in self.options().items():
            if option not in known:
                raise ConfigError(
                    f"method {method} has no option {option}, its options: {', '.join(known) or 'none'}; remove it"
                )
            check_option(option, value)
        check_module_options(self.module_options, method, known)
        check_ancestor_options(self.options(), self.module_options)
        check_keep_options(self.options(), self.module_options)
        if self.num_layers is not None and self.num_layers < 1:
            raise ConfigError(f"num_layers must be at least 1, got {self.num_layers}")


@dataclass(frozen=True, kw_only=True)
class MergeConfig(MethodOptions):
    """Adapters in, one posterior folder out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: str = "gradient_matching"
    """One of :data:`vlora.merge.METHODS`: ``linear``, ``slerp``, ``task_arithmetic``, ``ties``, ``dare_linear``,
    ``dare_ties``, ``della``, ``tsv``, ``iso_c``, ``fisher``, ``regmean``, ``mats``, ``gradient_matching``."""
    adapters: tuple[AdapterSource, ...]
    """The adapters, one or more; order does not matter."""
    into: Literal["adapter"] = "adapter"
    """What comes out; ``model`` merges the adapters into ``base_model`` (:class:`ModelMergeConfig`)."""
    output: str
    """Folder to write; a former adapter there is replaced only with ``overwrite``."""
    base_model: str | None = None
    """Base model that all adapters must have been trained on; checked, not loaded."""
    rank: Literal["auto", "keep", "lossless"] | int | float = "auto"
    """``auto``: ``lossless`` where the method's result is exact in factors, else the inputs' largest rank; ``keep`` the
    common rank, ``lossless`` (concatenation, sum of the ranks), a rank, or a share of energy in (0, 1): per module the
    smallest rank that retains it."""
    ledger: Literal["reference", "full", "none"] = "reference"
    """What is kept so that ``vlora merge remove`` can take an adapter out again: hashes and places of the inputs, a
    copy of them inside the output, or nothing."""
    verify: bool = True
    """Whether the golden identities run on a few modules of the actual inputs before anything is written."""
    overwrite: bool = False
    """Whether a former adapter at ``output`` may be replaced."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before any file is read."""
        self.check_options(self.method, get_method(self.method).options)
        check_rank(self.rank)
        if not self.adapters:
            raise ValueError("adapters is empty; list at least one path")

    def weights(self) -> list[float]:
        """Weight of each adapter; members of a group share theirs."""
        return group_weights(self.adapters)

    def module_weights(self) -> list[dict[str, float | list[float]]]:
        """Weights per module of each adapter; members of a group share theirs."""
        return group_module_weights(self.adapters)

    def names(self) -> list[str]:
        """Short names, distinct."""
        return distinct([s.name or Path(s.path).name or s.path for s in self.adapters])
