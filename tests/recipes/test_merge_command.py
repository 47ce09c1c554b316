"""``vlora merge``: a configuration merges, a known word is a subcommand, and every subcommand explains itself."""

import json

import pytest
import yaml
from merge_cases import make_adapter

from vlora.recipes.cli import main
from vlora.recipes.merge import merge_app

COMMANDS = [command.name for command in merge_app.registered_commands]


def outcome(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("words", [("cfg.yaml",), ("run", "cfg.yaml"), ("./run",), ("cfg.yaml", "tau=1")])
def test_what_is_no_subcommand_is_a_configuration(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert outcome("merge", *words) == 1
    file = "run" if words == ("./run",) else "cfg.yaml"
    assert f"cannot read the configuration {file}" in capsys.readouterr().err


def test_options_may_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=r"cannot read the configuration cfg\.yaml"):
        main(["merge", "--debug", "cfg.yaml"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_subcommand_has_help(capsys, command):
    assert outcome("merge", command, "--help") == 0
    assert f"Usage: vlora merge {command}" in capsys.readouterr().out


def test_help_after_a_configuration_is_that_of_merging(capsys):
    assert outcome("merge", "cfg.yaml", "--help") == 0
    assert "Usage: vlora merge run" in capsys.readouterr().out


def test_help_lists_the_subcommands(capsys):
    assert outcome("merge", "--help") == 0
    shown = capsys.readouterr().out.partition("Commands:")[2].split()
    assert set(COMMANDS) <= set(shown)


def test_a_misspelt_command_is_offered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert outcome("merge", "preveiw", "cfg.yaml") == 1
    assert "no file preveiw here; did you mean the command `vlora merge preview`?" in capsys.readouterr().err


@pytest.fixture
def unnamed(tmp_path, monkeypatch):
    """Paths of two adapters, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return [str(make_adapter(tmp_path / f"a{seed}", seed)) for seed in (1, 2)]


@pytest.mark.parametrize("mergekit", [False, True])
def test_a_plan_needs_no_output(unnamed, tmp_path, capsys, mergekit):
    ours = {"method": "linear", "adapters": [{"path": path} for path in unnamed]}
    theirs = {
        "merge_method": "linear",
        "models": [{"model": path, "parameters": {"weight": 1}} for path in unnamed],
    }
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(theirs if mergekit else ours))
    (tmp_path / "merged").mkdir()  # the name that would be taken otherwise
    assert outcome("merge", "plan", "cfg.yaml", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["output"] == "merged-2"
    assert "note: cfg.yaml names no output; to merge, add output=FOLDER" in told.err
    assert outcome("merge", "cfg.yaml") == 1
    assert "output" in capsys.readouterr().err
    assert not (tmp_path / "merged-2").exists()


def test_a_preview_needs_no_output(unnamed, tmp_path, capsys):
    (tmp_path / "cfg.yaml").write_text(
        yaml.safe_dump({"method": "linear", "adapters": [{"path": path} for path in unnamed]})
    )
    assert outcome("merge", "preview", "cfg.yaml", "--count", "16", "--out", "look") == 0
    assert "wrote look.html and look.json" in capsys.readouterr().out
    assert not (tmp_path / "merged").exists()
