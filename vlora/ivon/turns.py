"""What may follow what in IVON's protocol: the refusals that keep one step from mixing two kinds of draws."""

from typing import Any

from vlora.errors import TrainingError

__all__ = ["mean_loss", "require_free_for_context", "require_free_for_train"]


def require_free_for_train(collected: int, mc_samples: int) -> None:
    """Refuse ``train()`` where it would not be the only draw of its step.

    Args:
        collected: Draws of ``sampled_params`` that wait for ``step()``.
        mc_samples: Draws per step that were asked for.

    Raises:
        TrainingError: If either says that the step has other draws.
    """
    if collected:
        raise TrainingError(
            "train() came after sampled_params(train=True) and before step(): use one of the two for a step"
        )
    if mc_samples > 1:
        raise TrainingError(
            f"train() makes one draw per step but mc_samples={mc_samples}: use step(closure), "
            "or one sampled_params(train=True) context per draw"
        )


def require_free_for_context(in_context: bool, train: bool, holds_sample: bool, per_rank: bool) -> None:
    """Refuse a ``sampled_params`` context where another draw is being used.

    Args:
        in_context: Whether a context is open.
        train: Whether the new one collects gradients.
        holds_sample: Whether the parameters hold a draw.
        per_rank: Whether draws differ between ranks.

    Raises:
        TrainingError: If contexts would be nested, or draws of two kinds mixed in a step.
    """
    if in_context:
        raise TrainingError("sampled_params contexts cannot be nested: leave the first before the next draw")
    if train and holds_sample:
        raise TrainingError(
            "sampled_params(train=True) came after train() and before step(): use one of the two"
        )
    if train and per_rank:
        raise TrainingError(
            'noise="per_rank" makes one draw per rank with train(); for sampled_params(train=True), step(closure) '
            "and more draws use the shared noise"
        )


def mean_loss(losses: list[Any]) -> Any:
    """Mean of what a closure returned at each draw; None if it returned nothing."""
    given = [loss.detach() if hasattr(loss, "detach") else loss for loss in losses if loss is not None]
    return sum(given) / len(given) if given else None
