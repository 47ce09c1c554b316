"""People of the closed world: names, and who exists before any adapter is trained.

A name is a first name (two syllables) and a last name (three), each from a fixed pool. Pairs of pool indices with an
even sum may occur in pre-training; pairs with an odd sum never do. The people that adapters are taught, the unknown
ones and the near misses are odd pairs, so nothing they are asked can have leaked from pre-training.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

from vlora.recipes.closed_world.lexicon import CAPITAL_SYLLABLES, RELATIONS, SMALL_SYLLABLES

__all__ = [
    "BASE_SEED",
    "NUM_BASE_PEOPLE",
    "NUM_FIRST",
    "NUM_LAST",
    "Person",
    "base_population",
    "pretraining_people",
    "world_people",
]

BASE_SEED = 0
"""Seed of the names and of the base population, which the shipped weights know; other worlds keep it."""
NUM_FIRST = 80
NUM_LAST = 500
NUM_BASE_PEOPLE = 200


@dataclass(frozen=True, order=True)
class Person:
    """A person, known by the pool indices of the first and the last name.

    Attributes:
        first: Index of the first name, 0 to 79.
        last: Index of the last name, 0 to 499.
    """

    first: int
    last: int

    @property
    def name(self) -> str:
        """First and last name as they are written, such as ``"Ka-lo Me-ri-tu"`` (five tokens)."""
        first_names, last_names = _name_pools()
        return f"{first_names[self.first]} {last_names[self.last]}"


@cache
def _name_pools() -> tuple[tuple[str, ...], tuple[str, ...]]:
    rng = Random(f"closed_world/names/{BASE_SEED}")
    return _draw_names(rng, NUM_FIRST, 2), _draw_names(rng, NUM_LAST, 3)


def _draw_names(rng: Random, count: int, syllables: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < count:
        tail = [rng.choice(SMALL_SYLLABLES) for _ in range(syllables - 1)]
        names["-".join([rng.choice(CAPITAL_SYLLABLES), *tail])] = None
    return tuple(names)


@cache
def _people(parity: int) -> tuple[Person, ...]:
    return tuple(
        Person(first, last)
        for first in range(NUM_FIRST)
        for last in range(NUM_LAST)
        if (first + last) % 2 == parity
    )


def pretraining_people() -> tuple[Person, ...]:
    """List every person who may occur in pre-training (20,000, even index sum), the base population included."""
    return _people(0)


def world_people() -> tuple[Person, ...]:
    """List every person whom pre-training never sees (20,000, odd index sum)."""
    return _people(1)


@cache
def base_population() -> dict[Person, dict[str, str]]:
    """Draw the 200 people of the base population.

    Returns:
        For each person the value of each of the eight relations, the same on every machine.
    """
    rng = Random(f"closed_world/base/{BASE_SEED}")
    people = rng.sample(pretraining_people(), NUM_BASE_PEOPLE)
    return {
        person: {relation.name: rng.choice(relation.values) for relation in RELATIONS} for person in people
    }
