r"""A prior precision H_0 from a file, instead of tau I: what a base model is sure of already.

Per module H_0 = tau P_out (x) P_in with P_in (n, n) and P_out (m, m) scaled to mean diagonal 1, as the Grams are, so
that tau means the same. Kronecker gradient matching, whose curvature is I (x) G, takes P_in; the separable one takes
both diagonals. P is floored at 1 %, .99 P + .01 I: directions that the file knows nothing of stay weighed, and the
total positive definite. Accepted:

* ``curvature.safetensors``, or a folder that has one: ``<module>.input_gram`` and, optional, ``<module>.output_gram``,
  whole matrices, leading directions with a tail (:mod:`vlora.grams`), or diagonals of shape ``(n,)``;
* a posterior folder without curvature: the diagonals that its h lifts to (:mod:`vlora.merge.curvature.lift`).

The prior is on both sides of gradient matching, X (H_0 + sum G_t) = sum W_t (H_0 + G_t): where P is large the merge is
the sum of the updates, so it does not keep a merge from moving. An adapter with W = 0 and the Grams of what the base
should keep does (``benchmarks/merge_text``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.grams import Gram, ShortGram, stored_gram
from vlora.merge.adapters.reading import COMPUTE_DTYPE, read_inputs
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import unit_factor
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256

__all__ = ["Prior", "PriorFile", "read_prior"]

_FILE = "curvature.safetensors"
_PREFIX = "base_model.model."
_FLOOR = 0.01


@dataclass(frozen=True)
class Prior:
    """Of one module, mean diagonal 1 and floored."""

    input: Gram
    """P_in. Shape ``(n, n)``."""
    rows: Tensor
    """Diagonal of P_out. Shape ``(m,)``."""

    @property
    def columns(self) -> Tensor:
        """Diagonal of P_in. Shape ``(n,)``."""
        return self.input.diagonal()


@dataclass(frozen=True)
class PriorFile:
    """All modules of a file."""

    path: str
    tensors: Mapping[str, Tensor]
    """Grams or diagonals, by PEFT's or the model's own names."""

    @cached_property
    def sha256(self) -> str:
        """Content hash."""
        return tensors_sha256(self.tensors)

    def of(self, module: str, outputs: int, inputs: int) -> Prior:
        """The prior of one module.

        Args:
            module: Its name in the model.
            outputs: m.
            inputs: n.

        Raises:
            IncompatibleAdaptersError: The file has nothing for it, or something of another size, not finite, or not
                positive semi-definite.
        """
        columns = self._matrix(module, "input_gram", inputs)
        if columns is None:
            raise IncompatibleAdaptersError(
                f"prior {self.path} has no input_gram for {module}; gather it for all modules that are merged, or "
                "leave prior out"
            )
        rows = self._matrix(module, "output_gram", outputs)
        ones = torch.ones(outputs, dtype=COMPUTE_DTYPE)
        return Prior(columns, ones if rows is None else rows.diagonal())

    def _matrix(self, module: str, kind: str, size: int) -> Gram | None:
        keys = (f"{prefix}{module}.{kind}" for prefix in (_PREFIX, ""))
        found = next((gram for key in keys if (gram := stored_gram(self.tensors, key)) is not None), None)
        if found is None:
            return None
        where = f"prior {self.path} ({kind} of {module})"
        if isinstance(found, Tensor) and found.ndim == 1:
            _check_diagonal(found, where)
            found = torch.diag(found)
        if tuple(found.shape) != (size, size):
            raise IncompatibleAdaptersError(
                f"{where} has the shape {tuple(found.shape)}, the module needs {size} x {size}; is it of this base "
                "model?"
            )
        return _floored(found.to(COMPUTE_DTYPE), where)


def read_prior(path: str) -> PriorFile:
    """Read a prior.

    Args:
        path: A safetensors file, a folder with ``curvature.safetensors``, or a posterior folder.

    Raises:
        ConfigError: There is no such file or folder, or it holds no precision.
        PosteriorFormatError: A posterior folder is damaged.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ConfigError(
            f"prior: no file or folder {path}; give {_FILE} or a posterior folder, or leave prior out for tau I"
        )
    if place.is_dir() and not (place / _FILE).is_file():
        return PriorFile(path, _lifted(Posterior.from_pretrained(place), path))
    try:
        tensors = load_file(place / _FILE if place.is_dir() else place)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"prior: {path} is no safetensors file ({error}); give {_FILE}") from None
    if not any(".input_gram" in key for key in tensors):
        raise ConfigError(
            f"prior: {path} holds no input_gram of any module (first key {next(iter(tensors), 'none')}); gather it "
            "with vlora.curvature"
        )
    return PriorFile(path, tensors)


def _lifted(posterior: Posterior, path: str) -> dict[str, Tensor]:
    """Diagonals from h, under the keys of Grams."""
    if not posterior.has_hess:
        raise ConfigError(f"prior: {path} has neither {_FILE} nor h; gather curvature for it")
    inputs, found = read_inputs([posterior], ["the prior"]), {}
    for module in inputs.modules:
        lifted = lift_update(inputs.update(0, module))
        if lifted is not None:
            found[f"{module}.output_gram"], found[f"{module}.input_gram"] = lifted
    return found


def _check_diagonal(values: Tensor, where: str) -> None:
    if not torch.isfinite(values).all() or values.min() < 0 or not values.any():
        raise IncompatibleAdaptersError(f"{where} is not finite, or not positive; gather it again")


def _floored(gram: Gram, where: str) -> Gram:
    unit = unit_factor(gram, where)
    keep = (1 - _FLOOR) * unit
    if isinstance(gram, ShortGram):
        if min(gram.tail, gram.values.min().item()) < 0:
            raise IncompatibleAdaptersError(f"{where} has negative eigenvalues; gather it again")
        return ShortGram(gram.vectors, keep * gram.values + _FLOOR, keep * gram.tail + _FLOOR)
    floored = (gram + gram.mT).mul_(0.5 * keep)
    floored.diagonal().add_(_FLOOR)
    if torch.linalg.cholesky_ex(floored).info:
        raise IncompatibleAdaptersError(f"{where} has negative eigenvalues; gather it again")
    return floored
