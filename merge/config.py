"""Configuration of ``vlora merge``."""

from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict

from vlora.merge.gradient_matching import CURVATURES
from vlora.merge.methods import get_method

__all__ = ["AdapterSource", "MergeConfig"]


@dataclass(frozen=True, kw_only=True)
class AdapterSource:
    """One adapter that goes into a merge."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str
    """Posterior or PEFT adapter folder, or a hub id."""
    weight: float = 1.0
    """How much it counts; negative takes it away. Normalised by ``linear``, used as given by the other methods."""
    name: str | None = None
    """Short name for messages and the report; the last part of the path if not given."""
    revision: str | None = None
    """Revision of a hub id."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Adapters in, one posterior folder out."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    method: str = "gradient_matching"
    """One of ``linear``, ``task_arithmetic``, ``gradient_matching``."""
    adapters: tuple[AdapterSource, ...]
    """The adapters, one or more; order does not matter."""
    output: str
    """Folder to write; a former adapter there is replaced only with ``overwrite``."""
    base_model: str | None = None
    """Base model that all adapters must have been trained on; checked, not loaded."""
    rank: Literal["keep", "lossless"] | int = "keep"
    """``keep`` the common rank, ``lossless`` (concatenation, sum of the ranks), or a rank."""
    tau: float | None = None
    """Prior precision relative to an adapter's mean curvature, for ``gradient_matching``; .3 if not given."""
    scale: float | None = None
    """Factor on the merged update, for ``task_arithmetic`` and ``gradient_matching``; 1 if not given."""
    curvature: str | None = None
    """``auto``, ``sites``, ``kronecker``, ``separable`` or ``isotropic``, for ``gradient_matching``."""
    overwrite: bool = False
    """Whether a former adapter at ``output`` may be replaced."""

    def __post_init__(self) -> None:
        """Refuse what cannot work before any file is read."""
        method = get_method(self.method)
        for option in ("tau", "scale", "curvature"):
            if getattr(self, option) is not None and option not in method.options:
                raise ValueError(f"method {self.method} has no option {option}; remove it")
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau must be > 0, got {self.tau}")
        if self.curvature is not None and self.curvature not in CURVATURES:
            raise ValueError(f"curvature must be one of {', '.join(CURVATURES)}, got {self.curvature!r}")
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"rank must be keep, lossless or a number >= 1, got {self.rank}")
        if not self.adapters:
            raise ValueError("adapters is empty; list at least one path")

    def options(self) -> dict[str, float | str]:
        """Method options that were given."""
        given = {name: getattr(self, name) for name in ("tau", "scale", "curvature")}
        return {name: value for name, value in given.items() if value is not None}
