"""A plan from headers alone: sizes, shards, what is missing or differs; and bad checkpoints, each in one line."""

import json

import pytest
import torch
from checkpoint_cases import llama, lora, merge, odd_tensors, raw_model, save_model, settings, tensors_of
from safetensors.torch import save_file

from vlora.errors import CheckpointError, ConfigError, OutputError
from vlora.merge.checkpoints import make_plan
from vlora.merge.checkpoints.layout import lay_out, parse_size
from vlora.merge.checkpoints.plan_text import render


@pytest.fixture
def two(tmp_path):
    return [str(raw_model(tmp_path / name, odd_tensors(i))) for i, name in enumerate("ab")]


def plan(tmp_path, folders, **values):
    return make_plan(settings(tmp_path / "out", models=[{"path": path} for path in folders], **values))


def test_numbers_are_exact(tmp_path, two):
    found = plan(tmp_path, two, dtype="bfloat16", max_shard_size="300KB", threads=2)
    entries = sum(value.numel() for value in odd_tensors(0).values())
    assert found.bytes_read == 2 * 4 * entries
    assert sum(shard.nbytes - len(shard.header) for shard in found.shards) == 2 * entries
    written = merge(
        tmp_path / "out",
        models=[{"path": path} for path in two],
        dtype="bfloat16",
        max_shard_size="300KB",
        threads=2,
    )
    sizes = {path.name: path.stat().st_size for path in written.glob("*.safetensors")}
    assert sizes == {shard.file: shard.nbytes for shard in found.shards}
    assert len(sizes) == 2
    assert json.loads((written / "config.json").read_text())["dtype"] == "bfloat16"
    content = found.to_json()
    assert content["problems"] == []
    assert {t["name"]: t["shape"] for t in content["tensors"]}["stack.weight"] == [3, 5, 11]
    assert json.loads(json.dumps(content)) == content


def test_passes_are_counted(tmp_path, two):
    once, twice = (plan(tmp_path, two, method=m, base_model=two[0]) for m in ("task_arithmetic", "ties"))
    assert twice.bytes_read == 2 * once.bytes_read


def test_memory_does_not_grow_with_the_model(tmp_path):
    sizes = []
    for count in (1, 4):
        tensors = {f"t{i}.weight": torch.zeros(1024, 4096 * count) for i in range(2)}
        folder = str(raw_model(tmp_path / str(count), tensors))
        found = plan(tmp_path, [folder, folder], method="ties", base_model=folder, threads=2)
        sizes.append(found.estimate.memory_bytes)
    assert sizes[0] == sizes[1] < 256 * 2**20


def test_the_text_names_what_matters(tmp_path, two):
    tensors = odd_tensors(2)
    tensors["extra.weight"] = torch.zeros(3)
    del tensors["odd.weight"]
    tensors["vector.weight"] = torch.zeros(34)
    third = str(raw_model(tmp_path / "c", tensors, {"rope_theta": 1e6, "model_type": "mistral"}))
    found = plan(tmp_path, [*two, third])
    assert found.draft.missing == {"c": ["odd.weight"]}
    assert found.draft.extra == {"c": ["extra.weight"]}
    assert found.draft.mismatched == {"vector.weight": {"a": [33], "b": [33], "c": [34]}}
    text = render(found)
    for part in (
        "missing    c: odd.weight", "extra      c: extra.weight", "cannot be carried out",
        "rope_theta: None in a, None in b, 1000000.0 in c", "read and merged at",
        "the models have different architectures: 'a' is llama, 'b' is llama, 'c' is mistral",
    ):  # fmt: skip
        assert part in text
    with pytest.raises(CheckpointError, match="'c' lacks 1 tensors.*vector.weight has the shape") as caught:
        found.check()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_shards_as_transformers_makes_them(tmp_path):
    model = llama(tie_word_embeddings=False)
    theirs = save_model(tmp_path / "theirs", model, shard="4KB")
    index = json.loads((theirs / "model.safetensors.index.json").read_text())
    tensors = [(name, "F32", tuple(value.shape)) for name, value in model.state_dict().items()]
    ours = lay_out(tensors, 4000, {"format": "pt"})
    assert len(ours) == len(set(index["weight_map"].values()))
    assert {s.file for s in ours} == set(index["weight_map"].values())
    assert max(s.nbytes - len(s.header) for s in ours) <= 4000


