"""`vlora merge --help` and the configuration name every method and every key; the table fits the functions."""

import dataclasses
import inspect

import pytest

from vlora.merge import METHODS, MergeConfig
from vlora.merge.options import OPTIONS
from vlora.recipes.cli import main


def test_help_names_every_method_with_its_keys(capsys):
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name, method in METHODS.items():
        keys = lines[name].partition(": ")[2].split(", ")
        assert tuple(key for key in keys if key) == method.options


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_a_method_are_the_keywords_of_its_function(name):
    parameters = inspect.signature(METHODS[name].function).parameters
    keywords = {p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert keywords == {"rank", *METHODS[name].options}
    assert METHODS[name].paper
    assert METHODS[name].summary


def test_the_configuration_has_every_option_and_no_other():
    fields = {f.name for f in dataclasses.fields(MergeConfig)}
    assert set(OPTIONS) <= fields
    assert {option for method in METHODS.values() for option in method.options} == set(OPTIONS)
    assert fields - set(OPTIONS) == {
        "method",
        "adapters",
        "output",
        "base_model",
        "into",
        "rank",
        "overwrite",
        "verify",
        "ledger",
        "module_options",
        "num_layers",
    }
