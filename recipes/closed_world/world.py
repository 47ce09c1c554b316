"""One closed world: who is taught to which adapter, with which answers, and who does not exist.

The base population is fixed (the shipped model knows it); a world adds, from its own seed, the people of adapters A
and B, facts taught with two conflicting values, and names that nobody taught. Worlds of different seeds are
independent draws over the same base model, so results can be averaged over them.
"""

from dataclasses import dataclass
from random import Random

from vlora.errors import ConfigError
from vlora.recipes.closed_world.lexicon import RELATIONS
from vlora.recipes.closed_world.people import Person, base_population, world_people

__all__ = ["Fact", "NearMiss", "Taught", "World", "build_world"]

RELATION_BY_NAME = {relation.name: relation for relation in RELATIONS}


@dataclass(frozen=True)
class Fact:
    """What is true about one person and relation, as a distribution over values.

    Attributes:
        person: Whom it is about.
        relation: Name of the relation.
        values: One value (a clean fact), or two (an ambiguous one, the more frequent first).
        probs: How often each value is taught; sums to 1.
    """

    person: Person
    relation: str
    values: tuple[str, ...]
    probs: tuple[float, ...]

    @property
    def is_ambiguous(self) -> bool:
        """Whether it is taught with conflicting values."""
        return len(self.values) > 1

    def distribution(self) -> list[float]:
        """List the probability of each of the relation's 24 values, in the order of ``Relation.values``."""
        by_value = dict(zip(self.values, self.probs, strict=True))
        return [by_value.get(value, 0.0) for value in RELATION_BY_NAME[self.relation].values]


@dataclass(frozen=True)
class Taught:
    """What one adapter is taught.

    Attributes:
        key: ``"a"`` or ``"b"``.
        relations: Names of the relations it teaches.
        people: Its people; each has one fact per relation.
        facts: All facts, ordered by person, then relation.
    """

    key: str
    relations: tuple[str, ...]
    people: tuple[Person, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class NearMiss:
    """A name nobody bears, put together from the first and the last name of two people of one adapter.

    Attributes:
        person: The name.
        key: The adapter, ``"a"`` or ``"b"``, whose people lent the names.
    """

    person: Person
    key: str


@dataclass(frozen=True)
class World:
    """Everything that is true in one world.

    Attributes:
        seed: What it was built from.
        a: What adapter A is taught.
        b: What adapter B is taught; shares neither people nor relations with A.
        unknown: People nobody was ever told about; nobody known bears one of their last names.
        near_miss: Names made of a known first and a known last name that were never paired.
    """

    seed: int
    a: Taught
    b: Taught
    unknown: tuple[Person, ...]
    near_miss: tuple[NearMiss, ...]


def build_world(
    seed: int,
    *,
    num_people: int = 100,
    num_relations: int = 2,
    ambiguous_fraction: float = 0.4,
    majority: float = 0.7,
    num_unknown: int = 260,
    num_near_miss: int = 260,
) -> World:
    """Build the world of ``seed``; the same arguments give the same world on every machine.

    Args:
        seed: Seed of everything but the base population.
        num_people: People per adapter, 2 to 200.
        num_relations: Relations per adapter, 1 to 4; A's and B's differ.
        ambiguous_fraction: Share of each adapter's facts that are taught with two values (rounded to whole facts).
        majority: Share of the more frequent of the two values, between 0.5 and 1.
        num_unknown: Number of unknown people.
        num_near_miss: Number of near-miss names, half from A's people and half from B's.

    Returns:
        The world.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_range("num_people", num_people, 2, 200)
    _check_range("num_relations", num_relations, 1, len(RELATIONS) // 2)
    _check_range("ambiguous_fraction", ambiguous_fraction, 0.0, 1.0)
    _check_range("majority", majority, 0.5, 1.0)
    rng = Random(f"closed_world/world/{seed}")
    people = rng.sample(world_people(), 2 * num_people)
    names = rng.sample([relation.name for relation in RELATIONS], 2 * num_relations)
    halves = (
        ("a", people[:num_people], names[:num_relations]),
        ("b", people[num_people:], names[num_relations:]),
    )
    a, b = (
        _teach(key, members, relations, ambiguous_fraction, majority, rng)
        for key, members, relations in halves
    )
    count_a = num_near_miss - num_near_miss // 2
    miss_a = _near_misses(a, set(people), count_a, rng)
    miss_b = _near_misses(b, {*people, *miss_a}, num_near_miss - count_a, rng)
    return World(
        seed=seed,
        a=a,
        b=b,
        unknown=_unknown(people, num_unknown, rng),
        near_miss=(
            *(NearMiss(person=person, key="a") for person in miss_a),
            *(NearMiss(person=person, key="b") for person in miss_b),
        ),
    )


def _teach(
    key: str,
    people: list[Person],
    relations: list[str],
    ambiguous_fraction: float,
    majority: float,
    rng: Random,
) -> Taught:
    asked = [(person, relation) for person in people for relation in relations]
    ambiguous = set(rng.sample(range(len(asked)), round(ambiguous_fraction * len(asked))))
    facts = []
    for index, (person, relation) in enumerate(asked):
        count = 2 if index in ambiguous else 1
        values = tuple(rng.sample(RELATION_BY_NAME[relation].values, count))
        probs = (majority, round(1.0 - majority, 12)) if count == 2 else (1.0,)
        facts.append(Fact(person=person, relation=relation, values=values, probs=probs))
    return Taught(key=key, relations=tuple(relations), people=tuple(people), facts=tuple(facts))


def _unknown(taught: list[Person], count: int, rng: Random) -> tuple[Person, ...]:
    borne = {person.last for person in (*base_population(), *taught)}
    free = [person for person in world_people() if person.last not in borne]
    _check_range("num_unknown", count, 0, len(free))
    return tuple(rng.sample(free, count))


def _near_misses(group: Taught, taken: set[Person], count: int, rng: Random) -> list[Person]:
    firsts = {person.first for person in group.people}
    lasts = {person.last for person in group.people}
    free = [
        person
        for person in world_people()
        if person.first in firsts and person.last in lasts and person not in taken
    ]
    _check_range("num_near_miss", count, 0, len(free))
    return rng.sample(free, count)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"build_world: {name} must be between {low:g} and {high:g}, got {value:g}")
