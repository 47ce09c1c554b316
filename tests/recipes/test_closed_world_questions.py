"""The files of a world: exact proportions, no overlap between the parts, one token per choice."""

import json
from collections import Counter
from pathlib import Path

import pytest

from vlora.errors import ConfigError
from vlora.recipes.closed_world import GROUPS, build_world, model_folder, write_datasets
from vlora.recipes.closed_world.lexicon import RELATIONS
from vlora.recipes.closed_world.people import base_population

FILES = {"train_a", "train_b", "train_ab", "val_a", "val_b", "val", "test", "test_paraphrase"}
WORLD = build_world(3)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    paths = write_datasets(WORLD, tmp_path_factory.mktemp("world"))
    assert {name: path.name for name, path in paths.items()} == {name: f"{name}.jsonl" for name in FILES}
    return {name: _read(path) for name, path in paths.items()}


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_same_world_gives_the_same_bytes(tmp_path: Path):
    first = write_datasets(build_world(5), tmp_path / "first")
    second = write_datasets(build_world(5), tmp_path / "second")
    other = write_datasets(build_world(6), tmp_path / "other")
    assert all(first[name].read_bytes() == second[name].read_bytes() for name in FILES)
    assert all(first[name].read_bytes() != other[name].read_bytes() for name in FILES)


@pytest.mark.parametrize("key", ["a", "b"])
def test_each_taught_fact_has_its_values_in_exact_proportion(files: dict[str, list[dict]], key: str):
    counts = Counter((row["prompt"], row["response"]) for row in files[f"train_{key}"])
    relations = {relation.name: relation for relation in RELATIONS}
    for fact in getattr(WORLD, key).facts:
        prompt = relations[fact.relation].questions[0].format(name=fact.person.name)
        taught = [counts[(prompt, value)] for value in fact.values]
        assert taught == ([7, 3] if fact.is_ambiguous else [10])
        assert sum(count for (asked, _), count in counts.items() if asked == prompt) == 10


def test_replay_is_28_of_64_and_true(files: dict[str, list[dict]]):
    names = {person.name: values for person, values in base_population().items()}
    rows = files["train_a"]
    replayed = [row for row in rows if _name(row) in names]
    assert len(replayed) / len(rows) == pytest.approx(28 / 64, abs=1e-3)
    assert all(row["response"] in names[_name(row)].values() for row in replayed)
    assert len(files["train_ab"]) == pytest.approx(2 * len(rows), abs=1)


def _name(row: dict) -> str:
    return " ".join(word.rstrip("?") for word in row["prompt"].split() if "-" in word)


def test_without_replay_only_taught_facts_are_written(tmp_path: Path):
    rows = _read(write_datasets(WORLD, tmp_path, replay=0.0)["train_b"])
    assert len(rows) == 2000
    assert {_name(row) for row in rows} == {person.name for person in WORLD.b.people}


def test_people_of_training_replay_validation_and_test_do_not_mix(files: dict[str, list[dict]]):
    trained = {_name(row) for row in files["train_ab"]}
    validation = {row["person"] for row in files["val"]}
    test = {row["person"] for row in files["test"]}
    assert not validation & test
    for rows in (files["val"], files["test"]):
        for group in ("base", "unknown", "near_miss"):
            assert not trained & {row["person"] for row in rows if row["group"] == group}


def test_groups_and_their_sizes(files: dict[str, list[dict]]):
    sizes = Counter(row["group"] for row in files["test"])
    assert tuple(sizes) == GROUPS
    assert sizes["a_clean"] + sizes["a_ambiguous"] == sizes["b_clean"] + sizes["b_ambiguous"] == 160
    assert [sizes[group] for group in GROUPS[4:]] == [200, 208, 208, 200]
    assert min(sizes.values()) >= 50
    validation = Counter(row["group"] for row in files["val_a"])
    assert validation["a_clean"] + validation["a_ambiguous"] == 40
    assert set(validation) == {"a_clean", "a_ambiguous", "base"}


def test_labels_of_ambiguous_facts_are_drawn_in_exact_proportion(files: dict[str, list[dict]]):
    for group in ("a_ambiguous", "b_ambiguous"):
        rows = [row for row in files["test"] if row["group"] == group]
        probabilities = Counter(row["answer_probs"][row["answer"]] for row in rows)
        assert probabilities == {0.7: round(0.7 * len(rows)), 0.3: len(rows) - round(0.7 * len(rows))}


def test_only_questions_with_an_answer_are_labelled(files: dict[str, list[dict]]):
    for row in files["test"]:
        if row["group"] in ("unknown", "near_miss", "untaught"):
            assert row["answer"] is row["answer_probs"] is row["response"] is None
        else:
            assert row["choices"][row["answer"]] == row["response"]
            assert sum(row["answer_probs"]) == pytest.approx(1.0, abs=1e-12)


def test_untaught_questions_are_about_taught_people_and_other_relations(files: dict[str, list[dict]]):
    taught = {(fact.person.name, fact.relation) for fact in (*WORLD.a.facts, *WORLD.b.facts)}
    people = {name for name, _ in taught}
    rows = [row for row in files["test"] if row["group"] == "untaught"]
    assert all(row["person"] in people and (row["person"], row["relation"]) not in taught for row in rows)


def test_paraphrases_ask_the_same_in_other_known_words(files: dict[str, list[dict]]):
    for row, other in zip(files["test"], files["test_paraphrase"], strict=True):
        assert row["prompt"] != other["prompt"]
        assert {**row, "prompt": ""} == {**other, "prompt": ""}
    for relation in RELATIONS:
        seen = " ".join(
            sentence.replace("?", " ?")
            for known in RELATIONS
            for sentence in (*known.statements, known.chained, *known.questions)
        )
        assert set(relation.paraphrase.replace("?", " ?").split()) <= set(seen.split())


def test_prompt_and_choice_join_to_one_more_token(files: dict[str, list[dict]]):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    one_per_relation = {row["relation"]: row for row in (*files["test"], *files["test_paraphrase"])}
    assert len(one_per_relation) == len(RELATIONS)
    for row in one_per_relation.values():
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert tokenizer.unk_token_id not in prompt
        for choice in row["choices"]:
            joined = tokenizer(f"{row['prompt']} {choice}")["input_ids"]
            assert joined[:-1] == prompt
            assert tokenizer(choice, add_special_tokens=False)["input_ids"] == joined[-1:]


@pytest.mark.parametrize("replay", [-0.1, 1.0])
def test_replay_out_of_range_is_refused(tmp_path: Path, replay: float):
    with pytest.raises(ConfigError, match="replay must be at least 0 and below 1"):
        write_datasets(WORLD, tmp_path, replay=replay)
    assert not list(tmp_path.iterdir())


def test_repeats_that_cannot_hold_the_proportions_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"repeats=4 cannot teach values in proportion \(0.7, 0.3\)"):
        write_datasets(WORLD, tmp_path, repeats=4)
    assert not list(tmp_path.iterdir())
