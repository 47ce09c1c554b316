"""mergekit's YAML: what it becomes, what is told, what is refused; the defaults that differ are written out."""

import json

import pytest
import torch
import yaml
from merge_cases import make_adapter, peft_deltas

from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.merge import MergeConfig, merge_adapters
from vlora.merge.mergekit import is_mergekit, translate
from vlora.posterior import Posterior
from vlora.recipes.cli import main


def models(*weights, base="org/base", **parameters):
    return [
        {"model": f"{base}+org/lora{i}", "parameters": {"weight": w, **parameters}}
        for i, w in enumerate(weights)
    ]


def translated(method, entries, **values):
    return translate({"merge_method": method, "models": entries, **values})


def test_only_theirs_is_theirs():
    assert is_mergekit({"merge_method": "ties"})
    assert not is_mergekit({"method": "ties"})


def test_ties_gets_mergekits_defaults():
    result, lines = translated("ties", models(0.5, 0.3), base_model="org/base", dtype="bfloat16")
    assert result == {
        "method": "ties",
        "density": 1.0,
        "normalise": True,
        "adapters": [{"path": "org/lora0", "weight": 0.5}, {"path": "org/lora1", "weight": 0.3}],
        "base_model": "org/base",
        "rank": "keep",
    }
    assert lines[-1] == "dtype: adapters keep their dtype and have no tokenizer; ignored"
    load_config(MergeConfig, {**result, "output": "x"})


@pytest.mark.parametrize(
    ("method", "shared", "expected"),
    [
        ("dare_ties", {"density": 0.4}, {"density": 0.4, "normalise": False}),
        ("dare_ties", {"density": 0.4, "normalize": True}, {"normalise": True}),
        ("dare_linear", {"density": 0.4, "lambda": 0.7}, {"scale": 0.7}),
        ("della", {"density": 0.5}, {"epsilon": 0.3, "normalise": False}),
        ("della", {"density": 0.5, "epsilon": 0.05, "int8_mask": True}, {"epsilon": 0.1}),
        ("task_arithmetic", {"lambda": 2}, {"scale": 2.0, "rank": "lossless"}),
        ("linear", {}, {"method": "linear", "rank": "lossless"}),
        ("linear", {"normalize": False}, {"method": "task_arithmetic"}),
    ],
)
def test_parameters_become_keys(method, shared, expected):
    result, _ = translated(method, models(1.0, 0.5), base_model="org/base", parameters=shared)
    assert expected.items() <= result.items()
    load_config(MergeConfig, {**result, "output": "x"})


def test_normalised_sums_divide_the_weights():
    result, lines = translated("task_arithmetic", models(3, 1), parameters={"normalize": True})
    assert [entry["weight"] for entry in result["adapters"]] == [0.75, 0.25]
    assert "divided by their sum" in lines[0]


def test_slerp_counts_from_the_base():
    entries = [{"model": "org/b"}, {"model": "org/a"}]
    result, _ = translated("slerp", entries, base_model="org/a", parameters={"t": 0.3})
    assert result["models"] == [{"path": "org/a", "weight": 0.7}, {"path": "org/b", "weight": 0.3}]
    assert "base_model" not in result


def test_whole_models_keep_dtype_and_tokenizer_and_the_base_leaves_the_list():
    entries = [
        {"model": "org/base"},
        *({"model": f"org/m{i}@v2", "parameters": {"weight": 1}} for i in (1, 2)),
    ]
    result, lines = translated(
        "ties",
        entries,
        base_model="org/base",
        dtype="float16",
        out_dtype="bfloat16",
        tokenizer_source="union",
    )
    assert result["models"] == [{"path": f"org/m{i}", "weight": 1.0, "revision": "v2"} for i in (1, 2)]
    assert (result["base_model"], result["dtype"], result["tokenizer"]) == ("org/base", "bfloat16", "union")
    assert "rank" not in result
    assert lines[0] == "org/base is the base model and adds no task vector; left out of the list"


def test_filters_become_weights_per_module():
    weight = [{"filter": "self_attn.q", "value": 0.5}, {"filter": "mlp", "value": 0}, {"value": 1}]
    result, _ = translated("ties", models(weight, 1.0), base_model="org/base")
    assert result["adapters"][0] == {
        "path": "org/lora0",
        "weight": 1.0,
        "module_weights": {r"self_attn\.q": 0.5, "mlp": 0.0},
    }


