"""Every shipped configuration is valid, can be listed, shown and copied."""

import pytest

from vlora.config import load_config
from vlora.errors import ConfigError, OutputExistsError
from vlora.eval.config import EvalConfig
from vlora.eval.generation.config import GenerationConfig
from vlora.laplace import PosteriorConfig
from vlora.merge.config import MergeConfig
from vlora.recipes.curvature import CurvatureConfig
from vlora.recipes.library import copy_recipe, list_recipes, read_recipe
from vlora.training.config import TrainConfig

KINDS = {
    "Train": TrainConfig, "Merge": MergeConfig, "Evaluate": EvalConfig, "Answers": GenerationConfig,
    "Posterior": PosteriorConfig, "Curvature": CurvatureConfig,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, _ in list_recipes()])
def test_shipped_configurations_are_valid(name, tmp_path):
    path = copy_recipe(name, tmp_path / "c.yaml")
    kind = read_recipe(name).splitlines()[0].lstrip("# ").split(":")[0]
    load_config(KINDS[kind], path)


def test_each_recipe_starts_with_a_title_and_the_commands():
    assert len(list_recipes()) >= 8
    for name, title in list_recipes():
        assert title.split(":")[0] in KINDS
        assert "vlora " in read_recipe(name).split("\n\n")[0]


def test_copy_refuses_to_overwrite_and_names_the_nearest(tmp_path):
    copy_recipe("llama_chat_ivon", tmp_path / "x.yaml")
    with pytest.raises(OutputExistsError, match="exists; give another name"):
        copy_recipe("llama_chat_ivon", tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="no recipe 'llama_chat_ivn'; did you mean 'llama_chat_ivon'"):
        read_recipe("llama_chat_ivn")
    assert copy_recipe("eval_sentiment", tmp_path).name == "eval_sentiment.yaml"
