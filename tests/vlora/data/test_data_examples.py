import pytest
from datasets import ClassLabel, Dataset, Features, Value

from vlora.data import RowFormat, class_names, examples_from_rows, load_examples, load_rows
from vlora.errors import DataError

FMT = RowFormat()


def one(task, row, fmt=FMT, **kwargs):
    return examples_from_rows(task, [row], fmt, **kwargs)[0]


def test_integer_string_bool_and_hub_labels_map_to_indices(write_rows):
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    assert class_names(rows, "label") == ["0", "1", "2"]
    named = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]
    assert class_names(named, "label") == ["neg", "pos"]
    assert [e.label for e in examples_from_rows("sequence_classification", named, FMT)] == [1, 0]
    assert class_names([{"label": True}, {"label": False}], "label") == ["False", "True"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    hub = Dataset.from_list([{"text": "a", "label": 1}], features=features)
    assert class_names(hub, "label") == ["good", "bad"]
    given = examples_from_rows("sequence_classification", named, FMT, labels=["pos", "neg"])
    assert [e.label for e in given] == [0, 1]


def test_integers_survive_a_gap_in_their_column(tmp_path):
    """A CSV column with gaps is read as floats; 0.0 and 1.0 are the classes 0 and 1, not False and True."""
    assert class_names([{"label": 1.0}, {"label": 0.0}], "label") == ["0", "1"]
    path = tmp_path / "gap.csv"
    path.write_text("text,label,a,b,c\nx,0,A,B,C\ny,,A,B,C\nz,2,A,B,C\n", encoding="utf-8")
    rows = load_rows(str(path))
    assert [row["label"] for row in rows] == [0.0, None, 2.0]
    found = examples_from_rows(
        "sequence_classification", rows, FMT, labels=["0", "1", "2"], require_label=False
    )
    assert [example.label for example in found] == [0, None, 2]
    choices = RowFormat(prompt="text", choices=["a", "b", "c"], answer="label")
    found = examples_from_rows("multiple_choice", rows, choices, require_label=False)
    assert [(example.label, example.response) for example in found] == [(0, "A"), (None, None), (2, "C")]


def test_classes_come_from_all_rows_even_when_few_are_drawn(write_rows):
    path = write_rows([{"text": "x", "label": name} for name in "abcdefgh"])
    examples = load_examples("sequence_classification", path, FMT, max_rows=1)
    assert examples[0].label == "abcdefgh".index(examples[0].extra["label"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0], "expected at least two classes, got 1"),
        (["a", 1], "all be integers or all strings, got int, str"),
        ([-1, 1], r"class indices 0\.\.99999, got -1\.\.1"),
        ([1.5, 2.5], "got float"),
        ([0.0, float("nan")], "got float, int"),
        ([True, 0.0], "got bool, int"),
    ],
)
def test_columns_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        class_names([{"label": label} for label in labels], "label")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 2}, r"train row 0: 'label' is 2, outside the 2 classes 0\.\.1 \(no, yes\)"),
        ({"text": "a", "label": "maybe"}, "'label' is 'maybe', outside the 2 classes"),
        ({"text": "a", "label": None}, "'label' is None"),
        ({"sentence": "a", "label": 0}, "no column 'text'; the columns are sentence, label"),
        ({"text": 5, "label": 0}, "column 'text' must be a string, got int 5"),
        ({"text": None, "label": 0}, "column 'text' must be a string, got NoneType"),
    ],
)
def test_bad_classification_rows_are_named(row, message):
    with pytest.raises(DataError, match=message):
        one("sequence_classification", row, labels=["no", "yes"])


def test_a_missing_label_column_names_the_columns():
    with pytest.raises(DataError, match="no label column 'label'; the columns are text, stars"):
        examples_from_rows("sequence_classification", [{"text": "a", "stars": 1}], FMT)