def test_gradients_become_lists_and_a_rest_of_zero_a_pattern():
    result, _ = translated("ties", models([0, 0.5, 1], 1.0), base_model="org/base")
    assert result["adapters"][0]["weight"] == 1.0
    assert result["adapters"][0]["module_weights"] == {".": [0.0, 0.5, 1.0]}
    weight = [{"filter": "mlp", "value": [1, 2]}, {"filter": "*", "value": 0}, {"value": 9}]
    result, _ = translated("ties", models(weight, 1.0), base_model="org/base")
    assert result["adapters"][0]["module_weights"] == {"mlp": [1.0, 2.0], ".": 0.0}
    load_config(MergeConfig, {**result, "output": "x"})


def test_density_epsilon_and_lambda_may_differ_between_tensors():
    shared = {
        "density": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}],
        "epsilon": [0.05, 0.1],
        "lambda": [{"filter": "q_proj", "value": 0.7}],
    }
    result, _ = translated("della", models(1, 2), base_model="org/base", parameters=shared)
    assert result["density"] == 0.5 and "epsilon" not in result and "scale" not in result
    assert result["module_options"] == {
        "density": {"mlp": [0.2, 0.8]},
        "epsilon": {".": [0.1, 0.2]},
        "scale": {"q_proj": 0.7},
    }
    load_config(MergeConfig, {**result, "output": "x"})


def test_slerp_positions_become_weights_that_sum_to_one(tmp_path):
    """mergekit's own example: position per filter and layer; the layers are the base's."""
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))
    t = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": 0.25}, {"value": 0.5}]
    entries = [{"model": "org/b"}, {"model": str(tmp_path)}]
    result, _ = translated("slerp", entries, base_model=str(tmp_path), parameters={"t": t})
    assert result["num_layers"] == 4
    assert result["models"] == [
        {"path": str(tmp_path), "weight": 0.5, "module_weights": {"self_attn": [1.0, 0.5, 0.0], "mlp": 0.75}},
        {"path": "org/b", "weight": 0.5, "module_weights": {"self_attn": [0.0, 0.5, 1.0], "mlp": 0.25}},
    ]


def test_one_slice_of_all_layers_is_the_whole_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 4}))

    def slices(low, high):
        return [{"sources": [{"model": m, "layer_range": [low, high]} for m in (str(tmp_path), "org/b")]}]

    values = {"merge_method": "slerp", "base_model": "org/b", "parameters": {"t": 0.5}}
    result, lines = translate({**values, "slices": slices(0, 4)})
    assert [entry["path"] for entry in result["models"]] == ["org/b", str(tmp_path)]
    assert "taken to be the whole model" in lines[0]
    with pytest.raises(ConfigError, match=r"\[0, 3\] is not the whole of .*4 layers"):
        translate({**values, "slices": slices(0, 3)})
    with pytest.raises(ConfigError, match="layer ranges here are parts"):
        translate({**values, "slices": slices(1, 4)})
    with pytest.raises(ConfigError, match="several slices of layers have no counterpart"):
        translate({**values, "slices": slices(0, 2) + slices(2, 4)})


