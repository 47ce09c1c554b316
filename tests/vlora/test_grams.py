"""Gram matrices in the short form: what is kept, what is not, and what a merge makes of them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlora.errors import ConfigError
from vlora.grams import compress_grams, read_gram, retained_trace

KEY = "base_model.model.layers.0.q_proj.input_gram"


def decaying(n=12, seed=0):
    basis = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed))).Q
    return (basis * torch.arange(1, n + 1).float().pow(-2)) @ basis.T


def test_kept_directions_are_exact_and_the_rest_is_their_mean():
    gram = decaying()
    short = compress_grams({KEY: gram}, 4)
    back = read_gram(short, KEY)
    values, vectors = torch.linalg.eigh(gram)
    top, rest = vectors[:, -4:], vectors[:, :-4]
    torch.testing.assert_close(back @ top, gram @ top, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back @ rest, values[:-4].mean() * rest, rtol=1e-4, atol=1e-5)
    assert back.trace().item() == pytest.approx(gram.trace().item(), rel=1e-5)
    assert retained_trace(short)[KEY] == pytest.approx((values[-4:].sum() / values.sum()).item(), rel=1e-4)


def test_small_matrices_and_short_ones_stay_as_they_are(tmp_path):
    gram = decaying(6)
    assert compress_grams({KEY: gram}, 6)[KEY] is gram
    short = compress_grams({KEY: decaying()}, 3)
    again = compress_grams(short, 3)
    assert again.keys() == short.keys()
    assert all(torch.equal(again[k], short[k]) for k in short)
    save_file(short, tmp_path / "curvature.safetensors")
    loaded = load_file(tmp_path / "curvature.safetensors")
    assert torch.equal(read_gram(loaded, KEY), read_gram(short, KEY))


def test_a_matrix_of_zeros_has_everything_retained():
    short = compress_grams({KEY: torch.zeros(5, 5)}, 2)
    assert retained_trace(short) == {KEY: 1.0}
    assert not read_gram(short, KEY).any()


def test_missing_and_bad():
    assert read_gram({}, KEY) is None
    with pytest.raises(ConfigError, match="rank of the curvature must be at least 1, got 0"):
        compress_grams({}, 0)
