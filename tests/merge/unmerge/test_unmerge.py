"""Taking a contributor out of a merge: to the last bit from the ledger, with an honest residual without it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, peft_deltas

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError, PosteriorFormatError
from vlora.merge import MergeConfig, remove_contributors, run_merge
from vlora.posterior import Posterior
from vlora.recipes.cli import main

NAMES = ("math", "code", "law")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three posteriors with curvature, and three that share one frozen A."""
    root = tmp_path_factory.mktemp("unmerge")
    frozen = None
    for seed, name in enumerate(NAMES, 1):
        plain = Posterior.from_pretrained(make_adapter(root / "plain" / name, seed))
        add_curvature(add_posterior(plain, seed), 50 * seed).save_pretrained(root / "free" / name)
        frozen = frozen or plain
        mean = {k: frozen.mean[k] if "lora_A" in k else v for k, v in plain.mean.items()}
        add_posterior(replace(plain, mean=mean), seed, frozen_a=True).save_pretrained(root / "frozen" / name)
    return root


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def merge(folder, kind, names=NAMES, output="m", **settings):
    adapters = [{"path": str(folder / kind / name)} for name in names]
    values = {"adapters": adapters, "output": str(folder / output), **settings}
    return run_merge(load_config(MergeConfig, values))


def assert_same_bits(first, second):
    one, two = Posterior.from_pretrained(first), Posterior.from_pretrained(second)
    for name in ("mean", "hess", "curvature"):
        ours, theirs = getattr(one, name) or {}, getattr(two, name) or {}
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert one.meta.ess == two.meta.ess and one.meta.num_examples == two.meta.num_examples
    assert one.meta.weight_decay == two.meta.weight_decay


@pytest.mark.parametrize("kind", ["frozen", "free"])
def test_of_two_the_other_comes_back_to_the_last_bit(folder, kind):
    merged = merge(folder, kind, NAMES[:2])
    assert json.loads((merged / "merge_ledger.json").read_text())["kind"] == "reference"
    done = remove_contributors(merged, ["code"], folder / "out")
    assert (done.way, done.reproduced, done.residual, done.left) == ("merged again", True, 0.0, ["math"])
    assert_same_bits(folder / "out", folder / kind / "math")
    assert "code was taken out of m" in Posterior.from_pretrained(folder / "out").meta.notes[-1]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("frozen", {}),
        ("free", {"rank": "keep", "tau": 0.5}),
        ("free", {"method": "ties", "density": 0.5}),
        ("free", {"method": "dare_ties", "seed": 3}),
        ("free", {"method": "linear", "rank": "lossless"}),
    ],
)
def test_of_three_it_is_the_merge_of_the_other_two(folder, kind, settings):
    remove_contributors(merge(folder, kind, **settings), ["code"], folder / "out")
    merge(folder, kind, ("math", "law"), "direct", **settings)
    assert_same_bits(folder / "out", folder / "direct")


def test_a_full_ledger_needs_no_inputs(folder):
    merged = merge(folder, "free", ledger="full")
    merge(folder, "free", ("math", "law"), "direct")
    shutil.rmtree(folder / "free")
    moved = merged.rename(folder / "elsewhere")
    done = remove_contributors(moved, ["code"], folder / "out")
    assert done.reproduced is True
    assert_same_bits(folder / "out", folder / "direct")
    assert_same_bits(folder / "out/ledger/1-law", moved / "ledger/2-law")
    again = remove_contributors(folder / "out", ["law"], folder / "math")  # and it can be taken apart further
    assert again.left == ["math"]
    assert_same_bits(folder / "math", moved / "ledger/0-math")
    assert peft_deltas(moved)  # the copies do not disturb PEFT


def test_inputs_that_moved_are_named_and_can_be_given(folder):
    merged = merge(folder, "free", method="ties")
    (folder / "free/law").rename(folder / "moved")
    with pytest.raises(
        IncompatibleAdaptersError, match="ties merge is no sum that 'code'.*--source NAME=FOLDER"
    ):
        remove_contributors(merged, ["code"], folder / "out")
    done = remove_contributors(merged, ["code"], folder / "out", sources={"law": str(folder / "moved")})
    assert done.reproduced is True
    shutil.rmtree(folder / "free/code")
    with pytest.raises(
        IncompatibleAdaptersError, match="'law' is not at .* any more; say where it is: --source law="
    ):
        remove_contributors(merged, ["code"], folder / "second")
    assert not (folder / "second").exists()


def test_an_input_that_was_changed_is_not_used(folder):
    merged = merge(folder, "free", method="ties")
    other = Posterior.from_pretrained(folder / "free/law")
    scaled = replace(other, mean={k: 2 * v for k, v in other.mean.items()})
    with pytest.raises(
        IncompatibleAdaptersError, match="'law' is not what was merged: its mean has another hash"
    ):
        scaled.save_pretrained(folder / "free/law")
        shutil.rmtree(folder / "free/code")
        (folder / "free/code").mkdir()
        add_posterior(other, 9).save_pretrained(folder / "free/code", overwrite=True)
        remove_contributors(merged, ["code"], folder / "out")


def relative_error(folder, first, second):
    ours, theirs = peft_deltas(folder / first), peft_deltas(folder / second)
    return max(((ours[m] - theirs[m]).norm() / theirs[m].norm()).item() for m in theirs)