def test_wider_tensors_come_first_so_that_all_are_aligned(tmp_path):
    shard = lay_out([("a", "U8", (3,)), ("b", "F32", (2,)), ("c", "BF16", (5,))], 10**9, {})[0]
    for entry in shard.tensors.values():
        assert entry.start % {"U8": 1, "F32": 4, "BF16": 2}[entry.dtype] == 0


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5MiB", 1572864), ("700KB", 700_000), (123, 123), ("12B", 12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_no_space_is_known_before(tmp_path, two, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    found = plan(tmp_path, two)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes, 1 are free; free some space"):
        found.check()


def damaged(folder, how):
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(data[:-5])
    elif how == "longer":
        weights.write_bytes(data + b"12345678")
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "no json":
        weights.write_bytes(data[:9] + b"???" + data[12:])
    elif how == "wrong size":
        weights.write_bytes(data.replace(b'"shape":[7,13]', b'"shape":[7,12]'))
    elif how == "missing":
        weights.unlink()
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "bad config":
        (folder / "config.json").write_text("{")
    elif how == "quantised":
        (folder / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text(
            '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'
        )
    elif how == "index lies":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x.y": "model.safetensors"}}')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "truncated",
            r"b/model\.safetensors is truncated or damaged: its header promises \d+ bytes, it has \d+",
        ),
        ("longer", r"b/model\.safetensors is truncated or damaged"),
        ("empty", r"b/model\.safetensors is truncated or no safetensors file \(0 bytes\)"),
        ("no json", r"b/model\.safetensors has a damaged header"),
        ("wrong size", r"damaged header \(odd\.weight has 364 bytes, its shape needs 336\)"),
        ("missing", r"'b': .*b has no model\.safetensors: is it a model folder"),
        ("pickle", r"it holds pytorch_model\.bin, which vlora does not open; save the model again"),
        ("no config", r"'b': .* has no config\.json"),
        ("bad config", r"'b': .*config\.json is not JSON"),
        ("quantised", r"'b' is quantised \(bitsandbytes\), and codes cannot be merged"),
        ("index", r"names model-00001-of-00002\.safetensors, which is not in"),
        ("index lies", r"lists 1 tensors that are in none of its files, first x\.y"),
    ],
)
def test_a_bad_checkpoint_is_one_line(tmp_path, two, how, message):
    damaged(tmp_path / "b", how)
    with pytest.raises(CheckpointError, match=message) as caught:
        plan(tmp_path, two)
    assert "\n" not in str(caught.value)


def test_other_bad_inputs(tmp_path, two):
    with pytest.raises(
        CheckpointError, match="'nowhere': no folder .*nowhere; give a model folder or a hub id"
    ):
        plan(tmp_path, [*two, str(tmp_path / "nowhere")])
    with pytest.raises(
        ConfigError, match="which is 0; make it positive, or use method: task_arithmetic with"
    ):
        make_plan(settings(tmp_path / "out", models=[{"path": two[0]}, {"path": two[1], "weight": -1}]))
    with pytest.raises(CheckpointError, match="'a': no Fisher file"):
        models = [{"path": path, "fisher": str(tmp_path / "none")} for path in two]
        make_plan(settings(tmp_path / "out", method="fisher", models=models))


def test_an_adapter_among_the_models_is_told_apart(tmp_path, two):
    adapter = lora(tmp_path / "adapter", llama())
    message = (
        "'adapter': .*adapter is an adapter folder, not a model; list it under adapters: with into: model"
    )
    with pytest.raises(CheckpointError, match=message):
        plan(tmp_path, [*two, str(adapter)])


