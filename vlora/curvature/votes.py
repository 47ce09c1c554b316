r"""How much an example counts in the curvature of an adapter: by what the adapter changed about it.

Normalised gradients give every example of the training data the same vote. An example that the base model answered like
the adapter then counts as much as one that had to be taught, although nothing there depends on the update. Where such
examples are many (replayed rows, rows of a mixture that the base knows), and alike in all adapters that are merged,
they hold the directions in which the updates are averaged away. Under ``votes="change"`` example i has

.. math:: v_i = \sum_t \mathrm{KL}\big(p_\text{adapter}(\cdot \mid x_i, y_{i,<t}) \,\|\,
          p_\text{base}(\cdot \mid x_i, y_{i,<t})\big) \quad \text{nats}

of them, over the places t where a label is predicted; the labels themselves are not used. It is a secant in place of a
tangent: for a quadratic loss with its minimum at the adapter,
:math:`\ell_i(\theta_0) - \ell_i(\theta) = \tfrac12 \Delta^\top H_i \Delta`, so what the update brought says how curved
the loss is over the distance that a merge may go back, where the gradient at the adapter alone says only which way.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlora.data.places import at_labels
from vlora.errors import ConfigError, TrainingError

__all__ = ["Votes", "base_logits", "change_votes"]

Votes = Literal["auto", "change", "equal"]
"""``change``: by what the adapter changed, see above. ``equal``: one each. ``auto``: by change where that is defined
(a PEFT model that predicts classes or tokens), else equal."""


def base_logits(
    kind: Votes, model: nn.Module, layers: Iterable[nn.Module], inputs: Mapping[str, Any]
) -> Tensor | None:
    """What the model says of a batch without the adapter (heads that were trained with it stay); None for equal votes.

    Autograd is left as it is, though nothing is differentiated: without it bitsandbytes packs 4-bit weights on a CPU
    for inference, and no gradient passes them any more.

    Args:
        kind: Which votes are wanted.
        model: A PEFT model, or one without an adapter.
        layers: All of its LoRA layers.
        inputs: The batch, with ``labels``.

    Raises:
        ConfigError: Votes by change are asked for and not defined here, or the adapter is merged into the base.
    """
    if kind == "equal" or (kind == "auto" and not hasattr(model, "peft_config")):
        return None
    if not hasattr(model, "peft_config"):
        raise ConfigError(
            "votes: 'change' compares an adapter with its base, and this model has no adapter: use votes='equal'"
        )
    with _without_adapters(layers):
        logits = getattr(model(**inputs), "logits", None)
    if isinstance(logits, Tensor) and _are_classes(logits, inputs.get("labels")):
        return logits.detach()
    if kind == "auto":
        return None
    raise ConfigError(
        "votes: 'change' expects one class a row or one token a position for every label, and this model predicts "
        "something else: use votes='equal'"
    )


@torch.no_grad()
def change_votes(model: nn.Module, logits: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Votes of the rows of a batch.

    Args:
        model: The PEFT model.
        logits: What it says with the adapter: [rows, classes] or [rows, tokens, vocabulary].
        base: What it says without, as :func:`base_logits` gives it.
        labels: [rows] or [rows, tokens]; -100 marks places without a prediction.

    Returns:
        v, nats, float32 [rows]; 0 where the adapter changed nothing or the row has no labels.

    Raises:
        TrainingError: A vote is not finite.
    """
    aligned = _aligned(model)
    first, _, rows = at_labels(logits, labels, aligned=aligned)
    second = at_labels(base, labels, aligned=aligned)[0]
    votes = torch.zeros(len(labels), device=logits.device).index_add(0, rows, _divergence(first, second))
    if not votes.isfinite().all():
        raise TrainingError("a vote is not finite: logits of the adapter or the base hold NaN or infinity")
    return votes


def _are_classes(logits: Tensor, labels: Any) -> bool:
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and logits.shape[-1] > 1
    return whole and logits.shape[:-1] == labels.shape


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of the softmaxes of logits [places, classes], nats, never negative."""
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)


def _aligned(model: nn.Module) -> bool:
    """Whether labels of tokens stand where their logits do: in encoder-decoders and token classifiers."""
    config: Any = getattr(model, "config", None)
    kinds = {str(getattr(one.task_type, "value", one.task_type)) for one in model.peft_config.values()}  # type: ignore[union-attr]
    return bool(getattr(config, "is_encoder_decoder", False)) or "TOKEN_CLS" in kinds


@contextmanager
def _without_adapters(layers: Iterable[nn.Module]) -> Iterator[None]:
    """LoRA layers act as their base inside; afterwards they and what they train are as before."""
    layers = list(layers)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ConfigError("the adapter is merged into the base: call model.unmerge_adapter() first")
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    frozen = [p for layer in layers for p in layer.parameters() if not p.requires_grad]
    try:
        for layer in layers:
            layer.enable_adapters(False)  # type: ignore[operator]
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # type: ignore[operator]
        for parameters, wanted in ((trained, True), (frozen, False)):
            for parameter in parameters:
                parameter.requires_grad_(wanted)
