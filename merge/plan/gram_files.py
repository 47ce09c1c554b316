"""The files of ``prior`` and ``keep`` in a plan: what their headers lack, and how much is read and held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.merge.checkpoints.headers import TensorEntry
from vlora.merge.config import MergeConfig
from vlora.merge.plan.headers import read_entries
from vlora.posterior.hashing import CURVATURE

__all__ = ["GramHeaders", "file_problems", "read_gram_headers"]


@dataclass(frozen=True)
class GramHeaders:
    """One file of Grams (:mod:`vlora.merge.adapters.gram_file`), seen from outside."""

    option: str
    """``prior`` or ``keep``."""
    path: str
    entries: Mapping[str, TensorEntry] | None
    """Empty for a posterior folder, whose h would be lifted; None where nothing is there."""

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(entry.nbytes for entry in (self.entries or {}).values())

    def bytes_of(self, module: str, shape: tuple[int, int]) -> int:
        """Bytes of a module's Grams in double precision; those of a prior and diagonals are written out."""
        if self.option == "prior" or not self.entries:
            return 8 * (shape[0] ** 2 + shape[1] ** 2)
        found = (self._entry(module, kind) for kind in ("input_gram", "output_gram"))
        return 8 * sum(e.numel if len(e.shape) > 1 else e.numel**2 for e in found if e is not None)

    def problem(self, module: str, shape: tuple[int, int]) -> str | None:
        """Why it does not do for a module, if it does not."""
        for kind, size in (("input_gram", shape[1]), ("output_gram", shape[0])):
            entry = self._entry(module, kind)
            if entry is None and kind == "input_gram" and self.entries:
                return (
                    f"{self.option} {self.path} has no input_gram for {module}; gather it for all modules that are "
                    f"merged, or leave {self.option} out"
                )
            if entry is not None and entry.shape[0] != size:
                return (
                    f"{self.option} {self.path} has {entry.shape[0]} rows as {kind} of {module}, which needs {size}; "
                    "is it of this base model?"
                )
        return None

    def _entry(self, module: str, kind: str) -> TensorEntry | None:
        known = self.entries or {}
        names = (f"{prefix}{module}.{kind}" for prefix in ("base_model.model.", ""))
        return next((e for name in names if (e := known.get(name) or known.get(f"{name}.vectors"))), None)


def read_gram_headers(config: MergeConfig) -> list[GramHeaders]:
    """The headers of the files of Grams that a configuration names beside its adapters.

    Raises:
        CheckpointError: One is truncated or damaged.
    """
    found = []
    for option, path in (("prior", config.prior), ("keep", config.keep if config.keeps else None)):
        if path is not None:
            place = Path(path).expanduser()
            entries = read_entries(place / CURVATURE if place.is_dir() else place)
            found.append(GramHeaders(option, path, entries if place.exists() else None))
    return found


def file_problems(
    config: MergeConfig, modules: Mapping[str, Mapping[str, Any]], files: Sequence[GramHeaders]
) -> list[str]:
    """Files that are not there or do not fit, and modules where nothing stands against ``keep``.

    Args:
        config: The merge.
        modules: Module -> ``shape`` and ``curvature``.
        files: From :func:`read_gram_headers`.
    """
    found = [f"{f.option}: no file or folder {f.path}" for f in files if f.entries is None]
    for file in files:
        weighed = {
            name: row for name, row in modules.items() if row["curvature"] in ("kronecker", "separable")
        }
        found += [text for name, row in weighed.items() if (text := file.problem(name, row["shape"]))][:1]
    bare = [name for name, row in modules.items() if row["curvature"] == "isotropic"]
    if config.keeps and bare:
        found.append(
            f"keep goes with Kronecker or separable curvature, and {len(bare)} modules have none in all adapters, "
            f"first {bare[0]}; gather it for every adapter (vlora.curvature), or leave keep out"
        )
    return found
