"""The order of models, or of adapters into a base, changes nothing, whatever their folders are called."""

import pytest
import torch
from checkpoint_cases import llama, lora, merge, odd_tensors, raw_model, save_model, tensors_of


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "della"])
@pytest.mark.parametrize("kind", ["models", "adapters"])
def test_whole_models_to_the_last_bit(tmp_path, method, kind):
    """Weights that are no powers of 2 and coarse values: signs with ties, which rounding must not decide."""
    base = odd_tensors(0, torch.bfloat16)
    raw_model(tmp_path / "base", base)
    folders = []
    if kind == "models":
        for seed, name in enumerate("xyz", 1):
            near = odd_tensors(seed, torch.bfloat16, start=base)
            folders.append(raw_model(tmp_path / name / "final", near))
    else:
        save_model(tmp_path / "llama", llama())
        folders = [lora(tmp_path / name / "final", llama(), seed) for seed, name in enumerate("xyz", 1)]
    given = {"base_model": str(tmp_path / ("base" if kind == "models" else "llama")), "method": method}
    given |= {"into": "model"} if kind == "adapters" else {"dtype": "float32"}
    pairs = list(zip(folders, (0.3, 0.3, 0.4), strict=True))
    orders, outputs = (pairs, pairs[::-1], [*pairs[1:], pairs[0]]), []
    for number, order in enumerate(orders):
        sources = [{"path": str(path), "weight": weight} for path, weight in order]
        outputs.append(tensors_of(merge(tmp_path / f"out{number}", **given, **{kind: sources})))
    for other in outputs[1:]:
        for name, value in outputs[0].items():
            assert torch.equal(other[name], value), name
