"""Worlds in which four adapters are taught: 100 people and two relations each, so that all eight relations are used.

They come from the ordinary generator with 200 people and four relations on either side; each side is then divided into
two adapters, half of the people and two of the relations each. A and B stand in one pair of files, C and D in another,
with the same strangers and the same division of the base people.
"""

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.closed_world.worlds import ALL, Row, read_rows
from vlora.recipes.closed_world import World, build_world, write_datasets
from vlora.recipes.closed_world.world import Taught

__all__ = ["quartet", "quartet_files"]

PEOPLE, RELATIONS = 100, 2


def quartet(seed: int) -> tuple[World, World]:
    """The world of A and B, and that of C and D."""
    whole = build_world(seed, num_people=2 * PEOPLE, num_relations=2 * RELATIONS)
    first, second = (replace(whole, a=_part(whole.a, half), b=_part(whole.b, half)) for half in range(2))
    return first, second


def _part(taught: Taught, half: int) -> Taught:
    """One half of the people with one half of the relations."""
    people = taught.people[half * PEOPLE : (half + 1) * PEOPLE]
    relations = taught.relations[half * RELATIONS : (half + 1) * RELATIONS]
    facts = tuple(f for f in taught.facts if f.person in people and f.relation in relations)
    return replace(taught, people=people, relations=relations, facts=facts)


def quartet_files(seed: int, work: Path) -> dict[str, Path]:
    """Files of a world of four, written once: ``train_a`` to ``train_d``, ``val`` and ``test`` about all of them."""
    folder = work / f"quartet_{seed}" / "data"
    if not (folder / "test.jsonl").is_file():
        pairs = [write_datasets(world, folder / f"pair_{i}") for i, world in enumerate(quartet(seed))]
        for i, key in enumerate(ALL):
            _write(read_rows(pairs[i // 2][f"train_{'ab'[i % 2]}"]), folder / f"train_{key}.jsonl")
        for name in ("val", "test"):
            rows = [row for i, pair in enumerate(pairs) for row in _renamed(read_rows(pair[name]), i)]
            _write(rows, folder / f"{name}.jsonl")
    return {path.stem: path for path in folder.glob("*.jsonl")}


def _renamed(rows: list[Row], pair: int) -> list[Row]:
    """Groups by the adapter's own letter; questions about base people from the first pair only."""
    names = {"a": ALL[2 * pair], "b": ALL[2 * pair + 1]}
    found = []
    for row in rows:
        key, line, kind = row["group"].partition("_")
        if row["group"] != "base" or pair == 0:
            found.append({**row, "group": names.get(key, key) + line + kind})
    return found


def _write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
