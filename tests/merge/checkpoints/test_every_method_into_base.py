"""Every method, adapters → base: the model that PEFT makes of the base and the merged adapter of the same settings."""

from dataclasses import replace

import pytest
import torch
from checkpoint_cases import llama, lora, merge, peft_merged, save_model, tensors_of
from merge_cases import add_curvature, add_posterior, gram

from vlora.config import load_config
from vlora.merge import METHODS, MergeConfig, run_merge
from vlora.posterior import Posterior

pytestmark = pytest.mark.filterwarnings("ignore:.*(tie_word_embeddings|tied|save_embedding_layers)")

FULL = 12
"""No module of the model has a higher rank."""
SETTINGS = {
    name: {"method": name, "rank": FULL} for name in METHODS if name not in ("gradient_matching", "mats")
} | {
    "mats": {"method": "mats", "rank": FULL, "tau": 0.5},
    "ties, entries of the dense update": {"method": "ties"},
    "tsv, task_rank": {"method": "tsv", "rank": "lossless", "task_rank": 2},
    "linear, weights per module": {"method": "linear", "module": {"q_proj": 0.3}},
    "gradient_matching": {"method": "gradient_matching"},
    "sites": {"curvature": "sites", "frozen": True},
    "kronecker": {"curvature": "kronecker", "tau": 0.7, "scale": 0.8},
    "kronecker, negative": {"curvature": "kronecker", "second": -0.4},
    "separable": {"curvature": "separable", "rank": FULL},
    "isotropic": {"curvature": "isotropic", "scale": 0.6},
}
SETTINGS |= {
    name: {"method": "gradient_matching", **given} for name, given in SETTINGS.items() if "curvature" in given
}


def full_adapter(folder, seed, frozen):
    """A LoRA adapter with h and all three Grams of every module; ``frozen``: one A for all, without h."""
    lora(folder, llama(), seed)
    plain = Posterior.from_pretrained(folder)
    if frozen:
        first = Posterior.from_pretrained(lora(folder.with_name("start"), llama(), 7))
        plain = replace(plain, mean={**plain.mean, **{k: v for k, v in first.mean.items() if "lora_A" in k}})
    found = add_curvature(add_posterior(plain, seed, frozen_a=frozen), 50 * seed)
    stems = [key.removesuffix(".input_gram") for key in found.curvature if key.endswith(".input_gram")]
    more = {
        f"{stem}.activation_gram": gram(len(found.curvature[f"{stem}.input_gram"]), 300 * seed + i).float()
        for i, stem in enumerate(stems)
    }
    found = replace(found, curvature={**found.curvature, **more})
    meta = replace(found.meta, base_model={"id": str(plain.adapter_config["base_model_name_or_path"])})
    replace(found, meta=meta).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", SETTINGS)
def test_the_model_is_the_base_with_the_merged_adapter(tmp_path, case):
    given = dict(SETTINGS[case])
    frozen, module, second = (given.pop(key, None) for key in ("frozen", "module", "second"))
    base = save_model(tmp_path / "base", llama())
    adapters = [
        {"path": str(full_adapter(tmp_path / name, seed, bool(frozen))), "weight": weight}
        for seed, (name, weight) in enumerate((("a", 1.0), ("b", second or 0.6)), 1)
    ]
    adapters[0] |= {"module_weights": module} if module else {}
    apart = given if "rank" in given or given["method"] != "ties" else {**given, "rank": FULL}
    adapter = run_merge(
        load_config(MergeConfig, {"adapters": adapters, "output": str(tmp_path / "m"), **apart})
    )
    expected, start = peft_merged(llama(), adapter), tensors_of(base)
    found = tensors_of(
        merge(tmp_path / "out", into="model", base_model=str(base), adapters=adapters, **given)
    )
    assert found.keys() == start.keys()
    changed = {key for key in found if not torch.equal(found[key], start[key])}
    assert len(changed) == 4 and all("q_proj" in key or "down_proj" in key for key in changed)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=2e-5, atol=2e-6)
