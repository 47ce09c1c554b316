"""Outputs are replaced whole or not at all, and never over something else."""

import errno
import json
import os
from pathlib import Path

import pytest

import vlora.files
from vlora.errors import OutputError, OutputExistsError
from vlora.files import atomic_folder, atomic_write, check_output_folder, output_path, strict_json


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as new:
        (new / "deep").mkdir()
        (new / "deep/file").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def no_exchange(*_args: object) -> bool:
    """As where the system has no ``renameat2``."""
    return False


@pytest.fixture(params=["exchange", "fallback"])
def both_ways(request, monkeypatch):
    if request.param == "fallback":
        monkeypatch.setattr(vlora.files, "_exchange", no_exchange)


def test_a_folder_is_made_with_its_parents_and_replaced_without_traces(tmp_path, both_ways):
    target = tmp_path / "a" / "out"
    fill(target, "first")
    assert tree(target) == {"deep/file": "first"}
    (target / "only in the old one").write_text("x")
    fill(target, "second")
    assert tree(tmp_path) == {"a/out/deep/file": "second"}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bug")])
def test_whatever_is_raised_inside_keeps_the_old_folder(tmp_path, error):
    fill(tmp_path / "out", "first")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "out") as new:
        (new / "half").write_text("half")
        raise error
    assert tree(tmp_path) == {"out/deep/file": "first"}


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EACCES, "Permission denied; choose a folder you may write to"),
        (errno.EROFS, "Read-only file system; choose a folder you may write to"),
        (errno.EIO, "Input/output error; check the path"),
    ],
)
@pytest.mark.parametrize("place", ["fsync", "move_into_place"])
def test_a_failing_disk_keeps_the_old_folder(tmp_path, monkeypatch, place, code, cure):
    fill(tmp_path / "out", "first")

    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(vlora.files, place, fail)
    with pytest.raises(OutputError, match=cure) as caught:
        fill(tmp_path / "out", "second")
    assert str(caught.value).endswith("(nothing was changed)")
    assert tree(tmp_path) == {"out/deep/file": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_fallback_puts_the_old_folder_back(tmp_path, monkeypatch):
    """Without an exchange there is a moment with neither; a failure in it is undone."""
    fill(tmp_path / "out", "first")
    monkeypatch.setattr(vlora.files, "_exchange", no_exchange)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        fill(tmp_path / "out", "second")
    assert tree(tmp_path) == {"out/deep/file": "first"}


def test_a_link_stays_a_link(tmp_path, both_ways):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    fill(tmp_path / "out", "first")
    fill(tmp_path / "out", "second")
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "disk") == {"deep/file": "second"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_one_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    assert atomic_write(path, "grün") == path
    assert path.read_bytes() == "grün".encode()

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="free some space"):
        atomic_write(path, b"other")
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("file", "grün".encode())]


def test_what_may_be_replaced(tmp_path):
    folder = tmp_path / "out"
    assert check_output_folder(folder, "marker") == folder
    folder.mkdir()
    assert check_output_folder(folder, "marker", overwrite=False) == folder  # empty
    for name in "abcd":
        (folder / name).write_text("")
    with pytest.raises(OutputExistsError, match=r"holds something else \(a, b, c, …\) and no marker"):
        check_output_folder(folder, "marker")
    (folder / "marker").write_text("")
    assert check_output_folder(folder, "marker") == folder
    with pytest.raises(OutputExistsError, match="already holds a result; set overwrite=true or move it"):
        check_output_folder(folder, "marker", overwrite=False)
    with pytest.raises(OutputExistsError, match="is a file where a folder was expected"):
        check_output_folder(folder / "marker", "marker")


def test_home_is_expanded_and_the_working_directory_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_path("~/out") == tmp_path / "out"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert output_path("out") == Path("out")
    for folder in (".", "..", "", "/", tmp_path / "here", "../here"):
        with pytest.raises(OutputError, match="is the folder you are in, or one above it"):
            output_path(folder)


def test_a_file_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write .*; check the path"):
        atomic_write(tmp_path / "file" / "below.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_strict_json_has_no_number_that_json_lacks():
    content = {"a": float("inf"), "b": [float("-inf"), (float("nan"), 0.5)], "c": "NaN", "d": True, "e": None}
    text = strict_json(content)
    assert json.loads(text) == {"a": None, "b": [None, [None, 0.5]], "c": "NaN", "d": True, "e": None}
    assert text.endswith("}\n") and "\n" not in strict_json(content, indent=None)[:-1]
