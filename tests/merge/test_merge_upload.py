"""What a merge writes goes to the hub by the ordinary means, and what comes back from there is whole."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from merge_cases import add_curvature, add_posterior, make_adapter, peft_deltas, tiny_llama

from vlora.config import load_config
from vlora.merge import MergeConfig, run_merge
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.posterior import Posterior


class Repository:
    """The hub's side of an upload: files arrive here, the card is parsed, and all of it can be had again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cards = folder, []

    def upload(self, _api, *, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, self.folder)
        self.cards.append(ModelCard.load(self.folder / "README.md").data)
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    repository = Repository(tmp_path / "hub")
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **given: repository.upload(api, **given))
    monkeypatch.setattr(
        HfApi, "create_repo", lambda api, repo_id, **k: type("Repo", (), {"repo_id": repo_id})()
    )
    return repository


@pytest.fixture
def adapters(tmp_path):
    made = []
    for seed, name in enumerate(("math", "code"), 1):
        folder = make_adapter(tmp_path / name, seed)
        add_curvature(
            add_posterior(Posterior.from_pretrained(folder), seed), 10 * seed
        ).save_pretrained(folder)  # fmt: skip
        made.append({"path": str(folder)})
    return made


@pytest.mark.parametrize("ledger", ["reference", "full"])
def test_a_merged_adapter_with_all_that_lies_beside_it(tmp_path, adapters, hub, ledger):
    given = {"adapters": adapters, "output": str(tmp_path / "out"), "ledger": ledger}
    folder = run_merge(load_config(MergeConfig, given))
    HfApi().upload_folder(repo_id="me/merged", folder_path=folder)
    sent = {p.relative_to(hub.folder) for p in hub.folder.rglob("*") if p.is_file()}
    assert sent == {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    assert {Path("merge_report.json"), Path("merge_ledger.json"), Path("posterior.json")} <= sent
    assert hub.cards[0].base_model == "tiny/base" and hub.cards[0].library_name == "peft"
    assert str(tmp_path) not in (hub.folder / "README.md").read_text()
    back, mine = Posterior.from_pretrained(hub.folder), Posterior.from_pretrained(folder)
    assert all(torch.equal(value, back.mean[key]) for key, value in mine.mean.items())
    assert back.has_hess and back.curvature and peft_deltas(hub.folder)


def test_a_merged_posterior_from_python(tmp_path, adapters, hub):
    given = {"adapters": adapters, "output": str(tmp_path / "out")}
    merged = Posterior.from_pretrained(run_merge(load_config(MergeConfig, given)))
    assert merged.push_to_hub("me/merged").endswith("me/merged/commit/1")
    back = Posterior.from_pretrained(hub.folder)
    assert back.meta.sources == merged.meta.sources and back.hess.keys() == merged.hess.keys()


def test_a_merged_model(tmp_path, adapters, hub):
    from transformers import AutoModelForCausalLM

    tiny_llama().save_pretrained(tmp_path / "base")
    given = {
        "into": "model", "base_model": str(tmp_path / "base"), "adapters": adapters, "output": str(tmp_path / "out"),
        "max_shard_size": "5KB",
    }  # fmt: skip
    folder = run_model_merge(load_config(ModelMergeConfig, given))
    HfApi().upload_folder(repo_id="me/model", folder_path=folder)
    (card,) = hub.cards
    assert (
        card.library_name == "transformers" and card.base_model is None
    )  # a path is no id: the hub refuses it
    mine = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    back = AutoModelForCausalLM.from_pretrained(hub.folder).state_dict()
    assert len(list(hub.folder.glob("*.safetensors"))) > 1 and all(
        torch.equal(value, back[key]) for key, value in mine.items()
    )
