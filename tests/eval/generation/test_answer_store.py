"""Unfinished answers: whole lines are kept, damaged ones counted, and files of other settings left alone."""

from dataclasses import replace

import pytest
from test_answer_estimators import record

from vlora.errors import OutputError
from vlora.eval.generation.store import AnswerStore

KEY, OTHER = "k" * 32, "o" * 32


def filled(tmp_path, key=KEY):
    store = AnswerStore(tmp_path / "out")
    for item in "abcd":
        store.append("m", key, [replace(record(), item=item)], {"answer": [1, 9, 0.5]})
    return store


def items(store, key=KEY):
    return [one.item for one in store.load("m", key)]


@pytest.mark.parametrize("bad", ["{damaged", "", "[]", "3", '{"item": "b", "later": 1}'])
def test_lines_behind_a_damaged_one_are_kept(tmp_path, caplog, bad):
    store = filled(tmp_path)
    file = store.file("m", KEY)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], bad, *lines[2:]]) + "\n")
    before = file.read_bytes()
    assert items(store) == ["a", "c", "d"]
    assert file.read_bytes() == before  # reading changes nothing
    assert "1 damaged line(s) left out; their questions are answered again" in caplog.text
    store.append("m", KEY, [replace(record(), item="b")], {"answer": [1, 9, 0.5]})
    assert items(store) == ["a", "c", "d", "b"] and file.read_bytes().startswith(before)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut_off_spoils_no_other(tmp_path, caplog, cut):
    store = filled(tmp_path)
    file = store.file("m", KEY)
    file.write_bytes(file.read_bytes()[:-cut])
    whole = items(store)
    assert whole == (
        ["a", "b", "c", "d"] if cut == 1 else ["a", "b", "c"]
    )  # only the end of the line is lost, or more
    assert ("1 damaged line(s)" in caplog.text) == (cut > 1)
    store.append("m", KEY, [replace(record(), item="e")], {"answer": [1, 9, 0.5]})
    assert items(store) == [*whole, "e"]


def test_damaged_costs_are_counted(tmp_path, caplog):
    store = filled(tmp_path)
    (file,) = store.path.glob("*.costs.jsonl")
    file.write_text(file.read_text().replace('["b"]', '["b"'))
    assert [found for found, _ in store.costs("m", KEY)] == [["a"], ["c"], ["d"]]
    assert "1 damaged line(s) left out; what they cost is not counted" in caplog.text


def test_other_settings_are_named_and_outlive_the_run(tmp_path, caplog):
    store = filled(tmp_path)
    assert store.foreign({"m": KEY}) == 0 and not caplog.text
    other = filled(tmp_path, OTHER).file("m", OTHER)
    verdicts = store.path / "verdicts-1.jsonl"
    verdicts.write_text("{}\n")
    assert store.foreign({"m": KEY}) == 1
    assert (
        f"holds 1 file(s) of answers under other settings or of another version (the first: {other.name})"
        in (caplog.text)
    )
    store.remove({"m": KEY}, verdicts)
    assert items(store) == [] and items(store, OTHER) == ["a", "b", "c", "d"]
    assert len(store.costs("m", OTHER)) == 4 and verdicts.exists()  # what goes on there may need them
    store.remove({"m": OTHER}, verdicts)
    assert not store.path.exists()
    store.remove({"m": OTHER})  # nothing there, nothing to do


def test_verdicts_of_another_judge_stay(tmp_path):
    store = filled(tmp_path)
    (store.path / "verdicts-1.jsonl").write_text("{}\n")
    store.remove({"m": KEY}, store.path / "verdicts-2.jsonl")
    assert [path.name for path in store.path.iterdir()] == ["verdicts-1.jsonl"]


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    store = filled(tmp_path)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(OutputError, match=r"cannot read .*answers.jsonl: Permission denied; move it away"):
        store.load("m", KEY)
