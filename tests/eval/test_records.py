"""Records on disk: what is written comes back, and what is damaged is named with its line."""

import json

import numpy as np
import pytest

from vlora.errors import DataError, OutputError
from vlora.eval.records import Record, read_records, write_records

HALF = float(np.log(0.5))


def choice_row(**changes):
    row = {
        **{"model": "A", "item": "test/0", "split": "test", "group": "easy", "label": 1, "num_tokens": 7},
        **{"text": "Wo wohnt Jürgen?", "choices": ["Köln", "Bonn"], "log_probs": [HALF, HALF]},
        **{"sample_log_probs": [[HALF, HALF], [0.0, None]], "antithetic": True},
    }
    return {**row, **changes}


def lm_row(**changes):
    lists = {
        name: [0.5, 0.25]
        for name in ("confidence", "entropy", "sample_confidence", "total_entropy", "expected_entropy")
    }
    lm = {
        "num_tokens": 2,
        "nll": 1.5,
        "nll_samples": 1.4,
        "nll_sequence": 1.3,
        "correct": [0, 1],
        "sample_correct": [1, 1],
    }
    return {
        "model": "A",
        "item": "d/0",
        "split": "test",
        "group": "t",
        "num_tokens": 1,
        "lm": {**lm, **lists, **changes},
    }


def test_round_trip_keeps_every_value(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = [
        choice_row(),
        choice_row(item="test/1", label=None, choices=None, sample_log_probs=None),
        lm_row(),
    ]
    assert write_records(path, rows) == 3
    assert [json.loads(line)["item"] for line in path.read_text(encoding="utf-8").splitlines()] == [
        "test/0",
        "test/1",
        "d/0",
    ]
    first, second, third = read_records(path)
    assert first.text == "Wo wohnt Jürgen?" and first.choices == ("Köln", "Bonn") and first.antithetic
    assert first.log_probs.tolist() == [HALF, HALF]
    assert first.sample_log_probs.tolist() == [[HALF, HALF], [0.0, -np.inf]]
    assert second.label is None and second.sample_log_probs is None and second.label_probs is None
    assert third.lm.nll_sequence == 1.3 and third.lm.correct.tolist() == [0, 1] and third.log_probs is None
    assert [Record.from_dict(r.to_dict()).to_dict() for r in (first, second, third)] == [
        r.to_dict() for r in (first, second, third)
    ]
    before = path.read_bytes()
    write_records(path, read_records(path))
    assert path.read_bytes() == before


def test_records_without_draws_and_with_known_distribution():
    lm = lm_row(
        **dict.fromkeys(
            (
                "nll_samples",
                "nll_sequence",
                "sample_correct",
                "sample_confidence",
                "total_entropy",
                "expected_entropy",
            )
        )
    )
    assert Record.from_dict(lm).lm.total_entropy is None
    known = Record.from_dict(choice_row(label=None, label_probs=[0.25, 0.75]))
    assert known.to_dict()["label_probs"] == [0.25, 0.75]
    assert "label_probs" not in Record.from_dict(choice_row()).to_dict()
    assert Record.from_dict(choice_row(from_the_future=1)).item == "test/0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "train"}, "'split' must be one of test, validation, ood, got 'train'"),
        ({"label": 2}, "'label' must lie in 0…1, one index per choice, got 2"),
        ({"label": 0.5}, "'label' cannot be read: expected a whole number"),
        ({"log_probs": [-1.0, -2.0]}, "'log_probs' must be normalised over the choices, got a sum of 0.5032"),
        ({"log_probs": None}, "needs 'log_probs'"),
        ({"log_probs": ["x", "y"]}, "'log_probs' cannot be read: expected numbers"),
        ({"log_probs": [float("nan"), 0.0]}, "NaN, the model may have diverged"),
        ({"sample_log_probs": [[HALF, HALF], [0.0]]}, "'sample_log_probs' cannot be read"),
        ({"sample_log_probs": [[0.0]]}, r"must have shape \(S, 2\), got \(1, 1\)"),
        ({"choices": ["a"]}, "1 'choices' but 2 'log_probs'"),
        ({"choices": "ab"}, "expected a list of strings"),
        ({"label_probs": [0.5, 0.6]}, "'label_probs' must be normalised"),
        ({"label_probs": [1.0]}, "'label_probs' must be 2 probabilities"),
        ({"antithetic": 1}, "expected true or false"),
        ({"model": None}, "a record needs 'model'"),
    ],
)
def test_bad_choice_rows_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        Record.from_dict(choice_row(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"correct": [0, 1, 1]}, r"num_tokens = 2 >= 1 numbers, got correct: \(3,\)"),
        ({"confidence": [0.5, 1.5]}, "'confidence' must lie in"),
        ({"nll": float("inf")}, "expected a finite number"),
        ({"nll_samples": None}, "draws only in part, nll_samples missing"),
        ({"entropy": None}, "needs 'entropy'"),
    ],
)
def test_bad_token_rows_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        Record.from_dict(lm_row(**changes))


def test_damaged_lines_are_named_or_skipped_on_request(tmp_path):
    path = tmp_path / "records.jsonl"
    write_records(path, [choice_row(), choice_row(item="test/1")])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + whole.splitlines()[0][:50], encoding="utf-8")
    with pytest.raises(DataError, match=r"records.jsonl line 3: not valid JSON .* cut off"):
        read_records(path)
    with pytest.warns(UserWarning, match=r"1 damaged record\(s\) left out; the first: .* line 3"):
        assert [record.item for record in read_records(path, skip_damaged=True)] == ["test/0", "test/1"]
    path.write_text(whole.replace('"label": 1', '"label": 9', 1), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: 'label' must lie in"):
        read_records(path)
    path.write_text(whole.replace("-0.69", "NaN, -0.69", 1), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: holds NaN"):
        read_records(path)
    path.write_text("[1, 2]\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 1: a record must be a JSON object, got list"):
        read_records(path)
    path.write_bytes(b'{"model": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="line 1: not UTF-8"):
        read_records(path)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match="is not a file; run the evaluation first"):
        read_records(tmp_path / "records.jsonl")
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no records"):
        read_records(tmp_path / "records.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    write_records(path, [choice_row()])
    before = path.read_bytes()
    with pytest.raises(DataError, match="must be normalised"):
        write_records(path, [choice_row(item="new"), choice_row(log_probs=[-9.0, -9.0])])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="space"):
        write_records(path, [choice_row(item="new")])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]
