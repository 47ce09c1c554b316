"""Task files: every shipped one reads, wrong keys and names get the nearest right one, rows come out in one form."""

import gzip
import json

import pytest

from vlora.data import SourceConfig
from vlora.errors import ConfigError, DataError
from vlora.eval.task_files import TaskFile, load_task, task_names, task_sha256
from vlora.eval.task_forms import common_rows
from vlora.eval.task_rows import read_task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def own(tmp_path, text):
    (tmp_path / "own.yaml").write_text(text)
    return load_task(str(tmp_path / "own.yaml"))


def test_every_shipped_task_reads():
    names = task_names()
    wanted = {
        "arc_easy", "arc_challenge", "openbookqa", "boolq", "winogrande", "siqa", "hellaswag", "mmlu_csv",
        "truthfulqa_mc1", "truthfulqa_mc2", "halueval_qa", "halueval_dialogue", "halueval_summarization",
        "halueval_general", "simpleqa", "nq_open", "evouna_nq",
        "closed_world",
    }  # fmt: skip
    assert wanted <= set(names)
    hashes = {name: task_sha256(load_task(name)) for name in names}
    assert len(set(hashes.values())) == len(names)


def test_names_and_keys_get_the_nearest_right_one(tmp_path):
    with pytest.raises(ConfigError, match="no task 'arc_eazy'; did you mean 'arc_easy'"):
        load_task("arc_eazy")
    with pytest.raises(ConfigError, match="unknown key 'promt'; did you mean 'prompt'"):
        own(tmp_path, "title: t\nkind: open_qa\npromt: '{question}'\n")
    with pytest.raises(ConfigError, match="go together"):
        own(tmp_path, "title: t\nkind: multiple_choice\nprompt: p\ntrue_answers: [a]\n")
    with pytest.raises(ConfigError, match="kind"):
        own(tmp_path, "title: t\nkind: quiz\nprompt: p\n")


def test_the_hash_changes_with_template_and_examples():
    task = TaskFile(title="t", kind="open_qa", prompt="Q: {question}")
    other = TaskFile(title="t", kind="open_qa", prompt="Q {question}")
    assert task_sha256(task) != task_sha256(other)
    assert task_sha256(task) != task_sha256(task, ["Q: a b"])


