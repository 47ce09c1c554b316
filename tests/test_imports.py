"""Importing is cheap, and the public names are the ones we promise."""

import subprocess
import sys

import pytest

import vlora


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_import_vlora_is_light():
    heavy = ("transformers", "peft", "bitsandbytes", "accelerate", "datasets")
    program = "import vlora, sys; vlora.IVON; vlora.Posterior; vlora.Site; print([m for m in {} if m in sys.modules])"
    assert run(program.format(heavy)).strip() == "[]"


def test_the_command_line_does_not_import_torch():
    assert run("import vlora.recipes.cli, sys; print('torch' in sys.modules)").strip() == "False"


def test_merge_and_metrics_need_no_framework():
    show = "print([m for m in ('transformers', 'peft') if m in sys.modules])"
    assert run(f"import vlora.merge.methods, vlora.eval.metrics, sys; {show}").strip() == "[]"


def test_public_names():
    assert sorted(vlora.__all__) == ["IVON", "Posterior", "PosteriorMeta", "Site", "__version__"]
    assert vlora.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'Adam'"):
        _ = vlora.Adam
