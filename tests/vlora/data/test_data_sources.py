import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from vlora.data import SourceConfig, load_rows
from vlora.errors import DataError

ROWS = [{"text": f"row {i}", "label": i % 3} for i in range(20)]


def _write(kind: str, folder: Path) -> str | list[str]:
    data = Dataset.from_list(ROWS)
    path = folder / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in ROWS))
    elif kind == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS))
    elif kind == "parquet":
        data.to_parquet(path)
    elif kind == "saved":
        data.save_to_disk(path)
    elif kind == "saved-dict":
        DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        (path / "train.jsonl").write_text(lines)
        (path / "test.jsonl").write_text(lines[: lines.index("\n") + 1])
    elif kind == "list":
        for name, part in (("a", ROWS[:7]), ("b", ROWS[7:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        return [str(folder / "a.jsonl"), str(folder / "b.jsonl")]
    return str(path)


@pytest.mark.parametrize(
    "kind",
    ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet", "saved", "saved-dict", "folder", "list"],
)
def test_every_kind_of_source_gives_the_same_rows(kind, tmp_path):
    assert load_rows(_write(kind, tmp_path)).to_list() == ROWS


def test_splits_are_named_or_defaulted(tmp_path):
    path = _write("saved-dict", tmp_path)
    assert len(load_rows(SourceConfig(path=path, split="test"))) == 3
    assert len(load_rows(path, split="test")) == 3
    assert len(load_rows(SourceConfig(path=_write("folder", tmp_path), split="test"))) == 1
    assert len(load_rows(SourceConfig(path=_write("jsonl", tmp_path), split="train[:4]"))) == 4
    with pytest.raises(DataError, match="no split 'validation'; it has train, test"):
        load_rows(path, split="validation")


def test_a_draw_is_seeded_ordered_and_without_replacement(tmp_path):
    path = _write("jsonl", tmp_path)
    numbers = [int(text.split()[1]) for text in load_rows(path, max_rows=8, seed=3)["text"]]
    again = [int(text.split()[1]) for text in load_rows(path, max_rows=8, seed=3)["text"]]
    other = [int(text.split()[1]) for text in load_rows(path, max_rows=8, seed=4)["text"]]
    assert numbers == again == sorted(set(numbers))
    assert len(numbers) == 8
    assert other != numbers
    assert len(load_rows(path, max_rows=99)) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, r"data file .*none\.jsonl does not exist \(working directory"),
        ("empty.jsonl", "", "has no rows"),
        ("head.csv", "text,label\n", "has no rows"),
        ("rows.xlsx", "x", r"must end in one of \.jsonl"),
        ("bad.jsonl", '{"text": "a"\n{', "cannot be read"),
        ("no/such/folder/at/all", None, "does not exist"),
    ],
)
def test_unusable_sources_are_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_files_of_two_formats_are_refused(tmp_path):
    paths = [_write("jsonl", tmp_path), _write("csv", tmp_path)]
    with pytest.raises(DataError, match="must share one format"):
        load_rows(paths)
    with pytest.raises(DataError, match="empty list of paths"):
        load_rows([])


def test_an_unknown_hub_data_set_offline_is_one_line():
    with pytest.raises(DataError, match="'no-such-owner/no-such-set' cannot be read: ") as caught:
        load_rows("no-such-owner/no-such-set")
    assert "\n" not in str(caught.value)


def test_a_bad_line_is_told_once(tmp_path, capfd):
    """The readers of datasets log what they raise; only our line is for people."""
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n{"text": ', encoding="utf-8")
    with pytest.raises(DataError, match="bad.jsonl' cannot be read: "):
        load_rows(str(path))
    assert capfd.readouterr().err == ""
