"""``rank: auto``, the default: nothing is cut where the method's result is exact in factors, and all of it is told."""

import json

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, peft_deltas, tiny_llama

from vlora.config import load_config
from vlora.errors import IncompatibleAdaptersError
from vlora.merge import METHODS, MergeConfig, merge_adapters, run_merge
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.merge.plan.plan import make_adapter_plan
from vlora.merge.plan.text import render_adapters
from vlora.merge.run import merge_with_report
from vlora.posterior import Posterior

EXACT = ["linear", "slerp", "task_arithmetic", "tsv", "iso_c", "regmean", "gradient_matching"]
CUT = ["ties", "dare_linear", "dare_ties", "della", "fisher", "mats"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of rank 2 with h and all three Grams."""
    root, made = tmp_path_factory.mktemp("ranks"), []
    for seed, name in enumerate(("math", "code"), 1):
        plain = Posterior.from_pretrained(make_adapter(root / name, seed))
        posterior = add_curvature(add_posterior(plain, seed), 50 * seed)
        inputs = {k: v for k, v in (posterior.curvature or {}).items() if k.endswith("input_gram")}
        posterior.curvature.update({k.replace("input", "activation"): v for k, v in inputs.items()})
        posterior.save_pretrained(root / name)
        made.append(root / name)
    return made


@pytest.fixture(scope="module")
def pair(folders):
    return [Posterior.from_pretrained(folder) for folder in folders]


def config(folders, output, **given):
    values = {"adapters": [{"path": str(f)} for f in folders], "output": str(output), **given}
    return load_config(MergeConfig, values)


def test_every_method_is_one_of_the_two():
    assert sorted([*EXACT, *CUT]) == sorted(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_lossless_where_that_exists_and_else_the_rank_of_the_inputs(pair, method):
    merged, report = merge_with_report(pair, method=method)
    same = merge_adapters(pair, method=method, rank="lossless" if method in EXACT else "keep")
    assert all(torch.equal(value, same.mean[key]) for key, value in merged.mean.items())
    assert {row["rank"] for row in report.modules.values()} == {4 if method in EXACT else 2}
    if method in EXACT:
        assert report.rank_summary == "4 = 2 x 2, nothing cut; `rank: keep` would cut to 2"
        assert all(row["exact"] for row in report.modules.values())
    elif method == "fisher":  # fitted at its rank, not cut from something larger
        assert report.rank_summary == "2 from 2 x 2"
    else:
        energy = "curvature-weighted energy" if method == "mats" else "energy"
        assert report.rank_summary.startswith("2 from 2 x 2, ")
        assert report.rank_summary.endswith(f"% of the {energy} retained")
    assert report.to_json()["rank_summary"] == report.rank_summary and report.rank == "auto"


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({"curvature": "separable"}, 2),
        ({"curvature": "isotropic"}, 4),
        ({"method": "ties", "space": "core"}, 4),
        ({"method": "dare_ties", "space": "knots"}, 4),
    ],
)
def test_it_looks_at_the_options_too(pair, options, rank):
    _, report = merge_with_report(pair, **options)
    assert {row["rank"] for row in report.modules.values()} == {rank}


def test_a_frozen_a_does_not_grow(tmp_path):
    plain = [Posterior.from_pretrained(make_adapter(tmp_path / n, s)) for s, n in enumerate("ab", 1)]
    for key, value in plain[0].mean.items():
        if "lora_A" in key:
            plain[1].mean[key] = value.clone()
    frozen = [add_posterior(p, seed, frozen_a=True) for seed, p in enumerate(plain)]
    for method in ("gradient_matching", "task_arithmetic", "fisher"):
        _, report = merge_with_report(frozen, method=method)
        assert report.rank_summary == "2 from 2 x 2, nothing cut"


def test_uneven_ranks_are_no_obstacle(tmp_path):
    ranks = {"narrow": 1, "wide": 3}
    inputs = [
        Posterior.from_pretrained(make_adapter(tmp_path / n, r, r=r, lora_alpha=2)) for n, r in ranks.items()
    ]
    _, report = merge_with_report(inputs, method="ties")
    assert {row["rank"] for row in report.modules.values()} == {3}
    _, report = merge_with_report(inputs, method="linear")
    assert report.rank_summary == "4 = 1 + 3, nothing cut"
    with pytest.raises(IncompatibleAdaptersError, match="rank: keep needs equal ranks"):
        merge_adapters(inputs, method="ties", rank="keep")


def test_it_is_told_and_peft_loads_it(folders, tmp_path, capfd):
    done = run_merge(config(folders, tmp_path / "whole", method="task_arithmetic"))
    told = "rank 4 = 2 x 2, nothing cut; `rank: keep` would cut to 2 ("
    assert told in capfd.readouterr().err
    parts, found = [peft_deltas(folder) for folder in folders], peft_deltas(done)
    for name, delta in found.items():
        torch.testing.assert_close(delta, parts[0][name] + parts[1][name], rtol=1e-5, atol=1e-5)
    run_merge(config(folders, tmp_path / "kept", rank="keep"))
    told = capfd.readouterr().err
    assert "note: rank: keep retains " in told and "curvature-weighted energy of the merged update" in told
    assert "rank 2 from 2 x 2, " in told and "% of the curvature-weighted energy retained (" in told
    report = json.loads((tmp_path / "kept" / "merge_report.json").read_text())
    assert (report["rank"], report["rank_summary"][:12]) == ("keep", "2 from 2 x 2")


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_says_the_same_before(folders, pair, method):
    plan = make_adapter_plan(config(folders, folders[0].parent / "out", method=method))
    _, report = merge_with_report(pair, method=method, verify=False)
    assert plan.problems == []
    assert {m: row["rank"] for m, row in plan.modules.items()} == {
        m: row["rank"] for m, row in report.modules.items()
    }
    if method in EXACT:
        assert plan.rank_summary == report.rank_summary
    else:
        known = "" if method == "fisher" else "; what it retains is in the report of the merge"
        assert plan.rank_summary == f"2 from 2 x 2{known}"
    assert f"rank       {plan.rank_summary}" in render_adapters(plan)
    assert plan.to_json()["rank_summary"] == plan.rank_summary


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "mats"}, "2 from 2 x 2, "),
        ({"curvature": "separable"}, "2 from 2 x 2"),
        ({"method": "fisher", "rank": "auto"}, "2 from 2 x 2"),
        ({"method": "linear"}, "4 = 2 x 2, nothing cut"),
    ],
)
def test_into_a_model_no_method_needs_a_rank(folders, tmp_path, options, told):
    tiny_llama().save_pretrained(tmp_path / "base")
    values = {
        "into": "model",
        "base_model": str(tmp_path / "base"),
        "output": str(tmp_path / "out"),
        **options,
    }
    values["adapters"] = [{"path": str(folder)} for folder in folders]
    done = run_model_merge(load_config(ModelMergeConfig, values))
    report = json.loads((done / "merge.json").read_text())["adapters"]
    assert report["rank_summary"].startswith(told)
