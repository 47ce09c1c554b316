"""``report.html`` of merges that write a model."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file

from vlora.recipes.cli import main
from vlora.recipes.merge_model_page import model_merge_page

OUTSIDE = ("http", "<script", "src=", "@import", "url(")


def outcome(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def models(root, count=3, spoil=None):
    base = {}
    for layer in range(3):
        for kind in ("q_proj", "mlp.up"):
            base[f"model.layers.{layer}.{kind}.weight"] = torch.randn(
                24, 16, generator=torch.Generator().manual_seed(layer)
            )
    folders = []
    for number in range(count):
        folder = root / f"m{number}"
        folder.mkdir()
        noise = torch.Generator().manual_seed(100 + number)
        tensors = {k: v + 0.1 * number * torch.randn(v.shape, generator=noise) for k, v in base.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        values = {"model_type": "llama", "tie_word_embeddings": False, "rope_theta": 1e4 * (1 + number)}
        (folder / "config.json").write_text(json.dumps(values))
        folders.append(str(folder))
    return folders


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("hashed", [False, True])
def test_the_page_of_a_streamed_merge(tmp_path, hashed):
    base, *others = models(tmp_path)
    entries = [{"path": p, "name": f"<b>{i}", "weight": 0.5 + i} for i, p in enumerate(others)]
    config = write(
        tmp_path / "c.yaml",
        models=entries,
        base_model=base,
        method="ties",
        density=0.4,
        hash_inputs=hashed,
        allow_config_differences=["rope_theta"],
        output=str(tmp_path / "out"),
    )
    assert outcome("merge", config) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    told = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert "<h1>Merge by ties</h1>" in page and "Yadav et al." in page
    assert not any(text in page for text in (*OUTSIDE, "<b>0"))
    for source in told["inputs"]:
        digests = list(source["file_sha256"].values()) if hashed else [source["weights_fingerprint"]]
        assert all(f'title="{digest}">{digest[:16]}<' in page for digest in digests)
    assert "&lt;b&gt;1" in page and ">1.5<" in page and "density" in page
    assert "10000.0 in base, 20000.0 in &lt;b&gt;0" in page
    assert page.count("<rect") == 2 * 6  # opposite signs and distances of six tensors
    kind = told["agreement"]["q_proj.weight"]
    assert f"<td>{kind['cosine']:.3g}</td>" in page and f"<td>{kind['opposite']:.3g}</td>" in page
    assert "6 Ties" in page and "Golden identities" in page
    for note in told["notes"]:
        assert note[:20].replace("'", "&#39;") in page


def test_the_page_is_the_same_after_a_run_that_was_killed(tmp_path, monkeypatch):
    """Findings of the tensors that were there already come from the journal."""
    from vlora.merge.checkpoints import engine

    base, *others = models(tmp_path)
    values = {
        "models": [{"path": p} for p in others],
        "base_model": base,
        "method": "task_arithmetic",
        "allow_config_differences": ["rope_theta"],
        "threads": 1,
    }
    assert outcome("merge", write(tmp_path / "a.yaml", **values, output=str(tmp_path / "a"))) == 0
    original, calls = engine.Engine.run, []

    def killed(self, jobs, shards, finished):
        calls.append(len(jobs))
        original(self, jobs[:4] if len(calls) == 1 else jobs, shards, finished)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine.Engine, "run", killed)
    config = write(tmp_path / "b.yaml", **values, output=str(tmp_path / "b"))
    assert outcome("merge", config) != 0 and not (tmp_path / "b").exists()
    assert outcome("merge", config) == 0 and calls == [6, 2]
    pages = [(tmp_path / name / "report.html").read_text() for name in "ab"]
    assert pages[0] == pages[1]


def test_clamped_fishers_and_adapters_have_their_maps():
    report = {"increase": {"a": 0.2, "b": 0.4}, "disagreement": 0.7, "rank": 4, "clamped_fraction": 0.125}
    content = {
        "method": "gradient_matching",
        "paper": "p",
        "vlora": "1",
        "settings": {"method": "gradient_matching", "adapters": [{"path": "x"}], "dtype": None, "tau": 0.5},
        "inputs": [{"name": "a", "role": "adapter", "path": "x", "weight": -1.0, "mean_sha256": "ab" * 32}],
        "tensors": {"total": 3, "Copy": 2, "AddLowRank": 1},
        "tokenizer": "base",
        "config_differences": {},
        "identities": {},
        "agreement": {"k": {"tensors": 1, "clamped": 0.25}},
        "notes": ["a <note>"],
        "adapters": {
            "modules": {"model.layers.0.q": report},
            "adapters": [{"name": "a"}, {"name": "b"}],
            "conflict": {"a": {"increase": 0.321}},
            "identities": {"modules": ["q"], "tolerance": 1e-6, "single": 2e-9, "written": 0.0},
        },
    }
    page = model_merge_page(content, {"layers.0.k": {"clamped": 0.25}, "layers.1.k": {}})
    assert "a &lt;note&gt;" in page and "0.321" in page and "2.0e-09" in page and "tau" in page
    assert page.count("<rect") == 1 + 2 + 1  # clamped; increase of two adapters; disagreement
    assert "Share that was clamped" in page and "Share of entries of opposite sign: paper" not in page
    assert ">-1<" in page and "0.125" in page
    assert re.search(r'<code title="(ab){32}">', page)
