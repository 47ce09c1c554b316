"""Cubic radial basis functions: through the values, and exact for what is linear."""

import torch
from merge_cases import rand

from vlora.merge.preview.interpolation import Cardinals


def test_values_come_back_and_linear_functions_are_exact():
    points, places = rand(12, 3, seed=1), rand(7, 3, seed=2)
    cardinals = Cardinals.of(points)
    torch.testing.assert_close(cardinals.at(points), torch.eye(12, dtype=torch.float64))
    slope = rand(3, 2, seed=3)
    torch.testing.assert_close(cardinals.at(places) @ (1.5 + points @ slope), 1.5 + places @ slope)
    torch.testing.assert_close(cardinals.at(places).sum(1), torch.ones(7, dtype=torch.float64))


def test_on_a_line_it_is_the_natural_cubic_spline():
    """At 0, 1, 2, 3 with values 0, 1, 0, 1: second derivatives 0, -4, 4, 0 at the points (the usual 2 x 2 system)."""
    points = torch.arange(4, dtype=torch.float64).unsqueeze(1)
    values = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    half = Cardinals.of(points).at(torch.tensor([[0.5], [1.5]], dtype=torch.float64)) @ values
    # S((x_i + x_i+1) / 2) = (y_i + y_i+1) / 2 - (M_i + M_i+1) / 16
    torch.testing.assert_close(half, torch.tensor([0.5 + 4 / 16, 0.5], dtype=torch.float64))