def test_unlabelled_rows_pass_when_asked():
    assert one("sequence_classification", {"text": "a"}, require_label=False).label is None
    open_question = {"question": "q", "choices": ["a", "b"]}
    assert one("multiple_choice", open_question, require_label=False).label is None
    lm = RowFormat(prompt="{question}")
    assert one("causal_lm", {"question": "q"}, lm, require_label=False).response is None


def test_pairs_templates_and_groups():
    row = {"premise": "p", "hypothesis": "h", "score": 3, "label": 1, "where": "ood"}
    pair = one("sequence_classification", row, RowFormat(text=["premise", "hypothesis"]), labels=["a", "b"])
    assert (pair.text, pair.text_pair) == ("p", "h")
    made = one(
        "sequence_classification",
        row,
        RowFormat(text="{premise} {{x}} {score}", group="where"),
        labels=["a", "b"],
        split="test",
    )
    assert (made.text, made.group, made.item) == ("p {x} 3", "ood", "test/0")
    with pytest.raises(DataError, match="no column 'premis'"):
        one("sequence_classification", row, RowFormat(text="{premis}"), labels=["a", "b"])
    with pytest.raises(DataError, match="cannot be parsed"):
        one("sequence_classification", row, RowFormat(text="{premise"), labels=["a", "b"])


@pytest.mark.parametrize(
    ("row", "fmt"),
    [
        ({"question": "q", "choices": ["x", "y", "z"], "answer": 1}, RowFormat()),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "B"}, RowFormat()),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "b"}, RowFormat()),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "y"}, RowFormat()),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "1"}, RowFormat()),
        ({"question": "q", "choices": ["x", "y", "z"], "answer": "2"}, RowFormat(answer_offset=1)),
        (
            {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answer": "2"},
            RowFormat(),
        ),
        (
            {"s": "q", "o1": "x", "o2": "y", "o3": "z", "k": 2},
            RowFormat(prompt="{s}", choices=["o1", "{o2}", "o3"], answer="k", answer_offset=1),
        ),
    ],
)
def test_every_way_of_naming_the_answer(row, fmt):
    example = one("multiple_choice", row, fmt)
    assert example.prompt == "q"
    assert example.choices == ("x", "y", "z")
    assert (example.label, example.response) == (1, "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, r"answer 3 is not one of the 3 choices \(indices 0\.\.2"),
        ({"answer": "D"}, "answer 'D' is not one of the 3 choices"),
        ({"answer": -1}, "answer -1 is not one"),
        ({"answer": 1.5}, "answer 1.5 is not one"),
        ({"answer": float("nan")}, "answer nan is not one"),
        ({"answer": True}, "answer True is not one"),
        ({"choices": "xyz"}, "must be a list of strings, got 'xyz'"),
        ({"choices": ["x"]}, "at least two choices, got 1"),
        ({"choices": ["x", 2]}, "must be a list of strings"),
    ],
)
def test_bad_multiple_choice_rows_are_named(change, message):
    row = {"question": "q", "choices": ["x", "y", "z"], "answer": 0, **change}
    with pytest.raises(DataError, match=message):
        one("multiple_choice", row)


def test_prompt_and_response_and_plain_text():
    fmt = RowFormat(prompt="Q: {q}\nA:", response="a")
    example = one("causal_lm", {"q": "why", "a": "because"}, fmt)
    assert (example.prompt, example.response, example.label) == ("Q: why\nA:", "because", None)
    plain = one("causal_lm", {"text": "once"})
    assert (plain.text, plain.prompt, plain.response) == ("once", "", None)


def test_reference_sets_load(shared_dir):
    data = shared_dir / "data"
    arc = load_examples("multiple_choice", str(data / "arc_easy/train.jsonl.gz"), FMT, max_rows=5)
    assert all(e.choices[e.label] == e.response for e in arc)
    trec = load_examples(
        "sequence_classification", str(data / "trec/test.jsonl.gz"), RowFormat(label="label_name")
    )
    assert len(trec) == 500
