"""Values along the layers: by hand, as mergekit 0.1.5 gives them, and merges that use them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from merge_cases import make_adapter, peft_deltas, two

from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.merge import MergeConfig, merge_adapters
from vlora.merge.layers import OptionsByModule, count_layers, layer_number, value_at
from vlora.merge.run import run_merge

NAMES = [f"model.layers.{i}.mlp.up_proj" for i in range(5)]


@pytest.mark.parametrize(
    ("values", "layers", "expected"),
    [
        ([0.0, 1.0], 4, [0.0, 1 / 3, 2 / 3, 1.0]),
        ([1.0, 3.0, 2.0], 5, [1.0, 2.0, 3.0, 2.5, 2.0]),
        ([0.0, 0.5, 0.3, 0.7, 1.0], 5, [0.0, 0.5, 0.3, 0.7, 1.0]),
        ([0.0, 1.0, 0.0, 1.0], 3, [0.0, 0.5, 1.0]),
        ([0.4], 2, [0.4, 0.4]),
        ([0.2, 0.6], 1, [0.6]),
    ],
)
def test_values_by_hand(values, layers, expected):
    assert [value_at(values, name, layers) for name in NAMES[:layers]] == pytest.approx(expected)
    assert value_at(values, "model.embed_tokens", layers) == value_at(values, "lm_head", layers) == values[0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=6), st.integers(2, 40), st.data())
def test_a_gradient_stays_between_its_neighbours(values, layers, data):
    layer = data.draw(st.integers(0, layers - 1))
    found = value_at(values, f"h.{layer}.attn", layers)
    assert min(values) - 1e-9 <= found <= max(values) + 1e-9
    mirrored = value_at(values[::-1], f"h.{layers - 1 - layer}.attn", layers)
    assert found == pytest.approx(mirrored, abs=1e-6)


def test_layers_are_the_first_numbers_in_names():
    assert [layer_number(n) for n in ("h.3.attn", "model.layers.12.experts.4.w1", "lm_head", "conv1d.weight")] == [
        3, 12, None, None,
    ]  # fmt: skip
    assert count_layers([*NAMES, "lm_head"]) == 5 and count_layers(["score"]) == 0
    with pytest.raises(ConfigError, match=r"layer 4 of num_layers: 3"):
        value_at([0.0, 1.0], NAMES[4], 3)


def test_options_of_a_module_are_the_first_that_match():
    options = OptionsByModule({"density": 0.5, "seed": 1}, {"density": {"mlp": [0.2, 1.0], r"\.4\.": 0.9}}, 5)
    assert options.of(NAMES[4]) == {"density": 1.0, "seed": 1}
    assert options.of("model.layers.4.self_attn") == {"density": 0.9, "seed": 1}
    assert options.of("lm_head") == {"density": 0.5, "seed": 1}
    with pytest.raises(ConfigError, match=r"'\\\\.4\\\\.' of module_options.density matches none of 1"):
        options.check_patterns(["model.mlp"])


def test_a_gradient_is_the_weights_written_out(tmp_path):
    _, inputs = two(tmp_path)
    lists = [{"q_proj|v_proj": [0.2, 0.8], "down_proj": [1.0, 0.5]}, {}]
    written = [{r"0.*[qv]_proj": 0.2, r"1.*[qv]_proj": 0.8, "0.*down": 1.0, "1.*down": 0.5}, {}]
    for method in ("task_arithmetic", "linear", "ties"):
        one, two_ = (merge_adapters(inputs, method=method, module_weights=w) for w in (lists, written))
        assert all(torch.equal(one.mean[k], two_.mean[k]) for k in one.mean)
    deeper = merge_adapters(inputs, method="task_arithmetic", module_weights=lists, num_layers=3)
    halfway = [{r"0.*[qv]_proj": 0.2, r"1.*[qv]_proj": 0.5, "0.*down": 1.0, "1.*down": 0.75}, {}]
    same = merge_adapters(inputs, method="task_arithmetic", module_weights=halfway)
    assert all(torch.equal(deeper.mean[k], same.mean[k]) for k in same.mean)


def test_options_per_module_are_those_of_single_merges(tmp_path):
    _, inputs = two(tmp_path)
    settings = {"method": "ties", "density": 0.9}
    mixed = merge_adapters(
        inputs, **settings, module_options={"density": {"q_proj": 0.3}, "scale": {".": [0.5, 1.5]}}
    )
    for layer, scale in ((0, 0.5), (1, 1.5)):
        for kind, density in (("q_proj", 0.3), ("down_proj", 0.9)):
            alone = merge_adapters(inputs, method="ties", density=density, scale=scale)
            keys = [k for k in alone.mean if f".{layer}." in k and kind in k]
            assert keys and all(torch.equal(mixed.mean[k], alone.mean[k]) for k in keys)


def test_the_program_takes_them_and_the_ledger_gives_the_merge_again(tmp_path):
    from vlora.merge.unmerge.run import remove_contributors

    folders = [make_adapter(tmp_path / name, seed) for seed, name in enumerate("abc", 1)]
    values = {
        "method": "dare_linear",
        "adapters": [{"path": str(f), "module_weights": {".": [0.5, 1]}} for f in folders],
        "module_options": {"density": {"down_proj": [0.4, 0.6]}},
        "output": str(tmp_path / "out"),
    }
    run_merge(load_config(MergeConfig, values))
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert report["options"]["module_options"] == {"density": {"down_proj": [0.4, 0.6]}}
    assert report["adapters"][0]["module_weights"] == {".": [0.5, 1.0]}
    done = remove_contributors(tmp_path / "out", ["c"], tmp_path / "left")
    assert done.reproduced and done.way == "merged again"
    fresh = {**values, "adapters": values["adapters"][:2], "output": str(tmp_path / "fresh")}
    run_merge(load_config(MergeConfig, fresh))
    left, again = (peft_deltas(tmp_path / name) for name in ("left", "fresh"))
    assert all(torch.equal(left[m], again[m]) for m in left)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"module_options": {"density": {"q": 0.0}}}, r"density must be a share in \(0, 1\], got 0"),
        (
            {"module_options": {"density": {"q": []}}},
            "module_options.density: the value of 'q' is an empty list",
        ),
        (
            {"module_options": {"density": {"(": 0.5}}},
            r"module_options.density: '\(' is not a regular expression",
        ),
        (
            {"module_options": {"tau": {"q": 0.5}}},
            "method ties has no option 'tau' with values per module, only: den",
        ),
        ({"module_options": {"seed": {"q": 1}}}, "no option 'seed'"),
        ({"num_layers": 0}, "num_layers must be at least 1"),
        ({"module_options": {"density": {"q": "many"}}}, "module_options"),
    ],
)
def test_what_is_no_value_is_refused(settings, message):
    values = {"method": "ties", "adapters": [{"path": "a"}, {"path": "b"}], "output": "o", **settings}
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(MergeConfig, values)
    assert "\n" not in str(caught.value)


def test_gradients_of_weights_are_checked(tmp_path):
    _, inputs = two(tmp_path)
    for pattern, message in (({".": []}, "is an empty list"), ({".": [0.1, float("nan")]}, "is nan")):
        with pytest.raises(ConfigError, match=f"the weight of '.' {message}"):
            merge_adapters(inputs, method="linear", module_weights=[pattern, {}])
    with pytest.raises(ConfigError, match="'nowhere' of module_options.scale matches none"):
        merge_adapters(inputs, method="task_arithmetic", module_options={"scale": {"nowhere": 2.0}})
