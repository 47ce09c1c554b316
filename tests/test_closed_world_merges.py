"""``benchmarks/closed_world``: worlds of four adapters, curvatures taken apart, and the tables of merges by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.closed_world.after_tables import after_differences
from benchmarks.closed_world.linearised import Projected
from benchmarks.closed_world.quartets import quartet, quartet_files
from benchmarks.closed_world.sweep_tables import sweep_table, unlearning_table
from benchmarks.closed_world.ways import APART, METHODS, Way
from benchmarks.closed_world.worlds import BASE_QUESTIONS, questions, read_rows
from vlora.posterior.leading import Leading
from vlora.recipes.closed_world.lexicon import RELATION_NAMES


def test_four_adapters_share_neither_people_nor_relations():
    parts = [part for world in quartet(3) for part in (world.a, world.b)]
    people = [set(part.people) for part in parts]
    assert [len(own) for own in people] == [100] * 4 and len(set.union(*people)) == 400
    assert sorted(name for part in parts for name in part.relations) == sorted(RELATION_NAMES)
    for part in parts:
        assert len(part.facts) == 200
        assert {(f.person, f.relation) for f in part.facts} == {
            (p, r) for p in part.people for r in part.relations
        }


def test_files_of_four_adapters_name_their_own_letter(tmp_path):
    files = quartet_files(3, tmp_path)
    assert quartet_files(3, tmp_path) == files
    worlds = quartet(3)
    taught = {"a": worlds[0].a, "b": worlds[0].b, "c": worlds[1].a, "d": worlds[1].b}
    for key, part in taught.items():
        asked = questions(3, files, key)
        own = [r for r, g in zip(asked.rows, asked.group, strict=True) if g in ("clean", "ambiguous")]
        assert {row["person"] for row in own} == {person.name for person in part.people}
        assert len(own) == 200 and asked.group.count("base") == BASE_QUESTIONS
        strangers = [r for r, g in zip(asked.rows, asked.group, strict=True) if g == "unknown"]
        assert {row["relation"] for row in strangers} == set(part.relations)
        prompts = {row["prompt"] for row in read_rows(files[f"train_{key}"])}
        assert {row["prompt"] for row in own} <= prompts
    whole = questions(3, files, "abcd")
    assert whole.group.count("unknown") == 2 * 260
    assert whole.group.count("clean") + whole.group.count("ambiguous") == 800
    assert {row["relation"] for row in whole.rows} == set(RELATION_NAMES)


def test_what_a_method_sees_of_the_grams():
    gram = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    other = torch.tensor([[5.0, 4.0], [4.0, 6.0]])
    given = {"m.input_gram": gram, "m.output_gram": gram, "m.activation_gram": other}
    seen = {name: way.grams(given) for name, way in APART.items() if way.grams is not None}
    assert torch.equal(seen["diagonal"]["m.input_gram"], torch.diag(torch.tensor([2.0, 3.0])))
    assert torch.equal(seen["unweighted"]["m.input_gram"], other)
    assert torch.equal(seen["unweighted"]["m.output_gram"], gram)
    assert torch.equal(seen["output_only"]["m.input_gram"], torch.eye(2))
    assert torch.equal(seen["output_only"]["m.output_gram"], gram)
    assert set(seen["rank_8_no_output"]) == {"m.input_gram", "m.activation_gram"}
    assert torch.equal(given["m.input_gram"], gram)


def swept(default: tuple[float, float], best: tuple[float, float], scale: float, world: int) -> dict:
    def numbers(taught: float, nll: float) -> dict:
        return {"recall": {"a": taught - 0.1, "b": taught + 0.1, "base": 0.9}, "nll": nll}

    return {
        "world": world,
        "found": {
            "default": {"scale": 1.0, **numbers(*default)},
            "best recall": {"scale": scale, **numbers(*best)},
            "best NLL": {"scale": scale, **numbers(*best)},
        },
    }


def test_gradient_matching_at_its_default_is_compared_with_the_others_at_their_best():
    ways = {"task_arithmetic": Way("sum"), "gradient_matching": METHODS["gradient_matching"]}
    records = {
        f"scales/adamw_{name}_{world}": swept(*numbers, world)
        for world in (0, 1)
        for name, numbers in {
            "task_arithmetic": ((0.5, 1.0), (0.6, 0.9 + 0.1 * world), 0.7),
            "gradient_matching": ((0.8, 0.5), (0.9, 0.4), 1.2),
        }.items()
    }
    table = sweep_table(records, "scales", ways).splitlines()
    assert table[2].split("| ")[1:11] == [
        f"{cell} " for cell in ("AdamW", "sum", "2", "50.0", "90.0", "1.000", "0.70", "60.0", "90.0", "0.950")
    ]
    half = 12.706 * 0.1 / math.sqrt(2) / math.sqrt(2)
    nll = f"-0.450 [{-0.45 - half:+.3f}, {-0.45 + half:+.3f}]"
    assert table[2].endswith(f"| +20.0 [+20.0, +20.0] | {nll} | +30.0 [+30.0, +30.0] |")
    assert table[3].endswith("| 1.20 | 90.0 | 90.0 | 0.400 | — | — | — |")


def test_a_refused_removal_is_counted_and_has_no_recall():
    found = {
        "merge": {"recall": {"a": 0.8, "b": 0.9, "base": 1.0}, "nll": 0.5},
        "gone": {"refused": "indefinite"},
    }
    table = unlearning_table({"unlearning/unlearning_0": {"found": found}}).splitlines()
    assert table[2] == "| merge | 80.0 | 90.0 | 100.0 | 0.500 | — |"
    assert table[3] == "| gone | — | — | — | — | 1 |"


def test_information_after_a_merge_is_paired_with_entropy_of_the_same_merge():
    def scores(entropy: float, information: float) -> dict:
        areas = {
            "entropy": entropy, "entropy_base": entropy, "mutual_information": information,
            "mutual_information_base": information,
        }  # fmt: skip
        return {"auroc": dict.fromkeys(("unknown vs ambiguous", "unknown vs seen"), areas)}

    records = {
        f"posterior/adamw_posterior_{w}": {
            "world": w,
            "scores": {
                "mean": scores(0.6 + 0.1 * w, np.nan),
                "linearised, full": scores(np.nan, 0.8 + 0.1 * w),
            },
        }
        for w in (0, 1)
    }
    (line,) = [row for row in after_differences(records).splitlines() if "Laplace, full |" in row]
    assert line.count("+0.200 [+0.200, +0.200]") == 4


@pytest.mark.parametrize("name", [*METHODS, *APART])
def test_every_way_is_one_that_the_product_knows(name):
    from vlora.merge import METHODS as KNOWN

    way = (METHODS | APART)[name]
    assert set(way.options) <= set(KNOWN[way.method].options)


def test_projected_gradients_give_the_covariance_of_the_directions():
    rng = torch.Generator().manual_seed(0)
    taught = {"u": torch.randn(12, 2, 3, generator=rng), "v": torch.randn(12, 4, generator=rng)}
    asked = {"u": torch.randn(5, 3, 2, 3, generator=rng), "v": torch.randn(5, 3, 4, generator=rng)}
    centred = {key: value - value.mean(1, keepdim=True) for key, value in asked.items()}
    whole = Leading.of([taught], 6)
    batches = [{key: value[rows] for key, value in asked.items()} for rows in (slice(0, 2), slice(2, 5))]
    projected = Projected.of(whole, batches)
    torch.testing.assert_close(projected.covariance(), whole.covariance(centred), rtol=1e-4, atol=1e-5)
    few = replace(whole, vectors=whole.vectors[:, :4], values=whole.values[:4])
    torch.testing.assert_close(projected.covariance(4), few.covariance(centred), rtol=1e-4, atol=1e-5)
    flat = torch.cat([centred["u"].flatten(2), centred["v"]], -1).double()
    vectors = whole.vectors.double()
    known = vectors @ torch.diag(1 / (whole.values + 2.0)) @ vectors.T
    wanted = flat @ (known + (torch.eye(10, dtype=torch.float64) - vectors @ vectors.T) / 2.0) @ flat.mT
    torch.testing.assert_close(projected.covariance(prior=2.0), wanted, rtol=1e-4, atol=1e-5)
