"""Per-example squared gradients of an adapter: the diagonal Fisher information, empirical or true."""

from vlora.fisher.gradients import SquaredGradients, squared_gradients
from vlora.fisher.losses import LabelKind, Reduction, example_losses

__all__ = ["LabelKind", "Reduction", "SquaredGradients", "example_losses", "squared_gradients"]