def test_columns_of_local_and_hub_data(tmp_path):
    local = write(tmp_path / "a.jsonl", [{"question": "Which?", "choices": ["x", "y"], "answer": 1}])
    hub = write(
        tmp_path / "b.jsonl",
        [{"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}],
    )
    for path in (local, hub):
        (row,) = read_task(load_task("arc_easy"), path).rows
        assert row["prompt"] == "Question: Which?\nAnswer:"
        assert (row["choices"], row["answer"]) == (["x", "y"], 1)
    with pytest.raises(DataError, match="no column 'answer' or 'answerKey' for 'answer'; the columns are"):
        read_task(load_task("arc_easy"), write(tmp_path / "c.jsonl", [{"question": "q", "choices": ["a"]}]))


def test_choices_in_a_sentence(tmp_path):
    path = write(
        tmp_path / "w.jsonl",
        [{"question": "Ann beat Bo so _ won.", "choices": ["Ann", "Bo"], "answer": 0}],
    )
    (row,) = read_task(load_task("winogrande"), path).rows
    assert (row["prompt"], row["choices"]) == ("Ann beat Bo so", ["Ann won.", "Bo won."])
    path = write(tmp_path / "v.jsonl", [{"question": "no gap", "choices": ["a", "b"], "answer": 0}])
    with pytest.raises(DataError, match="test row 0: no '_' in the sentence"):
        read_task(load_task("winogrande"), path)
    path = write(tmp_path / "u.jsonl", [{"question": "_", "choices": ["a", "b", "c"], "answer": 0}])
    with pytest.raises(DataError, match="test row 0: expected 2 choices, got 3"):
        read_task(load_task("winogrande"), path)


def test_truthfulqa_marks(tmp_path):
    row = {
        "question": "Q?", "category": "c", "best_answer": "t1", "correct": ["t2", "t1"],
        "incorrect": ["f1", "t2", "f2"],
    }  # fmt: skip
    path = write(tmp_path / "t.jsonl", [row])
    (one,) = read_task(load_task("truthfulqa_mc1"), path).rows
    assert (one["choices"], one["true"], one["answer"]) == (
        ["t1", "f1", "t2", "f2"],
        [True, False, False, False],
        0,
    )
    (two,) = read_task(load_task("truthfulqa_mc2"), path).rows
    assert (two["choices"], two["true"]) == (["t1", "t2", "f1", "f2"], [True, True, False, False])
    assert two["group"] == "c"


def test_fixed_choices_and_booleans(tmp_path):
    path = write(
        tmp_path / "b.jsonl",
        [
            {"passage": "P.", "question": "is it", "answer": True},
            {"passage": "P.", "question": "q", "answer": False},
        ],
    )
    rows = read_task(load_task("boolq"), path).rows
    assert [row["answer"] for row in rows] == [1, 0]
    assert rows[0]["prompt"] == "P.\nQuestion: is it?\nAnswer:" and rows[0]["choices"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("name", "question", "kind", "prompt"),
    [
        ("qa", {"knowledge": "K.", "question": "Q"}, "answer", "K.\nQuestion: Q\nAnswer:"),
        (
            "dialogue",
            {"knowledge": "K.", "dialogue_history": "[Human]: Q"},
            "response",
            "K.\n[Human]: Q [Assistant]:",
        ),
        ("summarization", {"document": "D."}, "summary", "D.\nSummary:"),
    ],
)
def test_both_sides_of_every_question(tmp_path, name, question, kind, prompt):
    row = {**question, f"right_{kind}": "r", f"hallucinated_{kind}": "h"}
    rows = read_task(load_task(f"halueval_{name}"), write(tmp_path / "h.jsonl", [row, row])).rows
    assert [(r["response"], r["correct"]) for r in rows] == [("r", True), ("h", False)] * 2
    assert len({r["item"] for r in rows}) == 4 and {r["prompt"] for r in rows} == {prompt}


def test_labels_of_given_answers_point_where_the_task_says(tmp_path):
    rows = [{"question": "q", "response": "a", "label": 1}, {"question": "q", "response": "b", "label": 0}]
    path = write(tmp_path / "g.jsonl", [{**row, "model": "m"} for row in rows])
    assert [r["correct"] for r in read_task(load_task("evouna_nq"), path).rows] == [True, False]
    assert [r["correct"] for r in read_task(load_task("halueval_general"), path).rows] == [False, True]
    path = write(tmp_path / "n.jsonl", [*rows, {"question": "q", "response": "c", "label": None}])
    with pytest.raises(
        DataError, match="test row 2: 'label' must say yes or no .* got None; every given answer"
    ):
        read_task(load_task("halueval_general"), path)


@pytest.mark.parametrize(
    ("label", "right"),
    [(1.0, True), ("1.0", True), ("0.0", False), (0.0, False), ("Yes", True), (False, False)],
)
def test_every_way_of_saying_yes_or_no(tmp_path, label, right):
    path = write(tmp_path / "g.jsonl", [{"question": "q", "response": "a", "model": "m", "label": label}])
    assert [row["correct"] for row in read_task(load_task("evouna_nq"), path).rows] == [right]


@pytest.mark.parametrize("label", [0.5, float("nan"), float("inf"), 2, -1, "maybe", ""])
def test_labels_between_yes_and_no_are_refused(label):
    row = {"question": "q", "response": "a", "model": "m", "label": label}
    with pytest.raises(DataError, match=r"test row 0: 'label' must say yes or no \(1 or 0\), got"):
        list(common_rows(row, load_task("evouna_nq"), "test row 0", 0))


def test_a_bad_row_is_named_once():
    task = load_task("arc_easy")
    with pytest.raises(DataError, match="^test row 7: no column 'question'; the columns are body$"):
        list(common_rows({"body": "b"}, task, "test row 7", 7))


def test_mmlu_csv_with_examples_of_the_subject(tmp_path):
    for folder, count in (("test", 2), ("dev", 6)):
        (tmp_path / folder).mkdir()
        for subject in ("art", "law"):
            lines = [f'"{subject} {folder} {n}, what?",w,x,y,z,{"ABCD"[n % 4]}\n' for n in range(count)]
            (tmp_path / folder / f"{subject}_{folder}.csv").write_text("".join(lines))
    task = load_task("mmlu_csv")
    found = read_task(task, str(tmp_path / "test"), fewshot=str(tmp_path / "dev"))
    assert [row["group"] for row in found.rows] == ["art", "art", "law", "law"]
    assert [row["answer"] for row in found.rows] == [0, 1, 0, 1]
    prompt = found.rows[3]["prompt"]
    assert prompt.count("law dev") == 5 and "art" not in prompt and prompt.endswith("D. z\nAnswer:")
    assert "law dev 1, what?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\nlaw dev 2" in prompt
    assert len(found.shots) == 10 and found.sha256 == task_sha256(task, found.shots)
    with pytest.raises(DataError, match="give data.fewshot"):
        read_task(task, str(tmp_path / "test"))
    (tmp_path / "dev" / "law_dev.csv").write_text("q,w,x,y,z,A\n")
    with pytest.raises(DataError, match="wants 5 examples, data.fewshot has 1 rows of group 'law'"):
        read_task(task, str(tmp_path / "test"), fewshot=str(tmp_path / "dev"))
    (tmp_path / "test" / "law_test.csv").write_text("q,w,x,y,A\n")
    with pytest.raises(DataError, match=r"law_test.csv row 0: expected 6 columns \(question, A.*got 5"):
        read_task(task, str(tmp_path / "test"), fewshot=str(tmp_path / "dev"))


def test_seeded_examples_are_the_same_for_all_and_hashed(tmp_path):
    text = "title: t\nkind: open_qa\nprompt: 'Q {question} A'\nfewshot: {num_shots: 2, seed: 3}\n"
    task = own(tmp_path, text)
    rows = [{"question": f"q{n}", "answers": [f"a{n}", "b"]} for n in range(9)]
    test, shots = write(tmp_path / "t.jsonl", rows[:2]), write(tmp_path / "s.jsonl", rows[2:])
    found = read_task(task, test, fewshot=shots)
    assert len(found.shots) == 2 and all(row["prompt"].startswith(found.shots[0]) for row in found.rows)
    assert found.rows[0]["prompt"].endswith("\n\nQ q0 A")
    again = read_task(own(tmp_path, text.replace("seed: 3", "seed: 4")), test, fewshot=shots)
    assert again.sha256 != found.sha256


def test_identities_and_empty_data(tmp_path):
    task = own(tmp_path, "title: t\nkind: open_qa\nprompt: '{question}'\nid: key\n")
    rows = [{"question": "q", "answers": [], "key": n} for n in (7, 8, 7)]
    with pytest.raises(DataError, match="test rows 0 and 2 share the key 7; rows must be distinct"):
        read_task(task, write(tmp_path / "d.jsonl", rows))
    assert [row["item"] for row in read_task(task, write(tmp_path / "e.jsonl", rows[:2])).rows] == ["7", "8"]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="has no rows"):
        read_task(task, SourceConfig(path=str(tmp_path / "empty.jsonl")))


def real_rows(shared_dir, name, folder):
    from vlora.eval.task_config import task_sources

    place, task = shared_dir / "data" / folder, load_task(name)
    if not place.is_dir():
        pytest.skip(f"the shared data hold no {folder}")
    return read_task(task, task_sources(task, name, str(place))["test"]).rows


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "folder", "count"),
    [
        ("arc_easy", "arc_easy", 2376),
        ("hellaswag", "hellaswag_1k", 1000),
        ("truthfulqa_mc1", "truthfulqa", 817),
        ("truthfulqa_mc2", "truthfulqa", 817),
    ],
)
def test_real_data(shared_dir, name, folder, count):
    rows = real_rows(shared_dir, name, folder)
    assert len(rows) == count and all(row["answer"] is not None for row in rows)
    if name.startswith("truthfulqa"):
        true = [sum(row["true"]) for row in rows]
        assert (max(true) == 1) is (name == "truthfulqa_mc1") and min(true) == 1
        assert all(len(row["true"]) == len(row["choices"]) for row in rows)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "right"), [("evouna_nq", True), ("halueval_general", False)])
def test_real_given_answers(shared_dir, name, right):
    """Labels point where the task says: the share of right answers is that of the raw labels, or what they leave."""
    rows = real_rows(shared_dir, name, name)
    with gzip.open(shared_dir / "data" / name / "all.jsonl.gz", "rt", encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    assert [row["correct"] for row in rows] == [bool(one["label"]) is right for one in raw]
    assert [row["response"] for row in rows] == [one["response"] for one in raw]
    assert all(one["question"] in row["prompt"] for row, one in zip(rows, raw, strict=True))
    if name == "evouna_nq":
        assert {row["group"] for row in rows} == {one["model"] for one in raw}


@pytest.mark.shared
def test_real_open_questions(shared_dir):
    rows = real_rows(shared_dir, "nq_open", "nq_open")
    assert len(rows) == 3610 and all(row["references"] for row in rows)
    assert rows[0]["prompt"] == f"Question: {rows[0]['question']}\nAnswer:"
