"""Files of Grams that are no adapter's: of a prior (``prior: PATH``), of what the base is to keep (``keep: PATH``).

Accepted are ``curvature.safetensors``, as ``vlora curvature`` writes it, or a folder that has one, with
``<module>.input_gram`` and, optional, ``<module>.output_gram``: whole matrices, leading directions with a tail
(:mod:`vlora.grams`), or diagonals of shape ``(n,)``; or a posterior folder without curvature, whose h is lifted to
diagonals (:mod:`vlora.merge.curvature.lift`). Modules have PEFT's or the model's own names. Tensors stay in their file
until a module asks for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError, PosteriorFormatError
from vlora.grams import Gram, ShortGram, stored_gram
from vlora.merge.adapters.reading import COMPUTE_DTYPE, read_inputs
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import unit_factor
from vlora.posterior import Posterior
from vlora.posterior.hashing import CURVATURE, tensors_sha256
from vlora.posterior.stored import StoredTensors

__all__ = ["FLOOR", "GramFile", "check_diagonal", "floored", "read_gram_file"]

_PREFIX = "base_model.model."
FLOOR = 0.01
"""Share of the mean eigenvalue down to which a negative one passes for rounding."""

File = TypeVar("File", bound="GramFile")


@dataclass(frozen=True)
class GramFile:
    """All modules of a file."""

    path: str
    tensors: Mapping[str, Tensor]
    """Grams or diagonals, by PEFT's or the model's own names."""
    option = "file"
    """Key of the configuration, for messages."""

    @cached_property
    def sha256(self) -> str:
        """Content hash."""
        return tensors_sha256(self.tensors)

    def matrix(self, module: str, kind: str, size: int) -> Gram | None:
        """A Gram of a module in double precision, checked but for its sign; None where there is none.

        Args:
            module: Its name in the model.
            kind: ``input_gram`` or ``output_gram``.
            size: Inputs or outputs of the module.

        Raises:
            IncompatibleAdaptersError: It is of another size, or a diagonal that is not finite, or negative.
        """
        keys = (f"{prefix}{module}.{kind}" for prefix in (_PREFIX, ""))
        found = next((gram for key in keys if (gram := stored_gram(self.tensors, key)) is not None), None)
        if found is None:
            return None
        where = self.where(module, kind)
        if isinstance(found, Tensor) and found.ndim == 1:
            check_diagonal(found, where)
            found = torch.diag(found)
        if tuple(found.shape) != (size, size):
            raise IncompatibleAdaptersError(
                f"{where} has the shape {tuple(found.shape)}, the module needs {size} x {size}; is it of this base "
                "model?"
            )
        return found.to(COMPUTE_DTYPE)

    def inputs(self, module: str, size: int) -> Gram:
        """The input Gram of a module, see :meth:`matrix`.

        Raises:
            IncompatibleAdaptersError: There is none.
        """
        found = self.matrix(module, "input_gram", size)
        if found is None:
            raise IncompatibleAdaptersError(
                f"{self.option} {self.path} has no input_gram for {module}; gather it for all modules that are merged, "
                f"or leave {self.option} out"
            )
        return found

    def where(self, module: str, kind: str) -> str:
        """File, kind and module, for messages."""
        return f"{self.option} {self.path} ({kind} of {module})"


def read_gram_file(path: str, kind: type[File], instead: str) -> File:
    """Open a file of Grams.

    Args:
        path: A safetensors file, a folder with ``curvature.safetensors``, or a posterior folder.
        kind: What it is for.
        instead: What to do without one, for the message.

    Raises:
        ConfigError: There is no such file or folder, or it holds no Gram.
        PosteriorFormatError: A posterior folder is damaged.
    """
    place, option = Path(path).expanduser(), kind.option
    if not place.exists():
        raise ConfigError(
            f"{option}: no file or folder {path}; give {CURVATURE} or a posterior folder, or {instead}"
        )
    if place.is_dir() and not (place / CURVATURE).is_file():
        return kind(path, _lifted(Posterior.from_pretrained(place), path, option))
    try:
        tensors = StoredTensors(place / CURVATURE if place.is_dir() else place)
    except PosteriorFormatError as error:
        raise ConfigError(f"{option}: {path} is no safetensors file ({error}); give {CURVATURE}") from None
    if not any(".input_gram" in key for key in tensors):
        raise ConfigError(
            f"{option}: {path} holds no input_gram of any module (first key {next(iter(tensors), 'none')}); gather it "
            "with vlora curvature"
        )
    return kind(path, tensors)


def floored(gram: Gram, where: str) -> Gram:
    """(1 - f) P + f I with P at mean diagonal 1 and f = :data:`FLOOR`: positive definite.

    Raises:
        IncompatibleAdaptersError: It is not, so that P has negative eigenvalues; or P is not finite, or zero.
    """
    check_diagonal(gram, where)
    if not gram.diagonal().any():
        raise IncompatibleAdaptersError(
            f"{where} is zero, which is no precision; gather it on rows that reach it"
        )
    keep = (1 - FLOOR) * unit_factor(gram, where)
    if isinstance(gram, ShortGram):
        return ShortGram(gram.vectors, keep * gram.values + FLOOR, keep * gram.tail + FLOOR)
    found = (gram + gram.mT).mul_(0.5 * keep)
    found.diagonal().add_(FLOOR)
    single = torch.linalg.cholesky_ex(found.float()).info  # a quarter of the time, and refuses more at most
    if single and torch.linalg.cholesky_ex(found).info:
        raise IncompatibleAdaptersError(f"{where} has negative eigenvalues; gather it again")
    return found


def _lifted(posterior: Posterior, path: str, option: str) -> dict[str, Tensor]:
    """Diagonals from h, under the keys of Grams."""
    if not posterior.has_hess:
        raise ConfigError(f"{option}: {path} has neither {CURVATURE} nor h; gather curvature for it")
    inputs, found = read_inputs([posterior], [f"the {option}"]), {}
    for module in inputs.modules:
        lifted = lift_update(inputs.update(0, module))
        if lifted is not None:
            found[f"{module}.output_gram"], found[f"{module}.input_gram"] = lifted
    return found


def check_diagonal(gram: Gram, where: str) -> None:
    """Refuse what shows without a factorisation that it is no Gram; zeros (no gradient came here) are one.

    Args:
        gram: A whole one, a short one, or a diagonal.
        where: For the message.

    Raises:
        IncompatibleAdaptersError: An entry that is not finite; negative ones on the diagonal, or negative eigenvalues.
    """
    if not isinstance(gram, ShortGram) and gram.ndim == 1:
        if not gram.isfinite().all() or not gram.min().item() >= 0:
            raise IncompatibleAdaptersError(f"{where} is not finite, or not positive; gather it again")
        return
    unit_factor(gram, where)  # NaN and infinity, anywhere
    parts = [gram.values.min().item(), gram.tail] if isinstance(gram, ShortGram) else []
    if not all(low >= 0 for low in [*parts, gram.diagonal().min().item()]):
        raise IncompatibleAdaptersError(f"{where} has negative eigenvalues; gather it again")
