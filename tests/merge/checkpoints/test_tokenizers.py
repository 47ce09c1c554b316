"""Tokenizers of the inputs: copied, refused, united; embeddings matched by token."""

import json

import pytest
import torch
from checkpoint_cases import llama, merge, raw_model, save_model, settings, tensors_of

from vlora.errors import CheckpointError
from vlora.merge.checkpoints import make_plan

WORDS = {"a": 0, "b": 1, "c": 2, "[UNK]": 3}


def tokenizer(folder, added=(), words=None, config=True):
    """A word-level tokenizer with added tokens at the given ids."""
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for t, i in added
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(words or WORDS), "unk_token": "[UNK]"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content))
    if config:
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "chat_template": "x"}
            )
        )


def model(folder, rows, seed, added=(), words=None):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "model.embed_tokens.weight": torch.randn(rows, 6, generator=generator),
        "lm_head.weight": torch.randn(rows, 6, generator=generator),
        "model.norm.weight": torch.randn(6, generator=generator),
    }
    raw_model(folder, tensors, {"vocab_size": rows})
    tokenizer(folder, added, words)
    return folder


def sources(*folders):
    return [{"path": str(folder)} for folder in folders]


def test_equal_tokenizers_are_copied(tmp_path):
    folders = [model(tmp_path / name, 5, i, [("<s>", 4)]) for i, name in enumerate("ab")]
    (folders[1] / "tokenizer_config.json").write_text("{}")  # how it is called makes no other vocabulary
    out = merge(tmp_path / "out", models=sources(*folders))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (folders[0] / name).read_bytes()
    (folders[1] / "tokenizer.json").unlink()  # no tokenizer, no difference
    merge(tmp_path / "other", models=sources(*folders))


def test_union_of_added_tokens(tmp_path):
    first = model(tmp_path / "a", 6, 1, [("<s>", 4), ("<a>", 5)])
    second = model(tmp_path / "b", 7, 2, [("<b>", 4), ("<s>", 5), ("<bb>", 6)])
    both = sources(first, second)
    with pytest.raises(
        CheckpointError, match=r"tokenizers of 'a' and 'b' differ in 4 tokens, first '<a>'.*union"
    ):
        make_plan(settings(tmp_path / "out", models=both)).check()
    out = merge(tmp_path / "out", models=both, tokenizer="union", block_megabytes=1e-4)
    a, b, merged = (tensors_of(folder) for folder in (first, second, out))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        va, vb = a[name], b[name]
        expected = [(va[i] + vb[i]) / 2 for i in range(4)]  # a, b, c, [UNK]
        expected += [(va[4] + vb[5]) / 2, va[5], vb[4], vb[6]]  # <s>, <a>, <b>, <bb>
        torch.testing.assert_close(merged[name], torch.stack(expected))
    torch.testing.assert_close(
        merged["model.norm.weight"], (a["model.norm.weight"] + b["model.norm.weight"]) / 2
    )
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 8
    assert "mean of the rows" in json.loads((out / "merge.json").read_text())["notes"][0]


def test_the_united_tokenizer_loads_and_cuts_as_both(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = []
    for seed, (name, added) in enumerate({"a": [("<s>", 4)], "b": [("<s>", 4), ("<b>", 5)]}.items()):
        folder = save_model(tmp_path / name, llama(seed, vocab_size=4 + len(added)), torch.bfloat16)
        tokenizer(folder, added)
        folders.append(folder)
    out = merge(tmp_path / "out", models=sources(*folders), tokenizer="union", max_shard_size="2KB")
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded("a <b> <s> c")["input_ids"] == [0, 5, 4, 2]
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.get_input_embeddings().weight.shape == (6, 12)
    assert merged(torch.tensor([[0, 5]])).logits.isfinite().all()


def test_methods_on_differences_leave_out_what_a_model_lacks(tmp_path):
    base = model(tmp_path / "base", 5, 0, [("<s>", 4)])
    first = model(tmp_path / "a", 6, 1, [("<s>", 4), ("<a>", 5)])
    out = merge(
        tmp_path / "out", method="task_arithmetic", scale=3, base_model=str(base), models=sources(first),
        tokenizer="union",
    )  # fmt: skip
    name = "lm_head.weight"
    torch.testing.assert_close(tensors_of(out)[name][5], tensors_of(first)[name][5])


def test_base_keeps_its_tokens_and_matches_by_token(tmp_path):
    first = model(tmp_path / "a", 5, 1, [("<s>", 4)])
    swapped = {"b": 0, "a": 1, "c": 2, "[UNK]": 3}
    second = model(tmp_path / "b", 6, 2, [("<b>", 4), ("<s>", 5)], swapped)
    with pytest.raises(CheckpointError, match="a union is for added tokens: set tokenizer: base"):
        make_plan(settings(tmp_path / "x", models=sources(first, second), tokenizer="union")).check()
    out = merge(tmp_path / "out", models=sources(first, second), tokenizer="base")
    a, b, merged = (tensors_of(folder)["lm_head.weight"] for folder in (first, second, out))
    torch.testing.assert_close(merged, (a + b[[1, 0, 2, 3, 5]]) / 2)
    assert (out / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_padding_rows_are_matched_by_number(tmp_path):
    first = model(tmp_path / "a", 8, 1, [("<s>", 4)])
    second = model(tmp_path / "b", 8, 2, [("<s>", 4), ("<b>", 5)])
    out = merge(tmp_path / "out", models=sources(first, second), tokenizer="union")
    a, b, merged = (tensors_of(folder)["lm_head.weight"] for folder in (first, second, out))
    expected = (a + b) / 2
    expected[5] = b[5]  # the first has only padding there
    torch.testing.assert_close(merged, expected)


def test_a_tokenizer_from_elsewhere(tmp_path):
    folders = [model(tmp_path / name, 5, i, [("<s>", 4)]) for i, name in enumerate("ab")]
    other = tmp_path / "tokenizer"
    other.mkdir()
    tokenizer(other, [("<t>", 4)])
    out = merge(tmp_path / "out", models=sources(*folders), tokenizer=str(other))
    assert (out / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    tokenizer(other, [("<t>", 9)])
    with pytest.raises(CheckpointError, match="has 10 tokens, the embeddings have 5 rows"):
        make_plan(settings(tmp_path / "x", models=sources(*folders), tokenizer=str(other))).check()
    with pytest.raises(CheckpointError, match="holds no tokenizer; give base, union"):
        make_plan(settings(tmp_path / "x", models=sources(*folders), tokenizer=str(tmp_path)))


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    folders = [model(tmp_path / name, 5, i, [("<s>", 4)]) for i, name in enumerate("ab")]
    (folders[1] / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"b/tokenizer\.json is not a tokenizer of the tokenizers library"
    ):
        make_plan(settings(tmp_path / "x", models=sources(*folders)))
