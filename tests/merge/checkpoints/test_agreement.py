"""How far models agree: numbers by hand, per kind of tensor, in merge.json and the card."""

import json
import re

import pytest
import torch
from checkpoint_cases import llama, lora, merge, raw_model, save_model

NAMES = [f"model.layers.{i}.{part}.weight" for i in range(2) for part in ("mlp.up_proj", "self_attn.q_proj")]


def world(tmp_path):
    """Updates of b that are -1, 0 (half of the entries) or .5 times those of a."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(40, 16, generator=generator) for name in [*NAMES, "model.norm.weight"]}
    update = {name: 0.1 * torch.randn(40, 16, generator=generator) for name in base}
    factors = {"mlp": -1.0, "self_attn": 0.5, "norm": 0.0}
    other = {name: next(f for part, f in factors.items() if part in name) * u for name, u in update.items()}
    raw_model(tmp_path / "base", base)
    raw_model(tmp_path / "a", {name: base[name] + u for name, u in update.items()})
    raw_model(tmp_path / "b", {name: base[name] + u for name, u in other.items()})
    return base, update


def lineage(out):
    return json.loads((out / "merge.json").read_text())


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "slerp"])
def test_differences_to_a_base(tmp_path, method):
    base, update = world(tmp_path)
    models = [{"path": str(tmp_path / name)} for name in "ab"]
    out = merge(tmp_path / "out", method=method, models=models, base_model=str(tmp_path / "base"))
    found = lineage(out)["agreement"]
    assert list(found) == ["mlp.up_proj.weight", "self_attn.q_proj.weight"]  # b left the norm alone
    for kind, cosine, factor in (("mlp.up_proj", -1.0, 1.0), ("self_attn.q_proj", 1.0, 0.5)):
        row = found[f"{kind}.weight"]
        names = [name for name in NAMES if kind in name]
        size = sum((update[n].norm() / base[n].norm()).item() for n in names) / len(names)
        assert row["tensors"] == 2 and row["cosine"] == pytest.approx(cosine, abs=1e-4)
        assert row["opposite"] == pytest.approx(1.0 if cosine < 0 else 0.0, abs=1e-4)
        assert row["distance"] == pytest.approx(size * (1 + factor) / 2, rel=1e-3)
    card = (out / "README.md").read_text()
    assert re.search(r"^\| mlp\.up_proj\.weight \| 2 \| -1 \| 1 \| [\d.]+ \|  \|$", card, re.MULTILINE)
    assert re.search(r"^\| self_attn\.q_proj\.weight \| 2 \| 1 \| 0 \| ", card, re.MULTILINE)


def test_models_without_a_base_and_fishers_at_the_floor(tmp_path):
    base, update = world(tmp_path)
    models = []
    for name in "ab":
        fisher = {key: torch.ones_like(value) for key, value in base.items()}
        fisher["model.norm.weight"][:10] = 1e-9
        raw_model(tmp_path / f"fisher-{name}", fisher)
        models.append({"path": str(tmp_path / name), "fisher": str(tmp_path / f"fisher-{name}")})
    found = lineage(merge(tmp_path / "out", method="fisher", models=models))["agreement"]
    assert found["model.norm.weight"]["clamped"] == 0.25
    name = NAMES[0]
    a, b = base[name] + update[name], base[name] - update[name]
    apart = ((a - b).norm() / (a.norm() * b.norm()).sqrt()).item()
    assert found["mlp.up_proj.weight"]["distance"] == pytest.approx(apart, rel=0.05)
    assert found["mlp.up_proj.weight"]["clamped"] == 0 and found["mlp.up_proj.weight"]["cosine"] > 0.95


def test_adapters_bring_their_own_report(tmp_path):
    base = save_model(tmp_path / "base", llama())
    adapters = [{"path": str(lora(tmp_path / n, llama(), seed=i))} for i, n in enumerate("ab", 1)]
    out = merge(tmp_path / "out", into="model", base_model=str(base), adapters=adapters, method="linear")
    report = lineage(out)["adapters"]
    assert len(report["modules"]) == 4 and report["identities"]["linear"] < 1e-6
    cosines = [v["lowest_cosine"] for name, v in report["modules"].items() if "q_proj" in name]
    row = re.search(r"^\| self_attn\.q_proj \| 2 \| (\S+) \|", (out / "README.md").read_text(), re.MULTILINE)
    assert row and float(row[1]) == pytest.approx(sum(cosines) / 2, rel=1e-2)
