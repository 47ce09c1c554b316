"""Fisher information of an adapter from gradients of single examples: its diagonal, or its leading directions."""

from vlora.fisher.gradients import SquaredGradients, squared_gradients
from vlora.fisher.health import with_health
from vlora.fisher.leading import leading_fisher
from vlora.fisher.losses import LabelKind, Reduction, example_losses

__all__ = [
    "LabelKind",
    "Reduction",
    "SquaredGradients",
    "example_losses",
    "leading_fisher",
    "squared_gradients",
    "with_health",
]
