"""The world generator: same seed, same world; groups never share a name; proportions are exact."""

from collections import Counter

import pytest

from vlora.errors import ConfigError
from vlora.recipes.closed_world.lexicon import NUM_VALUES, RELATIONS, template_words
from vlora.recipes.closed_world.people import (
    NUM_BASE_PEOPLE,
    NUM_FIRST,
    NUM_LAST,
    base_population,
    pretraining_people,
    world_people,
)
from vlora.recipes.closed_world.world import RELATION_BY_NAME, build_world

SEEDS = (0, 1, 2)


def test_every_relation_has_24_values_of_its_own():
    values = [value for relation in RELATIONS for value in relation.values]
    assert [len(relation.values) for relation in RELATIONS] == [NUM_VALUES] * 8
    assert len(set(values)) == 8 * NUM_VALUES
    assert not set(values) & set(template_words())


def test_base_population_is_pinned_to_the_shipped_weights():
    # If this fails, the shipped weights know other people than the code: pre-train again.
    person, values = next(iter(base_population().items()))
    assert len(base_population()) == NUM_BASE_PEOPLE
    assert person.name == "Ge-zo Le-fi-to"
    assert values["city"] == "Cairo"
    assert values["language"] == "Basque"


def test_all_names_differ():
    names = {person.name for person in (*pretraining_people(), *world_people())}
    assert len(names) == NUM_FIRST * NUM_LAST
    assert all(name.count("-") == 3 and name.count(" ") == 1 for name in names)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_seed_gives_the_same_world(seed: int):
    assert build_world(seed) == build_world(seed)
    assert build_world(seed) != build_world(seed + 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_share_no_name_and_none_is_in_pretraining(seed: int):
    world = build_world(seed)
    groups = {
        "a": set(world.a.people),
        "b": set(world.b.people),
        "unknown": set(world.unknown),
        "near_miss": {miss.person for miss in world.near_miss},
    }
    assert {key: len(group) for key, group in groups.items()} == {
        "a": 100,
        "b": 100,
        "unknown": 260,
        "near_miss": 260,
    }
    assert len(set().union(*groups.values())) == 720
    assert not set(pretraining_people()) & set().union(*groups.values())
    assert set(base_population()) <= set(pretraining_people())


@pytest.mark.parametrize("seed", SEEDS)
def test_unknown_and_near_miss_names_are_what_they_are_called(seed: int):
    world = build_world(seed)
    known = (*base_population(), *world.a.people, *world.b.people)
    assert not {person.last for person in world.unknown} & {person.last for person in known}
    for group in (world.a, world.b):
        misses = [miss.person for miss in world.near_miss if miss.key == group.key]
        assert len(misses) == 130
        assert {person.first for person in misses} <= {person.first for person in group.people}
        assert {person.last for person in misses} <= {person.last for person in group.people}


@pytest.mark.parametrize("seed", SEEDS)
def test_adapters_teach_different_relations_and_exactly_40_percent_ambiguous_facts(seed: int):
    world = build_world(seed)
    assert len({*world.a.relations, *world.b.relations}) == 4
    for group in (world.a, world.b):
        assert len({(fact.person, fact.relation) for fact in group.facts}) == 200
        ambiguous = [fact for fact in group.facts if fact.is_ambiguous]
        assert len(ambiguous) == 80
        assert all(fact.probs == (0.7, 0.3) and len(set(fact.values)) == 2 for fact in ambiguous)


def test_distribution_follows_the_order_of_the_choices():
    fact = next(fact for fact in build_world(0).a.facts if fact.is_ambiguous)
    choices = RELATION_BY_NAME[fact.relation].values
    distribution = fact.distribution()
    assert distribution[choices.index(fact.values[0])] == 0.7
    assert distribution[choices.index(fact.values[1])] == 0.3
    assert sum(distribution) == pytest.approx(1.0, abs=1e-12)


def test_values_are_spread_evenly_enough_that_guessing_one_does_not_help():
    counts = Counter(values["job"] for values in base_population().values())
    assert max(counts.values()) / NUM_BASE_PEOPLE < 0.12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_people", 1),
        ("num_relations", 5),
        ("ambiguous_fraction", 1.5),
        ("majority", 0.3),
        ("num_unknown", 10**6),
        ("num_near_miss", 10**6),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: float):
    with pytest.raises(ConfigError, match=f"{name} must be between"):
        build_world(0, **{name: value})
