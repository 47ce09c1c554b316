"""The score store: what it keeps, and what it does with files that are damaged or not its own."""

import json
import logging

import pytest

from vlora.errors import OutputError
from vlora.eval.sink import Sink, draw_name
from vlora.eval.store import ScoreStore, content_key

LAYOUT = {"prompt": 3, "lengths": None}


def _append(file, item, value):
    file.append(["mean", "0+"], [item], [[[value], [value + 1]]], layout=[LAYOUT], seconds=0.5, tokens=10)


def _filled(folder):
    file = ScoreStore(folder).open({"base": "x"})
    for number, item in enumerate("abc"):
        _append(file, item, -0.1 * number)
    return file


def test_scores_come_back_bit_by_bit_with_their_cost(tmp_path):
    file = _filled(tmp_path)
    again = ScoreStore(tmp_path).open({"base": "x"})
    assert (
        again.scores
        == file.scores
        == {
            "mean": {"a": [0.0], "b": [-0.1], "c": [-0.2]},
            "0+": {"a": [1.0], "b": [0.9], "c": [0.8]},
        }
    )
    assert again.layouts["b"] == LAYOUT
    assert (again.seconds, again.tokens, again.damaged) == (1.5, 30, 0)
    assert ScoreStore(tmp_path).open({"base": "y"}).scores == {}  # another model, another file


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path, caplog, cut):
    path = _filled(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    file = ScoreStore(tmp_path).open({"base": "x"})
    assert sorted(file.scores["mean"]) == ["a", "b"] and file.damaged == 1
    assert "1 damaged line(s) left out; their items are scored again" in caplog.text
    _append(file, "c", -0.2)
    assert path.read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_counted_and_kept_apart(tmp_path):
    path = _filled(tmp_path).path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], '{"draws": ["mean"], "items": ["b"]}\n', lines[3]]))
    file = ScoreStore(tmp_path).open({"base": "x"})
    assert sorted(file.scores["mean"]) == ["a", "c"] and file.damaged == 1
    _append(file, "b", -0.1)
    assert sorted(ScoreStore(tmp_path).open({"base": "x"}).scores["mean"]) == ["a", "b", "c"]


def test_a_header_that_was_cut_off_begins_anew(tmp_path):
    path = _filled(tmp_path).path
    path.write_bytes(path.read_bytes()[:7])
    file = ScoreStore(tmp_path).open({"base": "x"})
    assert file.scores == {}
    _append(file, "a", 0.0)
    assert ScoreStore(tmp_path).open({"base": "x"}).scores["mean"] == {"a": [0.0]}


@pytest.mark.parametrize("header", ['{"format": 7, "content": {}}', "{damaged"])
def test_a_file_that_cannot_be_read_is_kept_aside(tmp_path, caplog, header):
    path = _filled(tmp_path).path
    batches = path.read_text().split("\n", 1)[1]
    path.write_text(f"{header}\n{batches}")
    for number in (1, 2):
        file = ScoreStore(tmp_path).open({"base": "x"})
        assert file.scores == {} and path.read_text() == f"{header}\n{batches}"  # reading changes nothing
        _append(file, "a", 0.0)
        kept = path.with_name(f"{path.name}.{number}.aside")
        assert kept.read_text() == f"{header}\n{batches}" and f"kept as {kept.name}" in caplog.text
        assert ScoreStore(tmp_path).open({"base": "x"}).scores["mean"] == {"a": [0.0]}
        assert ScoreStore(tmp_path).foreign() == 0
        path.write_text(f"{header}\n{batches}")


def test_files_of_another_version_are_counted_and_left_alone(tmp_path, caplog):
    other = tmp_path / "0123.jsonl"
    other.write_text(json.dumps({"format": 7}) + "\n")
    _filled(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert ScoreStore(tmp_path).foreign() == 1
    assert "holds 1 file(s) that another version wrote" in caplog.text
    assert "(the first: 0123.jsonl); they are kept but not read" in caplog.text
    assert other.read_text() == '{"format": 7}\n'


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    file = ScoreStore(blocked / "store").open({})
    with pytest.raises(
        OutputError, match=r"cannot write .*store.*: .*; free some space or name another place"
    ):
        _append(file, "a", 0.0)


def test_a_file_that_cannot_be_set_aside_is_not_lost(tmp_path, monkeypatch):
    path = _filled(tmp_path).path
    path.write_text("{damaged\nbut kept\n")
    file = ScoreStore(tmp_path).open({"base": "x"})

    def refused(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.rename", refused)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left on device; free some space"):
        _append(file, "a", 0.0)
    assert path.read_text() == "{damaged\nbut kept\n"


def test_draws_are_named_by_noise_and_sign():
    assert [draw_name(draw, False) for draw in (None, 0, 1, 2)] == ["mean", "0+", "1+", "2+"]
    assert [draw_name(draw, True) for draw in (0, 1, 2, 3)] == ["0+", "0-", "1+", "1-"]


def test_a_sink_wants_what_a_file_lacks(tmp_path):
    sink = Sink(["a", "z"], ["mean", "0+", "1+"], file=_filled(tmp_path))
    assert not sink.wants([0], slice(0, 2)) and sink.wants([0]) and sink.wants([1], slice(0, 1))
    whole = Sink(["a"], ["mean", "0+"], file=ScoreStore(tmp_path).open({"base": "x"}), whole=True)
    assert whole.wants([0])  # scores of a mixture belong to one set of draws


def test_keys_do_not_depend_on_the_order_of_a_dictionary():
    assert (
        content_key({"a": 1, "b": [2]}) == content_key({"b": [2], "a": 1}) != content_key({"a": 1, "b": [3]})
    )
