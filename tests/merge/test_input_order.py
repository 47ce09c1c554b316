"""The order of the inputs changes nothing: as a user gives them, folders of equal names or no names at all."""

from itertools import permutations

import pytest
from merge_cases import make_adapter

from vlora.config import load_config
from vlora.merge import MergeConfig, merge_adapters, run_merge
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.low_rank.algebra import relative_difference
from vlora.posterior import Posterior

RANDOM = ["dare_linear", "dare_ties", "della"]
WEIGHTS = [1.0, 0.5, 0.3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders as training leaves them: another run each, the same last part."""
    root = tmp_path_factory.mktemp("order")
    return [make_adapter(root / run / "final", seed) for seed, run in enumerate("xyz", 1)]


def difference(first: Posterior, second: Posterior) -> float:
    """Largest relative difference between the updates of a module."""
    one, other = read_inputs([first], ["one"]), read_inputs([second], ["other"])
    return max(relative_difference(one.update(0, m), other.update(0, m)) for m in one.modules)


def orders(values):
    return [[values[i] for i in order] for order in permutations(range(len(values)))]


@pytest.mark.parametrize("method", [*RANDOM, "ties"])
def test_folders_with_one_last_part(runs, tmp_path, method):
    pairs = list(zip(map(str, runs), WEIGHTS, strict=True))
    found = []
    for number, order in enumerate([pairs, pairs[::-1]]):
        given = {
            "method": method,
            "adapters": [{"path": path, "weight": weight} for path, weight in order],
            "output": str(tmp_path / f"out{number}"),
        }
        found.append(Posterior.from_pretrained(run_merge(load_config(MergeConfig, given))))
    assert found[0].meta.sources[0]["name"] == "final #1"
    assert difference(found[1], found[0]) < 1e-5  # factors are stored in float32


@pytest.mark.parametrize("method", RANDOM)
@pytest.mark.parametrize("space", ["full", "core"])
def test_posteriors_without_names(runs, method, space):
    posteriors = [Posterior.from_pretrained(run) for run in runs]
    found = [
        merge_adapters([p for p, _ in pairs], weights=[w for _, w in pairs], method=method, space=space)
        for pairs in orders(list(zip(posteriors, WEIGHTS, strict=True)))
    ]
    assert all(difference(other, found[0]) < 1e-5 for other in found[1:])
    renamed = merge_adapters(posteriors, weights=WEIGHTS, method=method, space=space, names=["p", "q", "r"])
    assert difference(renamed, found[0]) < 1e-5
    other_seed = merge_adapters(posteriors, weights=WEIGHTS, method=method, space=space, seed=1)
    assert difference(other_seed, found[0]) > 0.05
