"""The commands of docs/hallucination.md under "Selective QA" name settings, tasks and scores that there are."""

import shlex
from pathlib import Path

import pytest

from vlora.eval.generation.config import GenerationConfig
from vlora.eval.generation.estimators import ESTIMATORS
from vlora.recipes.evaluate import load_evaluation

ROOT = Path(__file__).parents[3]


def section():
    text = (ROOT / "docs/hallucination.md").read_text()
    return text.partition("\n## Selective QA\n")[2].partition("\n## ")[0]


def commands():
    block = section().partition("```bash\n")[2].partition("```")[0]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_the_settings_are_read():
    read = [words for words in commands() if words[1] in ("eval", "calibrate")]
    assert [words[1] for words in read] == ["eval", "calibrate"]
    for words in read:
        config = load_evaluation(ROOT / "recipes/configs/eval_answers.yaml", words[3:])
        assert isinstance(config, GenerationConfig) and config.task == "nq_open"
        assert config.data.folder and config.data.validation
    assert config.calibration.risk == pytest.approx(0.1)


def test_the_scores_are_estimators():
    (compared,) = [words for words in commands() if words[1] == "compare"]
    named = [score for flag, score in zip(compared, compared[1:], strict=False) if flag == "--score"]
    assert named and set(named) <= set(ESTIMATORS)


def test_the_names_of_numbers_are_those_of_the_schema():
    schema = (ROOT / "eval/generation/results.schema.json").read_text()
    for name in ("not_attempted", "accuracy_given_attempted", "f_score", "penalised_score", "accuracy_at_80"):
        assert f"`{name}`" in section() and name in schema
    for key in ("risk_coverage", "estimators", "answers", "threshold"):
        assert key in section() and f'"{key}"' in schema
