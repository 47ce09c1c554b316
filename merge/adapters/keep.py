r"""What the base model is to keep: its own curvature P as one more task of gradient matching, without an update.

    X (tau I + w P + sum_t w_t G_t) = sum_t w_t W_t (tau I + G_t)

P stands in the total alone: where P is large and the adapters know little, X is drawn to zero, which is the base
model. It is what an adapter with B = 0, the Gram P and the weight w does, also where a rank is cut: output Grams count
if the file has them too. P is gathered on inputs that the base model is to go on serving well (``vlora curvature``),
and scaled to mean diagonal 1 per module as all Grams are; with separable curvature its diagonals count. It is not
floored, as tau I stands beside it, and zeros (no gradient came here) have no part. Which files:
:mod:`vlora.merge.adapters.gram_file`. Measured in ``benchmarks/merge_text``. The merged adapter's own Grams and its
number of examples are those of the adapters alone.
"""

from dataclasses import dataclass

from vlora.merge.adapters.gram_file import GramFile, check_diagonal, read_gram_file
from vlora.merge.curvature.kept import Kept

__all__ = ["KeepFile", "read_keep"]


@dataclass(frozen=True)
class KeepFile(GramFile):
    """P of all modules."""

    option = "keep"

    def of(self, module: str, outputs: int, inputs: int, weight: float) -> Kept:
        """The term of one module.

        Args:
            module: Its name in the model.
            outputs: m.
            inputs: n.
            weight: w > 0.

        Raises:
            IncompatibleAdaptersError: The file has nothing for it, or something of another size, not finite, or with a
                negative diagonal. What else is indefinite shows in the total, as an adapter's Gram does.
        """
        where = self.where(module, "input_gram")
        columns, rows = self.inputs(module, inputs), self.matrix(module, "output_gram", outputs)
        check_diagonal(columns, where)
        if rows is not None:
            check_diagonal(rows, self.where(module, "output_gram"))
        return Kept(weight, columns, rows, where)


def read_keep(path: str) -> KeepFile:
    """Read the curvature of what the base model is to keep.

    Args:
        path: A safetensors file, a folder with ``curvature.safetensors``, or a posterior folder.

    Raises:
        ConfigError: There is no such file or folder, or it holds no Gram.
        PosteriorFormatError: A posterior folder is damaged.
    """
    return read_gram_file(path, KeepFile, "leave keep out")
