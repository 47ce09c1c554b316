r"""A prior precision H_0 from a file, instead of tau I: what a base model is sure of already.

Per module H_0 = tau P_out (x) P_in with P_in (n, n) and P_out (m, m) scaled to mean diagonal 1, as the Grams are, so
that tau means the same. Kronecker gradient matching, whose curvature is I (x) G, takes P_in; the separable one takes
both diagonals. P is floored at 1 %, .99 P + .01 I: directions that the file knows nothing of stay weighed, and the
total positive definite. Which files: :mod:`vlora.merge.adapters.gram_file`.

The prior is on both sides of gradient matching, X (H_0 + sum G_t) = sum W_t (H_0 + G_t): where P is large the merge is
the sum of the updates, so it does not keep a merge from moving. ``keep`` does (:mod:`vlora.merge.adapters.keep`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlora.grams import Gram
from vlora.merge.adapters.gram_file import GramFile, floored, read_gram_file
from vlora.merge.adapters.reading import COMPUTE_DTYPE

__all__ = ["Prior", "PriorFile", "read_prior"]


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
class PriorFile(GramFile):
    """All modules of a prior."""

    option = "prior"

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
        columns = floored(self.inputs(module, inputs), self.where(module, "input_gram"))
        rows = self.matrix(module, "output_gram", outputs)
        if rows is None:
            return Prior(columns, torch.ones(outputs, dtype=COMPUTE_DTYPE))
        return Prior(columns, floored(rows, self.where(module, "output_gram")).diagonal())


def read_prior(path: str) -> PriorFile:
    """Read a prior.

    Args:
        path: A safetensors file, a folder with ``curvature.safetensors``, or a posterior folder.

    Raises:
        ConfigError: There is no such file or folder, or it holds no precision.
        PosteriorFormatError: A posterior folder is damaged.
    """
    return read_gram_file(path, PriorFile, "leave prior out for tau I")
