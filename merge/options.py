"""The keys that merge methods take besides weights and rank: what each means and which values it may have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.layers import Setting, check_pattern, check_setting
from vlora.merge.low_rank.spaces import SPACES
from vlora.merge.methods.gradient_matching import CURVATURES, NEGATIVE
from vlora.posterior import Posterior

__all__ = [
    "BY_MODULE",
    "OPTIONS",
    "Option",
    "check_ancestor_options",
    "check_keep_options",
    "check_module_options",
    "check_option",
    "check_rank",
    "keep_counts",
]


@dataclass(frozen=True)
class Option:
    """One key."""

    accepts: Callable[[Any], bool]
    expected: str
    """What :attr:`accepts`, for messages."""
    meaning: str
    """One line for people."""


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


OPTIONS: dict[str, Option] = {
    "tau": Option(
        lambda v: _number(v) and 0 < v < float("inf"),
        "> 0",
        "prior precision relative to an adapter's mean curvature",
    ),
    "prior": Option(
        lambda v: isinstance(v, str) and bool(v), "a path", "file or folder with the prior's precision"
    ),
    "keep": Option(
        lambda v: isinstance(v, str) and bool(v), "a path", "file or folder with what the base is to keep"
    ),
    "keep_weight": Option(
        lambda v: _number(v) and 0 <= v < float("inf"), ">= 0", "how much keep counts, in adapters"
    ),
    "ancestor": Option(
        lambda v: isinstance(v, Posterior) or isinstance(v, str) and bool(v),
        "a posterior folder",
        "posterior that all adapters went on from",
    ),
    "scale": Option(
        lambda v: _number(v) and abs(v) < float("inf"), "a finite number", "factor on the merged update"
    ),
    "curvature": Option(
        lambda v: v in CURVATURES, f"one of {', '.join(CURVATURES)}", "what weights the merge"
    ),
    "negative": Option(
        lambda v: v in NEGATIVE, f"one of {', '.join(NEGATIVE)}", "what a negative weight means"
    ),
    "density": Option(
        lambda v: _number(v) and 0 < v <= 1, "a share in (0, 1]", "share of entries that stay in each update"
    ),
    "epsilon": Option(
        lambda v: _number(v) and 0 <= v < 1, "a number in [0, 1)", "width of the window around density"
    ),
    "seed": Option(
        lambda v: _whole(v, 0),
        "a whole number >= 0",
        "start of the masks, one per adapter and module by their content",
    ),
    "space": Option(
        lambda v: v in SPACES, f"one of {', '.join(SPACES)}", "coordinates whose entries are compared"
    ),
    "normalise": Option(
        lambda v: isinstance(v, bool),
        "true or false",
        "sign election: a mean (true) or a sum; fisher: Fishers of mean 1 (true) or N h",
    ),
    "damping": Option(
        lambda v: _number(v) and 0 <= v < float("inf"),
        "a number >= 0",
        "of mats' output side: 0 is the paper's, large is gradient matching",
    ),
    "steps": Option(lambda v: _whole(v, 1), "a whole number >= 1", "upper limit of conjugate gradient steps"),
    "task_rank": Option(
        lambda v: _whole(v, 1), "a whole number >= 1", "singular triples that each adapter contributes"
    ),
    "shrink": Option(
        lambda v: _number(v) and 0 <= v <= 1,
        "a number in [0, 1]",
        "factor on off-diagonal entries of the Grams",
    ),
}
"""Name -> option."""
BY_MODULE = ("density", "epsilon", "scale", "tau", "shrink", "keep_weight")
"""Options that may differ between modules."""


def check_option(name: str, value: Any) -> None:
    """Refuse a value that an option cannot have.

    Raises:
        ConfigError: What was expected, and what came.
    """
    if not OPTIONS[name].accepts(value):
        raise ConfigError(f"{name} must be {OPTIONS[name].expected}, got {value!r}")


def check_ancestor_options(
    options: Mapping[str, Any], module_options: Mapping[str, Mapping[str, Setting]]
) -> None:
    """Refuse options beside ``ancestor`` that a sum of sites has no use for.

    Raises:
        ConfigError: Which option, and the cure.
    """
    if options.get("ancestor") is None:
        return
    curvature = options.get("curvature", "auto")
    if curvature not in ("auto", "sites"):
        raise ConfigError(
            f"ancestor goes with curvature: sites (or auto), got {curvature}; leave one of the two out"
        )
    if options.get("scale", 1) != 1 or "scale" in module_options:
        raise ConfigError("scale would scale the ancestor too; give the adapters weights instead")
    if options.get("prior") is not None:
        raise ConfigError("the ancestor is the prior of the merge; leave prior out")
    if keep_counts(options, module_options):
        raise ConfigError("runs of one ancestor are summed by sites, which keep cannot enter; leave keep out")


def keep_counts(options: Mapping[str, Any], module_options: Mapping[str, Mapping[str, Setting]]) -> bool:
    """Whether the base model has a say: ``keep`` is given, and its weight is not 0 for all modules."""
    weight = options.get("keep_weight")
    weighted = weight is None or weight > 0 or bool(module_options.get("keep_weight"))
    return options.get("keep") is not None and weighted


def check_keep_options(
    options: Mapping[str, Any], module_options: Mapping[str, Mapping[str, Setting]]
) -> None:
    """Refuse a weight of nothing, and curvatures that what the base is to keep cannot stand beside.

    Raises:
        ConfigError: Which option, and the cure.
    """
    if options.get("keep") is None:
        if options.get("keep_weight") is not None or "keep_weight" in module_options:
            raise ConfigError(
                "keep_weight is the weight of keep, which is not given; name the curvature of the base under keep "
                "(vlora curvature writes it)"
            )
        return
    if keep_counts(options, module_options) and options.get("curvature") in ("sites", "isotropic"):
        raise ConfigError(
            f"keep goes with curvature: kronecker or separable (or auto), got {options['curvature']}: there is nothing "
            "that it could be weighed against; leave one of the two out"
        )


def check_module_options(
    given: Mapping[str, Mapping[str, Setting]], method: str, known: Sequence[str]
) -> None:
    """Refuse values per module of options that the method does not have or that are no numbers.

    Args:
        given: Option -> regular expression -> value or gradient.
        method: Name of the method.
        known: Its options.

    Raises:
        ConfigError: Which option, pattern or value.
    """
    possible = [name for name in BY_MODULE if name in known]
    for name, values in given.items():
        if name not in possible:
            raise ConfigError(
                f"module_options: method {method} has no option {name!r} with values per module, only: "
                f"{', '.join(possible) or 'none'}; remove it"
            )
        for pattern, setting in values.items():
            check_pattern(pattern, f"module_options.{name}")
            for value in check_setting(setting, f"module_options.{name}: the value of {pattern!r}"):
                check_option(name, value)


def check_rank(rank: Any) -> None:
    """Refuse a rank that is neither a word, a number of components nor a share of energy.

    Raises:
        ConfigError: What was expected, and what came.
    """
    share = isinstance(rank, float) and 0 < rank < 1
    if not (rank in ("auto", "keep", "lossless") or _whole(rank, 1) or share):
        raise ConfigError(
            f"rank must be auto, keep, lossless or a number >= 1, or a share of energy in (0, 1), got {rank!r}"
        )