def test_without_a_ledger_a_shared_gauge_is_subtracted_up_to_rounding(folder):
    merged = merge(folder, "frozen", ledger="none")
    assert not (merged / "merge_ledger.json").exists()
    merge(folder, "frozen", ("math", "law"), "direct")
    done = remove_contributors(merged, ["code"], folder / "out")
    assert done.way == "subtracted" and 0 < done.residual < 1e-5
    assert relative_error(folder, "out", "direct") < 1e-5
    assert [s["name"] for s in Posterior.from_pretrained(folder / "out").meta.sources] == ["math", "law"]


@pytest.mark.parametrize("rank", ["lossless", "keep"])
def test_without_a_ledger_a_sum_is_subtracted_and_the_residual_covers_the_truncation(folder, rank):
    settings = {"method": "task_arithmetic", "scale": 0.7}
    merged = merge(folder, "free", ledger="none", rank=rank, **settings)
    merge(folder, "free", ("math", "law"), "direct", rank="lossless", **settings)
    done = remove_contributors(merged, ["code"], folder / "out")
    error = relative_error(folder, "out", "direct")
    if rank == "lossless":
        assert error < 1e-5
        assert Posterior.from_pretrained(folder / "out").adapter_config["r"] == 4
    else:
        assert 0.1 < error <= 2 * done.residual  # |X - sum| against the sum, here against what is left


def test_what_is_no_merge_or_was_changed_is_refused(folder):
    merged = merge(folder, "free")
    for names, message in (
        (["cod"], r"no contributor 'cod'; did you mean 'code'\? contributors: math, code, law"),
        ([], "name at least one contributor"),
        (list(NAMES), "nobody would be left"),
    ):
        with pytest.raises(ConfigError, match=message):
            remove_contributors(merged, names, folder / "out")
    with pytest.raises(ConfigError, match="is not a merge: its posterior.json lists no inputs"):
        remove_contributors(folder / "free/math", ["x"], folder / "out")
    (folder / "model").mkdir()
    (folder / "model/merge.json").write_text("{}")
    with pytest.raises(
        ConfigError, match="is a merged model, which keeps no ledger; .* merge.json has their paths"
    ):
        remove_contributors(folder / "model", ["x"], folder / "out")
    posterior = Posterior.from_pretrained(merged)
    ledger = (merged / "merge_ledger.json").read_text()
    changed = replace(posterior, mean={k: v + 1 for k, v in posterior.mean.items()})
    changed.save_pretrained(merged, extra_files={"merge_ledger.json": ledger})
    with pytest.raises(ConfigError, match="was changed after the merge"):
        remove_contributors(merged, ["code"], folder / "out")
    (merged / "merge_ledger.json").write_text('{"format": 1}')
    with pytest.raises(PosteriorFormatError, match="merge_ledger.json is damaged"):
        remove_contributors(merged, ["code"], folder / "out")
    (merged / "merge_ledger.json").write_text('{"format": 99}')
    with pytest.raises(PosteriorFormatError, match="has format 99, this vlora reads 1"):
        remove_contributors(merged, ["code"], folder / "out")
    (merged / "merge_ledger.json").unlink()
    with pytest.raises(PosteriorFormatError, match="nothing says how the adapters were merged"):
        remove_contributors(merged, ["code"], folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("ledger", ["reference", "full", "none"])
def test_no_input_is_written_to(folder, ledger):
    merged = merge(folder, "free", ledger=ledger)
    places = [folder / "free" / name for name in NAMES] + [merged]
    for place in places:
        before = (place / "adapter_model.safetensors").read_bytes()
        for output, message in ((place, "is or holds the input"), (place / "new", "lies inside the input")):
            with pytest.raises(ConfigError, match=message):
                remove_contributors(merged, ["code"], output, overwrite=True)
        assert (place / "adapter_model.safetensors").read_bytes() == before
        assert not (place / "new").exists()
    moved = (folder / "free/law").rename(folder / "moved")
    with pytest.raises(ConfigError, match="output .*moved is or holds the input"):
        remove_contributors(merged, ["code"], moved, sources={"law": str(moved)}, overwrite=True)


def test_the_command(folder, capsys):
    merged = merge(folder, "frozen", NAMES[:2])
    words = ["merge", "remove", str(merged), "--contributor", "code", "--output", str(folder / "out")]
    main_quietly(words)
    assert capsys.readouterr().out.splitlines() == [
        "took out code, left math: merged again",
        "the ledger gives the merge itself again bit for bit: yes",
        "residual: none, exact",
        f"wrote {folder / 'out'}",
    ]
    for more, message in (
        ([], "already holds a result"),
        (["--overwrite", "--source", "x"], "takes NAME=VALUE"),
    ):
        with pytest.raises(SystemExit):
            main(words + more)
        assert message in capsys.readouterr().err
    main_quietly([*words, "--overwrite"])


def main_quietly(words):
    try:
        main(words)
    except SystemExit as stop:
        assert not stop.code


def test_members_of_a_group_share_its_weight(folder):
    adapters = [{"path": str(folder / "free" / n), "group": "g", "weight": 0.8} for n in NAMES[:2]]
    adapters.append({"path": str(folder / "free/law")})
    config = load_config(
        MergeConfig, {"adapters": adapters, "output": str(folder / "m"), "method": "task_arithmetic"}
    )
    assert config.weights() == [0.4, 0.4, 1.0]
    report = json.loads((run_merge(config) / "merge_report.json").read_text())
    assert [source["weight"] for source in report["adapters"]] == [0.4, 0.4, 1.0]