def test_an_output_in_an_input_is_refused(tmp_path, two):
    models = [{"path": path, "fisher": str(tmp_path / "fisher")} for path in two]
    (tmp_path / "fisher").mkdir()
    for place in ("a/m", "b/m/n", "fisher/m"):
        with pytest.raises(ConfigError, match="lies inside the input .*; choose a folder beside it"):
            make_plan(settings(tmp_path / place, method="fisher", models=models, overwrite=True))


def test_buffers_are_copied_and_codes_refused(tmp_path):
    tensors = {**odd_tensors(0), "steps": torch.arange(5), "flag": torch.tensor([True, False])}
    folders = [raw_model(tmp_path / name, tensors) for name in "ab"]
    out = merge(tmp_path / "out", models=[{"path": str(f)} for f in folders], dtype="float16")
    found = tensors_of(out)
    assert torch.equal(found["steps"], tensors["steps"]) and torch.equal(found["flag"], tensors["flag"])
    assert found["odd.weight"].dtype == torch.float16
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, folders[0] / "model.safetensors")
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, folders[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match="w is in F8_E4M3, 8-bit codes whose scales are elsewhere"):
        plan(tmp_path / "new", [str(f) for f in folders]).check()


def test_a_tied_output_layer_that_one_model_saved(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.randn(17, 4), "x.weight": torch.randn(3)}
    tied = {"tie_word_embeddings": True}
    first = raw_model(tmp_path / "a", tensors, tied)
    second = raw_model(
        tmp_path / "b", {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tied
    )
    third = raw_model(tmp_path / "c", {**tensors, "lm_head.weight": torch.randn(17, 4)})
    found = plan(tmp_path, [str(first), str(second)])
    assert not found.problems and any("saved its tied output layer" in note for note in found.draft.notes)
    untied = plan(tmp_path, [str(third), str(first)])  # the tied one's output layer is its embedding
    assert not untied.problems
    assert {job.name: job.inputs[1].name for job in untied.draft.jobs}[
        "lm_head.weight"
    ] == "model.embed_tokens.weight"
    assert plan(tmp_path, [str(first), str(third)]).draft.extra == {"c": ["lm_head.weight"]}


def test_an_adapter_of_another_base(tmp_path):
    adapter = lora(tmp_path / "adapter", llama())
    other = save_model(tmp_path / "other", llama(hidden_size=24))
    with pytest.raises(
        CheckpointError, match=r"down_proj has the shape \(24, 20\) in the base, the adapter updates 12 x 20"
    ):
        make_plan(
            settings(tmp_path / "out", into="model", base_model=str(other), adapters=[{"path": str(adapter)}])
        )
    shallow = save_model(tmp_path / "shallow", llama(num_hidden_layers=1))
    with pytest.raises(CheckpointError, match=r"the base has no tensor for the module model\.layers\.1\."):
        make_plan(
            settings(
                tmp_path / "out", into="model", base_model=str(shallow), adapters=[{"path": str(adapter)}]
            )
        )


def test_looking_at_a_plan_merges_no_adapters(tmp_path, monkeypatch):
    from vlora.merge.checkpoints import adapter_inputs
    from vlora.merge.checkpoints.run import carry_out

    base = save_model(tmp_path / "base", llama())
    adapters = [
        {"path": str(lora(tmp_path / name, llama(), i, target_modules=targets))}
        for i, (name, targets) in enumerate({"a": ["q_proj"], "b": ["q_proj", "down_proj"]}.items(), 1)
    ]
    config = settings(
        tmp_path / "out", into="model", base_model=str(base), adapters=adapters, method="linear"
    )
    real = make_plan(config)
    monkeypatch.setattr(adapter_inputs, "merge_with_report", None)
    dry = make_plan(config, dry=True)
    assert dry.to_json()["tensors"] == real.to_json()["tensors"]
    assert sum(job["rule"] == "AddLowRank" for job in dry.to_json()["tensors"]) == 4
    with pytest.raises(ValueError, match="only to be looked at"):
        carry_out(dry)
