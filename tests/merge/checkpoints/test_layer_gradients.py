"""mergekit's lists over layers on whole models: values by hand, as mergekit 0.1.5 writes them; adapters into a base."""

import pytest
import torch
import yaml
from checkpoint_cases import llama, lora, merge, raw_model, save_model, settings, tensors_of

from vlora.errors import ConfigError
from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
from vlora.recipes.merge_config import load_merge

LAYERS = 3
NAMES = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(LAYERS)
        for part in ("mlp.up_proj", "self_attn.q_proj")
    ),
    "model.norm.weight",
]


@pytest.fixture
def world(tmp_path):
    """A base of zeros, a model of ones and one of threes."""
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        config = {"num_hidden_layers": LAYERS}
        raw_model(tmp_path / name, {key: torch.full((4, 2), value) for key in NAMES}, config)
    return tmp_path


def merged(folder, method, parameters, shared=None, base: str | None = "base"):
    values = {
        "merge_method": method,
        "models": [
            {"model": str(folder / n), "parameters": p} for n, p in zip("ab", parameters, strict=True)
        ],
        "parameters": shared or {},
        **({"base_model": str(folder / base)} if base else {}),
    }
    (folder / "theirs.yaml").write_text(yaml.safe_dump(values))
    config = load_merge(folder / "theirs.yaml", [f"output={folder / 'out'}"])
    assert isinstance(config, ModelMergeConfig) and config.num_layers in (None, LAYERS)
    return tensors_of(run_model_merge(config))


def check(found, mlp, attention, outside):
    expected = {NAMES[0]: outside, NAMES[-1]: outside}
    for i in range(LAYERS):
        expected |= {f"model.layers.{i}.mlp.up_proj.weight": mlp[i]}
        expected |= {f"model.layers.{i}.self_attn.q_proj.weight": attention[i]}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.full((4, 2), value), msg=lambda m, n=name: f"{n}: {m}")


def test_a_mean_whose_weights_run_over_the_layers(world):
    found = merged(world, "linear", [{"weight": [1, 3]}, {"weight": 1}], base=None)
    check(found, [2.0, 5 / 3, 1.5], [2.0, 5 / 3, 1.5], 2.0)


def test_a_position_of_slerp_per_filter_and_layer(world):
    t = [{"filter": "mlp", "value": [0, 1]}, {"filter": "self_attn", "value": [1, 0.5, 0]}, {"value": 0.25}]
    found = merged(world, "slerp", [{}, {}], {"t": t}, base="a")
    check(found, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], 1.5)


def test_a_sum_with_weights_and_lambda_per_filter_and_layer(world):
    weights = [{"weight": [{"filter": "mlp", "value": [1, -1]}, {"value": 0.5}]}, {"weight": [0, 0.5, 2]}]
    found = merged(world, "task_arithmetic", weights, {"lambda": [{"filter": "q_proj", "value": [1, 2]}]})
    check(found, [1.0, 1.5, 5.0], [0.5, 1.5 * 2.0, 2 * 6.5], 0.5)


def test_a_density_over_the_layers(world):
    values = torch.tensor([[1.0, -8.0], [7.0, 2.0], [3.0, -6.0], [5.0, 4.0]])
    raw_model(world / "c", {key: values.clone() for key in NAMES}, {"num_hidden_layers": LAYERS})
    models = [{"path": str(world / "c")}]
    options = {"module_options": {"density": {"mlp": [0.25, 1.0]}}, "density": 0.5}
    found = tensors_of(
        merge(world / "out", method="ties", models=models, base_model=str(world / "base"), **options)
    )
    for name, kept in ((0, 7), (1, 4), (2, 1)):  # shares of 8 entries: 2, 5, 8
        wanted = torch.where(values.abs() >= kept, values, 0)
        assert torch.equal(found[f"model.layers.{name}.mlp.up_proj.weight"], wanted)
        assert found[f"model.layers.{name}.self_attn.q_proj.weight"].count_nonzero() == 4


def test_patterns_of_options_are_checked_on_models(world):
    models = [{"path": str(world / "a")}]
    with pytest.raises(ConfigError, match="'nowhere' of module_options.scale matches none of 8"):
        merge(
            world / "out", method="task_arithmetic", models=models, base_model=str(world / "base"),
            module_options={"scale": {"nowhere": 2.0}},
        )  # fmt: skip


@pytest.mark.parametrize("method", ["ties", "dare_linear", "della", "task_arithmetic", "linear"])
def test_patterns_match_module_names_for_every_method(tmp_path, method):
    base = tensors_of(save_model(tmp_path / "base", llama()))
    adapters = [{"path": str(lora(tmp_path / n, llama(), seed=i))} for i, n in enumerate("ab", 1)]
    common = {"method": method, "base_model": str(tmp_path / "base"), "into": "model"}

    def run(out, pattern):
        weights = {"module_weights": {pattern: 1e-9}}
        return tensors_of(merge(tmp_path / out, adapters=[{**a, **weights} for a in adapters], **common))

    wanted = r"\.1\..*q_proj$"
    found = run("out", wanted)
    changed = {k for k in base if (found[k] - base[k]).norm() > 1e-3 * base[k].norm()}
    names = {f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")}
    if method not in ("linear", "ties", "della"):  # there equal weights are a mean, however small
        names -= {"model.layers.1.self_attn.q_proj.weight"}
    assert changed == names
    with pytest.raises(
        ConfigError, match=r"of module_weights matches none of 4 modules \(first model\.layers\.0"
    ):
        run("other", r"q_proj\.weight$")


@pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
def test_adapters_go_into_a_base_with_the_weights_written_out(tmp_path, method):
    save_model(tmp_path / "base", llama())
    adapters = [{"path": str(lora(tmp_path / n, llama(), seed=i))} for i, n in enumerate("ab", 1)]

    def run(out, weights, options):
        listed = [{**a, "module_weights": w} for a, w in zip(adapters, weights, strict=True)]
        return tensors_of(
            run_model_merge(
                settings(
                    tmp_path / out,
                    method=method,
                    adapters=listed,
                    base_model=str(tmp_path / "base"),
                    into="model",
                    module_options={"scale": options},
                )  # fmt: skip
            )
        )

    one = run("one", [{".": [0.2, 0.8]}, {}], {"q_proj": [2.0, 1.0]})
    two = run("two", [{r"\.0\.": 0.2, r"\.1\.": 0.8}, {}], {r"\.0\..*q_proj": 2.0})
    assert all(torch.equal(one[k], two[k]) for k in one)
