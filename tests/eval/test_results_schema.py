"""The published schema of results.json: equal to its types, and real results obey both."""

import json

import jsonschema
import pytest
from pydantic import ValidationError
from test_results import make_model
from test_results_tokens import make_model as make_texts

from vlora.eval.results import compute_results
from vlora.eval.results_schema import SCHEMA_FILE, Results, results_schema


@pytest.fixture(scope="module")
def choices():
    rows = [*make_model("plain", 2.0, draws=0, seed=1), *make_model("ivon", 0.3, seed=2)]
    impossible = next(row for row in rows if row["group"] == "hard")
    impossible |= {"log_probs": [0.0, None, None], "label": 1}
    sections = {name: {"x": 1} for name in ("cost", "settings", "versions", "hardware")}
    return compute_results(rows, num_bootstrap=10, **sections)


@pytest.fixture(scope="module")
def texts():
    return compute_results([*make_texts("a"), *make_texts("b", 0.5)], num_bootstrap=10, num_samples=4)


def test_the_file_is_what_the_types_say():
    assert json.loads(SCHEMA_FILE.read_text()) == results_schema(), "run python -m vlora.eval.results_schema"


@pytest.mark.parametrize("kind", ["choices", "texts"])
def test_real_results_are_described_completely(kind, request):
    results = request.getfixturevalue(kind)
    Results.model_validate_json(json.dumps(results, allow_nan=False), strict=True)


def test_what_is_not_described_or_missing_is_found(choices):
    with pytest.raises(ValidationError, match="surprise"):
        Results.model_validate({**choices, "surprise": 1})
    with pytest.raises(ValidationError, match="figures"):
        Results.model_validate({key: value for key, value in choices.items() if key != "figures"})


@pytest.mark.parametrize("kind", ["choices", "texts"])
def test_the_schema_accepts_real_results_and_more_keys(kind, request):
    results = {**request.getfixturevalue(kind), "later": 1}
    jsonschema.Draft202012Validator.check_schema(results_schema())
    jsonschema.validate(json.loads(json.dumps(results)), results_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**results, "format": 2}, results_schema())
