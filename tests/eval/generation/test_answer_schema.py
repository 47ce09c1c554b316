"""The published schema of results of answers: equal to its types, and real results obey both."""

import json
from dataclasses import replace

import jsonschema
import pytest
from pydantic import ValidationError
from test_answer_results import made

from vlora.eval.generation.results import compute_answer_results
from vlora.eval.generation.schema import SCHEMA_FILE, AnswerResults, answers_schema


@pytest.fixture(scope="module")
def results():
    """Results with every section filled, a group without grades, and a question that the judge failed on."""
    rows = made([0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 1.0, 0.0]) + made(
        [0.5], [None], group="odd", judge_failures=1
    )
    rows += made([0.1, 0.7], [1.0, 0.0], split="validation", group="validation")
    rows += made([0.9, 0.8], [None, None], split="ood", group="nobody")
    rows[0] = replace(rows[0], samples=[])
    head = {
        "format": 1, "kind": "generation", "task": "t", "task_sha256": "a", "task_file": {}, "shots": [],
        "created": "2026-01-01T00:00:00+00:00", "num_samples": 2, "num_answers": 3, "antithetic": True,
        "clusters_by": "token_f1", "num_bootstrap": 20, "seed": 0, "models": [{"name": "m", "kind": "base"}],
        **{name: {"x": 1} for name in ("cost", "settings", "versions", "hardware")},
    }  # fmt: skip
    return {**head, **compute_answer_results(rows, num_bootstrap=20)}


def test_the_file_is_what_the_types_say():
    assert json.loads(SCHEMA_FILE.read_text()) == answers_schema(), (
        "run python -m vlora.eval.generation.schema"
    )


def test_real_results_are_described_completely(results):
    assert all(results[name] for name in ("answers", "estimators", "confidences", "detection", "mistakes"))
    AnswerResults.model_validate_json(json.dumps(results, allow_nan=False), strict=True)
    with pytest.raises(ValidationError, match="surprise"):
        AnswerResults.model_validate({**results, "surprise": 1})
    with pytest.raises(ValidationError, match="missing"):
        AnswerResults.model_validate(
            {**results, "estimators": [{k: v for k, v in results["estimators"][0].items() if k != "missing"}]}
        )


def test_the_schema_accepts_real_results_and_more_keys(results):
    schema = answers_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate({**results, "later": 1}, schema)
    for wrong in ({"format": 2}, {"kind": "choices"}, {"answers": [{"model": "m"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**results, **wrong}, schema)
