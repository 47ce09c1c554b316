"""A network of ``benchmarks/merge_quality`` with an adapter that changes something, and rows for it."""

import torch

from benchmarks.merge_quality.network import WIDTH, Network
from benchmarks.posterior_quality.tasks import Rows

__all__ = ["adapted_network", "some_rows"]


def adapted_network() -> Network:
    """With factors B that are not zero."""
    made = Network(seed=0, rank=2)
    with torch.no_grad():
        for layer in made.adapted.values():
            layer.lora_B["default"].weight.normal_(0, 0.1)
    return made


def some_rows() -> Rows:
    """Three of 4, 9 and 7 tokens."""
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(9) < torch.tensor([[4], [9], [7]])).long()
    return Rows(torch.randn(3, 9, WIDTH, generator=generator).bfloat16(), mask, torch.tensor([0, 1, 1]))
