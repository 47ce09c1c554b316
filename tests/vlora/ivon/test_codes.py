"""8-bit codes: nearest values, bitsandbytes' map, unbiased rounding, a grid that does not move."""

import math

import pytest
import torch

from vlora.ivon.codes import (
    decode_dynamic,
    decode_log,
    dynamic_map,
    encode_dynamic,
    encode_log,
    rounding_phase,
)

SHAPES = [(), (1,), (255,), (256,), (3, 100), (4, 64, 2)]


def spread(octaves, shape=(4, 256), seed=0):
    """Positive values whose blocks span exactly so many octaves."""
    exponents = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(octaves)
    exponents[..., 0], exponents[..., 1] = 0, octaves
    return torch.exp2(exponents - 9)


class TestDynamic:
    def test_the_map_is_that_of_bitsandbytes(self):
        functional = pytest.importorskip("bitsandbytes.functional")
        assert len(set(dynamic_map())) == 256
        torch.testing.assert_close(
            torch.tensor(dynamic_map()), functional.create_dynamic_map(), rtol=2e-7, atol=0
        )

    def test_codes_are_the_nearest_values(self):
        values = torch.tensor(dynamic_map())
        borders = (values[1:] + values[:-1]) / 2
        inputs = [
            torch.linspace(-1, 1, 5001),
            torch.linspace(-1, 1, 997) * 1e-4,
            values,
            borders,
            borders.neg(),
        ]
        inputs += [torch.nextafter(borders, torch.tensor(limit)) for limit in (-1.0, 1.0)]
        flat = torch.cat(inputs)
        flat = torch.cat([flat, flat.new_zeros(-len(flat) % 255)]).view(-1, 255)
        unit = torch.cat([flat, torch.ones(len(flat), 1)], dim=1)  # so that every scale is 1
        codes, scale = encode_dynamic(unit)
        assert (scale == 1).all()
        assert torch.equal(codes.long(), torch.bucketize(unit, borders))

    def test_error_is_not_above_that_of_bitsandbytes(self):
        functional = pytest.importorskip("bitsandbytes.functional")
        torch.manual_seed(0)
        values = torch.randn(300 * 256) * torch.exp(torch.randn(300 * 256))
        codes, scale = encode_dynamic(values)
        theirs, quant = functional.quantize_blockwise(values, blocksize=256)
        torch.testing.assert_close(scale, quant.absmax, rtol=0, atol=0)
        error = (decode_dynamic(codes, scale) - values).abs().mean()
        assert error <= (functional.dequantize_blockwise(theirs, quant) - values).abs().mean()
        assert error / values.abs().mean() < 0.02

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_and_zeros(self, shape):
        codes, scale = encode_dynamic(torch.zeros(shape))
        assert codes.shape == shape and codes.dtype == torch.uint8
        assert torch.equal(decode_dynamic(codes, scale), torch.zeros(shape))
        values = torch.full(shape, -3.5)
        torch.testing.assert_close(decode_dynamic(*encode_dynamic(values)), values, rtol=0.01, atol=0)


class TestLog:
    @pytest.mark.parametrize(("octaves", "spacing"), [(0.9, 8), (1.9, 7), (3.9, 6), (7.8, 5), (15.7, 4)])
    def test_the_finest_grid_that_covers_the_block(self, octaves, spacing):
        values = spread(octaves)
        codes, scale = encode_log(values, 0.5)
        assert (scale[:, 1] == 2.0**-spacing).all()
        error = (decode_log(codes, scale) / values).log2().abs().max()
        assert error <= 0.5001 * 2.0**-spacing

    def test_mean_logarithm_over_phases_is_that_of_the_value(self):
        values = spread(10.0)
        steps = 2000
        logs = [decode_log(*encode_log(values, rounding_phase(values, step))).log2() for step in range(steps)]
        torch.testing.assert_close(sum(logs) / steps, values.log2(), rtol=0, atol=1e-4)

    def test_values_on_the_grid_stay(self):
        codes, scale = encode_log(spread(6.0), 0.5)
        values = decode_log(codes, scale)
        for phase in (0.01, 0.3, 0.99):
            torch.testing.assert_close(
                decode_log(*encode_log(values, phase, scale)), values, rtol=3e-6, atol=0
            )

    def test_a_block_that_becomes_narrow_moves_to_a_grid_with_the_old_points(self):
        wide = decode_log(*encode_log(spread(14.0), 0.5))
        narrow = wide.sort(dim=1).values[:, 64:80].repeat(1, 16)
        codes, scale = encode_log(narrow, 0.7)
        assert (scale[:, 1] < 2.0**-4).all()
        torch.testing.assert_close(decode_log(codes, scale), narrow, rtol=3e-6, atol=0)

    def test_a_coarse_block_refines_only_with_room_to_spare(self):
        coarse = torch.tensor([[0.0, 2.0**-4]]).expand(4, 2)
        for octaves, spacing in ((3.5, 5), (2.9, 6)):  # both fit 2^-6 when there is no past
            assert (encode_log(spread(octaves), 0.5)[1][:, 1] == 2.0**-6).all()
            assert (encode_log(spread(octaves), 0.5, coarse)[1][:, 1] == 2.0**-spacing).all()

    def test_values_below_the_range_become_its_smallest(self):
        values = spread(30.0)
        decoded = decode_log(*encode_log(values, 0.5))
        inside = values > values.max() * 2.0**-15.8
        torch.testing.assert_close(decoded[inside], values[inside], rtol=0.03, atol=0)
        assert (decoded[~inside] <= values.max() * 2.0**-15.7).all()
        assert (decoded >= values * 0.97).all()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes_and_zeros(self, shape):
        values = torch.full(shape, 0.7)
        codes, scale = encode_log(values, rounding_phase(values, 3))
        assert (
            codes.shape == shape
            and codes.dtype == torch.uint8
            and scale.shape == (math.ceil(codes.numel() / 256), 2)
        )
        torch.testing.assert_close(decode_log(codes, scale), values, rtol=0.003, atol=0)
        assert decode_log(*encode_log(torch.zeros(shape), 0.5)).isfinite().all()

    def test_slow_decay_is_followed_where_nearest_freezes(self):
        """A factor of 0.999 per step is a fifteenth of the spacing at a range of 4 octaves."""
        start = spread(3.8)
        exact, ours, nearest = start.clone(), encode_log(start, 0.5), encode_log(start, 0.5)
        first = decode_log(*nearest)
        for step in range(1, 1501):
            exact *= 0.999
            values = decode_log(*ours) * 0.999
            ours = encode_log(values, rounding_phase(values, step), ours[1])
            nearest = encode_log(decode_log(*nearest) * 0.999, 0.5, nearest[1])
        assert (decode_log(*ours) / exact).log2().abs().max() < 4 * 2.0**-6
        torch.testing.assert_close(decode_log(*nearest), first, rtol=1e-5, atol=0)


def test_phases_fill_the_unit_interval_over_steps_and_over_entries():
    entries = rounding_phase(torch.empty(1000), 5)
    steps = torch.stack([rounding_phase(torch.empty(7), step) for step in range(1000)])
    for phases in (entries, *steps.T):
        sorted_gaps = phases.sort().values.diff()
        assert phases.min() >= 0 and phases.max() < 1
        assert sorted_gaps.max() < 0.003  # 1,000 random numbers leave gaps of 0.007
    assert torch.equal(rounding_phase(torch.empty(4, 5), 9).view(-1), rounding_phase(torch.empty(20), 9))
