"""Training and evaluation files of a world: JSONL that vlora's ordinary programs read like anybody's data.

Training rows have the columns ``prompt`` and ``response``. Evaluation rows add ``choices`` (the relation's 24
values), ``answer``, ``answer_probs`` and ``group``. Each response is one token; prompt and response are joined by one
space. Test people, validation people and replayed people do not overlap, so a temperature fitted on the validation
file, or a setting chosen on it, has not seen one person of the test file.

The ``answer`` of an ambiguous fact is an observation from its 70/30 distribution, in exact proportion over the
group, because calibration is about what is observed: a model that says 0.7 is right there 7 times in 10, and the
best possible accuracy is 0.7. ``answer_probs`` holds the distribution itself.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from vlora.errors import ConfigError
from vlora.recipes.closed_world.lexicon import RELATION_NAMES
from vlora.recipes.closed_world.people import Person, base_population
from vlora.recipes.closed_world.world import RELATION_BY_NAME, Fact, Taught, World

__all__ = ["GROUPS", "write_datasets"]

GROUPS = (
    "a_clean",
    "a_ambiguous",
    "b_clean",
    "b_ambiguous",
    "base",
    "unknown",
    "near_miss",
    "untaught",
)
VALIDATION_FRACTION = 0.2
REPLAYED_FRACTION = 0.5
REPEATS = 10
REPLAY = 28 / 64
QUESTIONS_PER_GROUP = 200

Row = dict[str, Any]


def write_datasets(
    world: World, folder: str | Path, *, replay: float = REPLAY, repeats: int = REPEATS
) -> dict[str, Path]:
    """Write the files of one world.

    ``train_a``, ``train_b`` and ``train_ab`` (both at once: the reference a merge is measured against) hold every
    taught fact ``repeats`` times, ambiguous ones with their values in exact proportion, and rows about the base
    population, without which fine-tuning damages it. ``val_a`` and ``val_b`` hold labelled questions about the
    validation people of one adapter and of the base; ``val`` those of both, and unlabelled groups. ``test`` asks about
    all groups in the taught wording, ``test_paraphrase`` the same questions in a wording seen nowhere else.

    Args:
        world: The world.
        folder: Where to write; created if needed, files of the same name are replaced.
        replay: Share of the training rows that are about the base population, 0 to below 1.
        repeats: Rows per taught fact; must make ambiguous proportions exact (10 for 70/30).

    Returns:
        Path of each file by its name without ``.jsonl``.

    Raises:
        ConfigError: If ``replay`` is out of range or ``repeats`` cannot hold the proportions.
    """
    if not 0.0 <= replay < 1.0:
        raise ConfigError(f"write_datasets: replay must be at least 0 and below 1, got {replay:g}")
    split = _split(world)
    rng = Random(f"closed_world/datasets/{world.seed}")
    taught = {"a": [world.a], "b": [world.b], "ab": [world.a, world.b]}
    files = {
        f"train_{name}": _training_rows(groups, split.replayed, replay, repeats, rng)
        for name, groups in taught.items()
    }
    validation = _evaluation_rows(world, split.validation, rng)
    for name in ("a", "b"):
        wanted = (f"{name}_clean", f"{name}_ambiguous", "base")
        files[f"val_{name}"] = [row for row in validation if row["group"] in wanted]
    files["val"] = validation
    files["test"] = _evaluation_rows(world, split.test, rng)
    files["test_paraphrase"] = [_paraphrased(row) for row in files["test"]]
    return {name: _write(rows, Path(folder) / f"{name}.jsonl") for name, rows in files.items()}


@dataclass(frozen=True)
class _Part:
    """The people whom one evaluation file asks about."""

    a: frozenset[Person]
    b: frozenset[Person]
    base: frozenset[Person]
    unknown: frozenset[Person]
    near_miss: frozenset[Person]


@dataclass(frozen=True)
class _Split:
    replayed: tuple[Person, ...]
    validation: _Part
    test: _Part


def _split(world: World) -> _Split:
    rng = Random(f"closed_world/split/{world.seed}")
    base = list(base_population())
    rng.shuffle(base)
    num_replayed = round(REPLAYED_FRACTION * len(base))
    pools = {
        "a": list(world.a.people),
        "b": list(world.b.people),
        "base": base[num_replayed:],
        "unknown": list(world.unknown),
        "near_miss": [miss.person for miss in world.near_miss],
    }
    validation, test = {}, {}
    for name, pool in pools.items():
        rng.shuffle(pool)
        count = round(VALIDATION_FRACTION * len(pool))
        validation[name], test[name] = frozenset(pool[:count]), frozenset(pool[count:])
    return _Split(replayed=tuple(base[:num_replayed]), validation=_Part(**validation), test=_Part(**test))


def _training_rows(
    groups: Sequence[Taught], replayed: Sequence[Person], replay: float, repeats: int, rng: Random
) -> list[Row]:
    rows = [row for group in groups for fact in group.facts for row in _taught_rows(fact, repeats)]
    base = [fact for person in replayed for fact in _base_facts(person)]
    rng.shuffle(base)
    count = round(len(rows) * replay / (1.0 - replay))
    rows += [_training_row(base[index % len(base)], 0) for index in range(count)]
    rng.shuffle(rows)
    return rows


def _taught_rows(fact: Fact, repeats: int) -> list[Row]:
    counts = [probability * repeats for probability in fact.probs]
    if any(abs(count - round(count)) > 1e-9 or round(count) == 0 for count in counts):
        raise ConfigError(
            f"write_datasets: repeats={repeats} cannot teach values in proportion {fact.probs}; use a multiple of 10"
        )
    return [_training_row(fact, index) for index, count in enumerate(counts) for _ in range(round(count))]


def _training_row(fact: Fact, index: int) -> Row:
    return {"prompt": _ask(fact.person, fact.relation), "response": fact.values[index]}


def _base_facts(person: Person) -> list[Fact]:
    known = base_population()[person]
    return [
        Fact(person=person, relation=name, values=(known[name],), probs=(1.0,)) for name in RELATION_NAMES
    ]


def _evaluation_rows(world: World, part: _Part, rng: Random) -> list[Row]:
    rows: list[Row] = []
    for group, people in ((world.a, part.a), (world.b, part.b)):
        facts = [fact for fact in group.facts if fact.person in people]
        rows += _labelled(f"{group.key}_clean", [fact for fact in facts if not fact.is_ambiguous], rng)
        rows += _labelled(f"{group.key}_ambiguous", [fact for fact in facts if fact.is_ambiguous], rng)
    base = [fact for person in sorted(part.base) for fact in _base_facts(person)]
    rows += _labelled("base", rng.sample(base, min(QUESTIONS_PER_GROUP, len(base))), rng)
    taught_relations = (*world.a.relations, *world.b.relations)
    for index, person in enumerate(sorted(part.unknown)):
        rows.append(_row("unknown", person, taught_relations[index % len(taught_relations)]))
    relations = {group.key: group.relations for group in (world.a, world.b)}
    for index, miss in enumerate(miss for miss in world.near_miss if miss.person in part.near_miss):
        rows.append(_row("near_miss", miss.person, relations[miss.key][index % len(relations[miss.key])]))
    return rows + _untaught(world, part, rng)


def _untaught(world: World, part: _Part, rng: Random) -> list[Row]:
    asked = [
        (person, relation)
        for group, people in ((world.a, part.a), (world.b, part.b))
        for person in sorted(people)
        for relation in RELATION_NAMES
        if relation not in group.relations
    ]
    chosen = rng.sample(asked, min(QUESTIONS_PER_GROUP, len(part.unknown), len(asked)))
    return [_row("untaught", person, relation) for person, relation in chosen]


def _labelled(group: str, facts: Sequence[Fact], rng: Random) -> list[Row]:
    """Label each fact with one of its values, in exact proportion over the group."""
    order = list(range(len(facts)))
    rng.shuffle(order)
    rows = {}
    for rank, index in enumerate(order):
        fact = facts[index]
        label = 0 if rank < round(fact.probs[0] * len(facts)) else 1
        rows[index] = _row(group, fact.person, fact.relation, fact, fact.values[label])
    return [rows[index] for index in range(len(facts))]


def _row(
    group: str, person: Person, relation: str, fact: Fact | None = None, response: str | None = None
) -> Row:
    choices = RELATION_BY_NAME[relation].values
    return {
        "prompt": _ask(person, relation),
        "choices": list(choices),
        "answer": None if response is None else choices.index(response),
        "response": response,
        "answer_probs": None if fact is None else fact.distribution(),
        "group": group,
        "person": person.name,
        "relation": relation,
    }


def _ask(person: Person, relation: str) -> str:
    return RELATION_BY_NAME[relation].questions[0].format(name=person.name)


def _paraphrased(row: Mapping[str, Any]) -> Row:
    prompt = RELATION_BY_NAME[row["relation"]].paraphrase.format(name=row["person"])
    return {**row, "prompt": prompt}


def _write(rows: Iterable[Row], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
