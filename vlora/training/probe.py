"""A short look at the gradients of real batches before training, from which IVON's settings take their scale."""

from collections.abc import Iterable, Mapping
from itertools import islice

from torch import Tensor, nn

from vlora.errors import TrainingError
from vlora.ivon.auto import PROBE_STD, probe_moments

__all__ = ["probe_second_moments"]


def probe_second_moments(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    init_std: float = PROBE_STD,
    seed: int = 0,
    num_batches: int = 8,
) -> dict[nn.Parameter, float]:
    """Mean squared per-example gradient of every trainable tensor; see ``vlora.ivon.auto.probe_moments``.

    Args:
        model: Model that returns a loss, with trainable parameters. Its training mode is left as it was.
        batches: Batches as the model takes them.
        init_std: Standard deviation of the noise, in parameter units.
        seed: Seed of the noise.
        num_batches: Batches to look at, or fewer if there are not so many.

    Raises:
        TrainingError: A gradient is not finite, or there is no batch.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    looked_at = list(islice(batches, num_batches))
    if not looked_at:
        raise TrainingError("there is no batch of training data to look at")
    was_training, stream, size = model.training, iter(looked_at), [0]

    def loss() -> Tensor:
        batch = next(stream)
        size[0] = len(batch["labels"])
        device = parameters[0].device
        inputs = {
            key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()
        }
        return model(**inputs).loss

    model.train()
    try:
        return probe_moments(
            parameters, loss, std=init_std, num_batches=len(looked_at), batch_size=lambda: size[0], seed=seed
        )
    finally:
        model.train(was_training)
