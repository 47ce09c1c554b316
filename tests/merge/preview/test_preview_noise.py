"""Noise of posteriors in the preview: a Gram of a few directions and a tail gives what the matrix written out gives."""

import torch

from vlora.grams import ShortGram
from vlora.merge.curvature.quadratic import Metric
from vlora.merge.preview.noise import linear_noise, square_noise
from vlora.merge.update import LoraUpdate


def random_update(seed: int) -> LoraUpdate:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    b, a = random(5, 2), random(2, 7)
    precisions = {"precision_b": random(5, 2).square() + 1, "precision_a": random(2, 7).square() + 1}
    return LoraUpdate(b=b, a=a, scale=1.5, adapter=f"t{seed}", module="q", **precisions)


def test_a_short_gram_gives_the_numbers_of_the_matrix_written_out():
    generator = torch.Generator().manual_seed(9)
    vectors = torch.linalg.qr(torch.randn(7, 3, generator=generator, dtype=torch.float64)).Q
    short = ShortGram(vectors, torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64), 0.3)
    outputs = torch.eye(5, dtype=torch.float64) + 0.2
    updates = [random_update(seed) for seed in range(3)]
    thin, full = (Metric(outputs, gram, 0.7, "kronecker") for gram in (short, short.dense()))
    torch.testing.assert_close(linear_noise(thin, updates), linear_noise(full, updates))
    torch.testing.assert_close(square_noise(thin, updates), square_noise(full, updates))
