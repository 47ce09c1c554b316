"""Reading the sets of an evaluation: labels that are known, partly known, or of another task; names of models."""

import json

import pytest

from vlora.config import load_config
from vlora.data import Example
from vlora.errors import DataError
from vlora.eval.config import EvalConfig, EvalDataConfig
from vlora.eval.items import _label_probs, load_items, read_class_names


def _file(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_gaps_in_labels_are_items_without_a_right_answer(tmp_path):
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": None}, {"text": "c", "label": 0}]
    data = EvalDataConfig(test=_file(tmp_path / "t.jsonl", rows))
    names = read_class_names(data, None)
    assert names == ["0", "1"]
    items = load_items("sequence_classification", data, names)
    assert [item.example.label for item in items] == [1, None, 0]
    assert [(item.split, item.example.group, item.example.item) for item in items[:1]] == [
        ("test", "test", "test/0")
    ]


def test_ood_set_of_another_task_counts_as_unlabelled_as_a_whole(tmp_path, caplog):
    test = _file(tmp_path / "t.jsonl", [{"text": "a", "label": 1}, {"text": "c", "label": 0}])
    other = _file(tmp_path / "o.jsonl", [{"text": "who", "label": 0}, {"text": "when", "label": 5}])
    same = _file(tmp_path / "s.jsonl", [{"text": "fine", "label": 1}])
    bare = _file(tmp_path / "b.jsonl", [{"text": "word"}])
    data = EvalDataConfig(test=test, ood={"other": other, "same": same, "bare": bare})
    items = load_items("sequence_classification", data, ["0", "1"])
    found = {item.example.item: (item.split, item.example.group, item.example.label) for item in items}
    assert found == {
        "test/0": ("test", "test", 1),
        "test/1": ("test", "test", 0),
        "other/0": ("ood", "other", None),
        "other/1": ("ood", "other", None),
        "same/0": ("ood", "same", 1),
        "bare/0": ("ood", "bare", None),
    }
    assert [record.message for record in caplog.records] == [
        "data.ood.other is used without right answers: "
        "other row 1: 'label' is 5, outside the 2 classes 0..1 (0, 1)"
    ]
    broken = EvalDataConfig(
        test=test, ood={"broken": _file(tmp_path / "x.jsonl", [{"body": "w", "label": 9}])}
    )
    with pytest.raises(DataError, match="broken row 0: no column 'text'"):
        load_items("sequence_classification", broken, ["0", "1"])


def test_class_names_follow_the_head(tmp_path):
    integers = EvalDataConfig(test=_file(tmp_path / "i.jsonl", [{"text": "a", "label": i} for i in (0, 2)]))
    assert read_class_names(integers, 5) == ["0", "1", "2", "3", "4"]
    words = _file(tmp_path / "w.jsonl", [{"text": "a", "label": name} for name in ("yes", "no", "maybe")])
    assert read_class_names(EvalDataConfig(test=words), 3) == ["maybe", "no", "yes"]
    with pytest.raises(
        DataError, match="head has 4 classes but the data name 3 .*give data.labels in the order"
    ):
        read_class_names(EvalDataConfig(test=words), 4)


def test_models_get_distinct_names(tmp_path):
    values = {"task": "causal_lm", "data": {"test": "t.jsonl"}, "output": "out"}
    config = load_config(
        EvalConfig, {**values, "model": ["runs/a/ivon", "runs/b/ivon/", {"path": "c", "name": "x"}, "base"]}
    )
    assert [entry.name for entry in config.models] == ["ivon", "ivon-2", "x", "base"]
    assert [entry.path for entry in config.models] == ["runs/a/ivon", "runs/b/ivon/", "c", "base"]


@pytest.mark.parametrize(
    "probs", [[float("nan")] * 3, ["a", 0.5, 0.5], [0.5, 0.5], [2.0, -1.0, 0.0], [[1.0], [0], 0], "b"]
)
def test_bad_known_answer_distributions_name_the_item(probs):
    """Parsed JSON may hold NaN, and lists of anything."""
    choices = ("a", "b", "c")
    for example in (
        Example(item="test/2", choices=choices, extra={"p": probs}),
        Example(item="test/2", extra={"p": probs}),
    ):
        with pytest.raises(
            DataError, match="^test/2: 'p' must hold 3 finite probabilities, one a choice, that sum to 1"
        ):
            _label_probs(example, "p", "test", 3)
    good = Example(item="test/2", choices=choices, extra={"p": [0.5, 0.25, 0.25]})
    assert _label_probs(good, "p", "test", 0) == [0.5, 0.25, 0.25]
