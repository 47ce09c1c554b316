"""Taking a contributor out of a merge of one lineage: from the ledger, by subtraction, and what is refused."""

import shutil

import pytest
import torch
from lineage_cases import go_on, make_ancestor

from vlora.config import load_config
from vlora.errors import ConfigError, IncompatibleAdaptersError
from vlora.merge import MergeConfig, merge_adapters, remove_adapter, remove_contributors, run_merge
from vlora.posterior import Posterior

NAMES = ("math", "code", "law")


@pytest.fixture
def folder(tmp_path):
    ancestor = make_ancestor(tmp_path)
    for seed, name in enumerate(NAMES, 2):
        go_on(ancestor, seed, num_examples=50 * seed).save_pretrained(tmp_path / name)
    return tmp_path


def merge(folder, names=NAMES, output="m", **settings):
    adapters = [{"path": str(folder / name)} for name in names]
    values = {"adapters": adapters, "ancestor": str(folder / "ancestor"), "output": str(folder / output)}
    return run_merge(load_config(MergeConfig, {**values, **settings}))


def assert_close(first, second, rtol=0.0):
    one, two = Posterior.from_pretrained(first), Posterior.from_pretrained(second)
    for name in ("mean", "hess"):
        for key, value in getattr(one, name).items():
            torch.testing.assert_close(value, getattr(two, name)[key], rtol=rtol, atol=rtol)
    assert one.meta.num_examples == two.meta.num_examples
    assert one.meta.ess == pytest.approx(two.meta.ess)
    assert one.meta.weight_decay == two.meta.weight_decay or rtol
    assert one.meta.ancestor["sha256"] == two.meta.ancestor["sha256"]


@pytest.mark.parametrize("ledger", ["reference", "full"])
def test_from_the_ledger_it_is_the_merge_of_the_others_to_the_last_bit(folder, ledger):
    merged = merge(folder, ledger=ledger)
    merge(folder, ("math", "law"), "direct")
    if ledger == "full":
        for name in (*NAMES, "ancestor"):
            shutil.rmtree(folder / name)
    done = remove_contributors(merged, ["code"], folder / "out")
    assert (done.way, done.reproduced, done.residual) == ("merged again", True, 0.0)
    assert_close(folder / "out", folder / "direct")
    again = remove_contributors(folder / "out", ["law"], folder / "one")  # and further
    assert again.left == ["math"]


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_without_the_others_it_is_subtracted_up_to_rounding(folder, weight):
    adapters = [{"path": str(folder / n), "weight": weight if n == "code" else 1.0} for n in NAMES]
    merged = merge(folder, adapters=adapters)
    merge(folder, ("math", "law"), "direct")
    shutil.rmtree(folder / "math")
    done = remove_contributors(merged, ["code"], folder / "out")
    assert done.way == "subtracted"
    assert 0 < done.residual < 1e-5
    assert_close(folder / "out", folder / "direct", rtol=1e-5)
    assert [s["name"] for s in Posterior.from_pretrained(folder / "out").meta.sources] == ["math", "law"]


def test_merge_and_removal_in_memory_give_the_other_back(folder):
    ancestor, first, second = (Posterior.from_pretrained(folder / n) for n in ("ancestor", "math", "code"))
    merged = merge_adapters([first, second], ancestor=ancestor)
    left = remove_adapter(merged, second, ancestor=ancestor)
    alone = merge_adapters([first], ancestor=ancestor)
    for key, value in first.mean.items():
        torch.testing.assert_close(left.mean[key], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(left.hess[key], alone.hess[key], rtol=1e-4, atol=1e-5)
    assert left.meta.num_examples == alone.meta.num_examples
    with pytest.raises(IncompatibleAdaptersError, match="its ancestor's data in it; give the ancestor"):
        remove_adapter(merged, second)
    with pytest.raises(IncompatibleAdaptersError, match="the merge has no ancestor in it"):
        remove_adapter(first, second, ancestor=ancestor)


@pytest.mark.parametrize("ledger", ["reference", "none"])
def test_an_ancestor_that_moved_or_changed_is_named(folder, ledger):
    merged = merge(folder, ledger=ledger)
    moved = (folder / "ancestor").rename(folder / "elsewhere")
    with pytest.raises(IncompatibleAdaptersError, match="--source ancestor=FOLDER"):
        remove_contributors(merged, ["code"], folder / "out")
    with pytest.raises(ConfigError, match="is or holds the input"):
        remove_contributors(merged, ["code"], moved, sources={"ancestor": str(moved)}, overwrite=True)
    with pytest.raises(IncompatibleAdaptersError, match="another hash"):
        remove_contributors(merged, ["code"], folder / "out", sources={"ancestor": str(folder / "law")})
    done = remove_contributors(merged, ["code"], folder / "out", sources={"ancestor": str(moved)})
    assert done.reproduced is (True if ledger == "reference" else None)
    merge_ancestor = Posterior.from_pretrained(folder / "out").meta.ancestor
    assert merge_ancestor["sha256"] == Posterior.from_pretrained(moved).meta.mean_sha256


def test_a_merge_without_ancestor_knows_no_such_source(folder):
    adapters = [{"path": str(folder / n)} for n in NAMES]
    values = {"adapters": adapters, "output": str(folder / "m"), "method": "task_arithmetic"}
    merged = run_merge(load_config(MergeConfig, values))
    with pytest.raises(ConfigError, match="no contributor 'ancestor'"):
        remove_contributors(merged, ["code"], folder / "out", sources={"ancestor": str(folder / "ancestor")})