@pytest.mark.parametrize(
    ("method", "entries", "values", "message"),
    [
        ("sce", models(1), {}, "'sce' is none of those that vlora shares with it"),
        ("dare_tie", models(1), {}, "did you mean 'dare_ties'?"),
        ("breadcrumbs", models(1), {}, "'breadcrumbs' is none of those .*; not supported .* nearest: ties"),
        ("nuslerp", models(1), {}, "that is method slerp"),
        ("ties", models(1), {"modules": {}}, "key 'modules' has no counterpart"),
        ("ties", models(1), {"tokenizer": {}}, "key 'tokenizer' has no counterpart"),
        ("ties", models([]), {}, "weight of org/lora0: expected values from the first layer to the last"),
        ("ties", models([0.1, "x"]), {}, "weight of org/lora0: expected a number, got 'x'"),
        ("ties", models([{"filter": "mlp", "value": 1}]), {}, "leave tensors without a value"),
        (
            "ties",
            models(1),
            {"parameters": {"rescale": [True, False]}},
            r"rescale: \[True, False\] is a gradient",
        ),
        (
            "dare_ties",
            models(1),
            {"parameters": {"normalize": [{"filter": "q", "value": True}]}},
            "one value for all",
        ),
        ("ties", models(1), {"parameters": {"density": True}}, "density: expected a number, got True"),
        ("linear", models([1, 2]), {"parameters": {"lambda": [1, 2]}}, "linear has none"),
        (
            "task_arithmetic",
            models([1, 2], 1),
            {"parameters": {"normalize": True}},
            "one positive sum of weights for all tensors",
        ),
        (
            "linear",
            [{"model": "org/a", "parameters": {"weight": [0.5, 1]}}],
            {"parameters": {"normalize": False}},
            "weights per tensor scales whole models",
        ),
        (
            "slerp",
            [{"model": "org/a"}, {"model": "org/b"}],
            {"base_model": "org/a", "parameters": {"t": [0, 1.5]}},
            r"number t in \[0, 1\], got \[0, 1.5\]",
        ),
        (
            "slerp",
            [{"model": "org/a"}, {"model": "org/b"}],
            {"base_model": "org/a", "parameters": {"t": [0, 0]}},
            "nothing to merge",
        ),
        ("ties", [{"model": "b+a"}], {}, "weight of a: weight is missing"),
        ("ties", models(1, gamma=0.1), {}, "parameter 'gamma' has no counterpart"),
        ("ties", models(1), {"parameters": {"rescale": False}}, "rescale: false has no counterpart"),
        (
            "ties",
            [*models(1, density=0.1), *models(1, density=0.2)],
            {},
            "one density for all models, here: 0.1, 0.2",
        ),
        ("ties", [*models(1), {"model": "org/m"}], {}, "some entries are adapters .* and some whole models"),
        ("ties", [*models(1), *models(1, base="org/c")], {}, r"different bases \(org/base, org/c\)"),
        ("ties", [{"model": "org/a"}], {"base_model": "org/a"}, "nothing is left besides the base model"),
        ("ties", None, {}, "expected a list of entries"),
        ("ties", ["org/a"], {}, "expected entries with model: PATH, got 'org/a'"),
        (
            "slerp",
            models(1, 1),
            {"parameters": {"t": 0.5}},
            "slerp needs base_model, two models and a number t",
        ),
        ("linear", models(1), {"parameters": {"lambda": 2}}, "linear has none"),
        (
            "task_arithmetic",
            models(1, -1),
            {"parameters": {"normalize": True}},
            "one positive sum of weights",
        ),
        (
            "linear",
            [{"model": "org/a", "parameters": {"weight": 2}}],
            {"parameters": {"normalize": False}},
            "weights of sum 2 scales whole models",
        ),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(method, entries, values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        translated(method, entries, **values)
    assert "\n" not in str(caught.value)


def test_the_command_merges_it(tmp_path, capsys):
    folders = [make_adapter(tmp_path / name, seed) for seed, name in enumerate("ab", 1)]
    entries = [
        {"model": f"tiny/base+{folders[0]}", "parameters": {"weight": 0.6, "density": 0.5}},
        {"model": str(folders[1]), "parameters": {"weight": -0.2, "density": 0.5}},
    ]
    config = {
        "merge_method": "ties",
        "base_model": "tiny/base",
        "models": entries,
        "parameters": {"lambda": 0.9},
    }
    path = tmp_path / "mergekit.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        main(["merge", str(path)])
    assert "names no output; add output=FOLDER" in capsys.readouterr().err
    try:
        main(["merge", str(path), f"output={tmp_path}/out", "overwrite=true"])
    except SystemExit as stop:
        assert not stop.code
    assert "note: mergekit: the result is an adapter again, rank: keep" in capsys.readouterr().err
    inputs = [Posterior.from_pretrained(folder) for folder in folders]
    settings = {"method": "ties", "weights": [0.6, -0.2], "density": 0.5, "scale": 0.9, "normalise": True}
    merge_adapters(inputs, **settings).save_pretrained(tmp_path / "ours")
    ours, theirs = peft_deltas(tmp_path / "ours"), peft_deltas(tmp_path / "out")
    assert all(torch.equal(ours[module], theirs[module]) for module in ours)
    path.write_text(yaml.safe_dump({**config, "models": [{"model": "org/m", "parameters": {"weight": 1}}]}))
    with pytest.raises(SystemExit):
        main(["merge", str(path), f"output={tmp_path}/model"])
    assert (
        "no folder tiny/base here" in capsys.readouterr().err
    )  # a merge of whole models, whose base is looked for
