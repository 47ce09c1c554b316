"""``vlora merge compare``: numbers against dense updates, and the tables."""

import json
import math

import pytest
from merge_cases import make_adapter, peft_deltas

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge import MergeConfig, run_merge
from vlora.merge.report.compare import compare
from vlora.posterior import Posterior
from vlora.recipes.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    inputs = [make_adapter(root / name, seed) for seed, name in enumerate("ab", 1)]
    for method in ("task_arithmetic", "ties"):
        values = {
            "adapters": [{"path": str(f)} for f in inputs],
            "output": str(root / method),
            "method": method,
        }
        run_merge(load_config(MergeConfig, values))
    return [str(root / name) for name in ("a", "task_arithmetic", "ties")]


def test_numbers_are_those_of_the_dense_updates(folders):
    facts = compare(folders)
    dense = [peft_deltas(folder) for folder in folders]
    squares = [sum(d.square().sum().item() for d in deltas.values()) for deltas in dense]
    for adapter, square in zip(facts["adapters"], squares, strict=True):
        assert adapter["norm"] == pytest.approx(math.sqrt(square), rel=1e-5)
    pair = facts["pairs"][1]
    assert pair["between"] == ["a", "ties"]
    product = sum((dense[0][m] * dense[2][m]).sum().item() for m in dense[0])
    sizes = math.sqrt(squares[0] * squares[2])
    assert pair["cosine"] == pytest.approx(product / sizes, rel=1e-4)
    assert pair["distance"] == pytest.approx(
        math.sqrt((squares[0] + squares[2] - 2 * product) / sizes), rel=1e-4
    )
    module = next(iter(facts["modules"]))
    gap = (dense[1][module] - dense[2][module]).norm().item()
    between = math.sqrt(dense[1][module].norm().item() * dense[2][module].norm().item())
    assert facts["modules"][module]["pairs"][2]["distance"] == pytest.approx(gap / between, rel=1e-4)
    worst = max(facts["modules"], key=lambda m: facts["modules"][m]["pairs"][1]["distance"])
    assert pair["furthest_module"] == worst


def test_merges_bring_their_report(folders):
    plain, summed, ties = compare(folders)["adapters"]
    assert "method" not in plain and plain["kind"] == "plain adapter" and plain["rank"] == 2
    assert summed["method"] == "task_arithmetic" and summed["weights"] == {"a": 1.0, "b": 1.0}
    assert 0 < ties["retained_energy"] < 1
    assert set(ties["predicted_increase"]) == {"a", "b"}


def test_the_same_update_is_at_distance_0(folders):
    (pair,) = compare([folders[0], folders[0]])["pairs"]
    assert pair["between"] == ["a #1", "a #2"]
    assert pair["cosine"] == pytest.approx(1.0) and pair["distance"] == pytest.approx(0.0, abs=1e-7)


def test_the_command(folders, capsys):
    for words in (["--json"], [], ["--modules"]):
        try:
            main(["merge", "compare", *folders, *words])
        except SystemExit as stop:
            assert not stop.code
        out = capsys.readouterr().out
        if words == ["--json"]:
            assert json.loads(out)["pairs"] == json.loads(json.dumps(compare(folders)["pairs"]))
        else:
            assert "a 1, b 1" in out and "task_arithmetic / ties" in out and "worst increase ties" in out
            assert out.count("down_proj") >= 2


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="two or more"):
        compare(folders[:1])
    other = make_adapter(tmp_path / "other", 3)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "tiny/else"}))
    with pytest.raises(
        IncompatibleAdaptersError, match="'a' was trained on 'tiny/base' and 'other' on 'tiny/else'"
    ):
        compare([folders[0], str(other)])
    posterior = Posterior.from_pretrained(folders[0])
    key = next(k for k in posterior.mean if "lora_B" in k)
    posterior.mean[key] = posterior.mean[key][:5]  # type: ignore[index]
    posterior.save_pretrained(tmp_path / "short")
    with pytest.raises(IncompatibleAdaptersError, match="trained on other architectures"):
        compare([folders[0], str(tmp_path / "short")])
