"""Golden identities on the actual inputs: they hold for every method, and catch what other tools got wrong."""

import json
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, make_update

import vlora.merge.in_memory as in_memory
from vlora.config import load_config
from vlora.errors import IdentityError
from vlora.merge import METHODS, MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.identities import TOLERANCE, check_written, chosen_modules
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.low_rank.algebra import relative_difference
from vlora.merge.run import merge_with_report
from vlora.posterior import Posterior


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("identities")
    return [make_adapter(root / name, seed) for seed, name in enumerate("ab", 1)]


@pytest.fixture(scope="module")
def pair(folders):
    plain = [Posterior.from_pretrained(folder) for folder in folders]
    full = [add_curvature(add_posterior(p, seed), 50 * seed) for seed, p in enumerate(plain, 1)]
    for posterior in full:  # the same matrices serve as activation Grams
        grams = {
            k.replace("input_gram", "activation_gram"): v for k, v in posterior.curvature.items() if "in" in k
        }
        posterior.curvature.update(grams)
    return full


def test_relative_difference_is_that_of_the_dense_matrices():
    first, second = make_update(1, r=3), make_update(20, r=3)
    same = replace(first, b=first.b * 2, scale=first.scale / 2)
    assert relative_difference(same, first) < 1e-15
    assert (
        relative_difference(first, lambda v: second.delta() @ v) == relative_difference(first, second) > 0.1
    )
    zero = replace(first, b=torch.zeros_like(first.b))
    assert relative_difference(zero, first) == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_they_hold_for_every_method(pair, name):
    _, report = merge_with_report(pair, method=name, weights=[0.4, 1.2], rank="keep")
    found = report.identities
    assert found["modules"] == chosen_modules(read_inputs(pair, ["a", "b"])) and len(found["modules"]) == 3
    assert found["linear"] < 1e-13
    assert found["permutation"] < TOLERANCE
    assert found["written"] < 1e-6  # float32
    if METHODS[name].single == "changed":
        assert "changes a single adapter" in found["single"]
    else:
        assert found["single"] < 1e-9


def test_a_factor_on_the_sum_is_part_of_the_identity(pair):
    _, report = merge_with_report(pair, method="task_arithmetic", scale=0.5, rank="lossless")
    assert report.identities["single"] < 1e-13
    assert merge_with_report(pair[:1])[1].identities["permutation"] == "one adapter only"


def test_twice_the_scaling_is_caught(pair, monkeypatch):
    """The defect of PEFT's svd combinations before 0.21.2."""
    honest = METHODS["task_arithmetic"]

    def twice(updates, weights, **options):
        done = honest.function(updates, weights, **options)
        return replace(done, update=replace(done.update, scale=done.update.scale * updates[0].scale))

    monkeypatch.setitem(METHODS, "task_arithmetic", replace(honest, function=twice))
    with pytest.raises(
        IdentityError, match=r"'single' fails in adapter 0, model.*difference 2, expected at most"
    ) as e:
        merge_adapters(pair, method="task_arithmetic")
    assert "\n" not in str(e.value)
    assert merge_adapters(pair, method="task_arithmetic", verify=False).mean


def test_a_method_that_looks_at_the_order_is_caught(pair, monkeypatch):
    first_only = replace(METHODS["ties"], function=lambda u, w, **_: METHODS["linear"].function(u[:1], w[:1]))
    monkeypatch.setitem(METHODS, "ties", first_only)
    with pytest.raises(IdentityError, match="'permutation' fails in model"):
        merge_adapters(pair, method="ties")


def test_a_lost_alpha_is_caught(pair):
    update = read_inputs(pair, ["a", "b"]).update(0, chosen_modules(read_inputs(pair[:1], ["a"]))[0])
    assert check_written(pair[0], {update.module: update}) < 1e-7
    wrong = replace(pair[0], adapter_config={**pair[0].adapter_config, "lora_alpha": 7})
    with pytest.raises(IdentityError, match="'written' fails in model"):
        check_written(wrong, {update.module: update})


def test_nothing_is_written_when_one_fails(folders, tmp_path, monkeypatch):
    values = {
        "adapters": [{"path": str(f)} for f in folders],
        "output": str(tmp_path / "out"),
        "method": "linear",
    }
    run_merge(load_config(MergeConfig, values))
    told = json.loads((tmp_path / "out/merge_report.json").read_text())["identities"]
    assert told["linear"] < told["tolerance"] == TOLERANCE

    def fail(*_):
        raise IdentityError("golden identity")

    monkeypatch.setattr(in_memory, "check_before", fail)
    with pytest.raises(IdentityError, match="golden identity"):
        run_merge(load_config(MergeConfig, {**values, "output": str(tmp_path / "second")}))
    assert not (tmp_path / "second").exists()
    run_merge(load_config(MergeConfig, {**values, "output": str(tmp_path / "second"), "verify": False}))
    assert json.loads((tmp_path / "second/merge_report.json").read_text())["identities"] == {}
