import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlora.data import RowFormat, data_collator, encode_continuation, encode_examples, fitting_length, join
from vlora.data.encode import IGNORE
from vlora.data.examples import Example
from vlora.errors import ConfigError, DataError
from vlora.models import load_tokenizer

PLAIN = RowFormat(chat="never")
CHAT = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.fixture(scope="module")
def llama_tokens(tiny_llama):
    return load_tokenizer(str(tiny_llama))


@pytest.fixture(scope="module")
def merging_tokens():
    """BPE without word boundaries, so that a token can straddle prompt and response."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.train_from_iterator(
        ["ab:cd"] * 20, trainers.BpeTrainer(vocab_size=30, special_tokens=["?", "</s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="</s>")


def response(item="train/0", prompt="what is the colour ?", answer="red"):
    return Example(item=item, prompt=prompt, response=answer)


@pytest.mark.parametrize(
    ("prompt", "continuation", "joined"),
    [
        ("a", "b", "a b"),
        ("a ", "b", "a b"),
        ("a\n", "b", "a\nb"),
        ("a", " b", "a b"),
        ("", "b", "b"),
        ("a", "", "a"),
    ],
)
def test_join_adds_one_separator(prompt, continuation, joined):
    assert join(prompt, continuation) == joined


def test_loss_is_on_the_response_and_eos_only(llama_tokens):
    encoded = encode_examples("causal_lm", [response()], llama_tokens, PLAIN)
    row = encoded[0]
    learnt = [label for label in row["labels"] if label != IGNORE]
    assert llama_tokens.decode(learnt) == "red </s>"
    assert row["input_ids"] == [*llama_tokens("what is the colour ? red")["input_ids"], 2]
    assert row["labels"][:6] == [IGNORE] * 6
    assert (encoded.num_tokens, encoded.num_target_tokens, encoded.num_truncated) == (8, 2, 0)


def test_choices_end_without_eos_unless_asked(llama_tokens):
    example = Example(item="a", prompt="item 3", response="red", choices=("red", "blue"), label=0)
    ids = encode_examples("multiple_choice", [example], llama_tokens, PLAIN)[0]["input_ids"]
    assert ids[-1] != 2
    ids = encode_examples("multiple_choice", [example], llama_tokens, RowFormat(append_eos=True))[0][
        "input_ids"
    ]
    assert ids[-1] == 2


def test_a_token_across_the_boundary_is_scored(merging_tokens):
    made = encode_continuation(merging_tokens, "ab:", "cd", RowFormat(separator=""))
    assert made.input_ids == merging_tokens("ab:cd")["input_ids"]
    prompt = merging_tokens("ab:")["input_ids"]
    assert prompt != made.input_ids[: len(prompt)]  # the case is a real one
    assert made.prompt_length < len(prompt)
    assert "cd" in merging_tokens.decode(made.input_ids[made.prompt_length :])


def test_truncation_keeps_bos_and_the_response(llama_tokens):
    prompt = " ".join(str(number % 30) for number in range(40))
    made = encode_continuation(llama_tokens, prompt, "red blue", PLAIN, append_eos=True, max_length=10)
    assert made.truncated
    assert len(made.input_ids) == 10
    assert made.input_ids[0] == llama_tokens.bos_token_id
    assert llama_tokens.decode(made.input_ids[made.prompt_length :]) == "red blue </s>"
    assert llama_tokens.decode(made.input_ids[1 : made.prompt_length]).split() == [
        "4",
        "5",
        "6",
        "7",
        "8",
        "9",
    ]


def test_a_response_longer_than_the_limit_is_cut_at_its_end(llama_tokens):
    answer = " ".join(str(number % 30) for number in range(40))
    made = encode_continuation(llama_tokens, "item 3", answer, PLAIN, max_length=8)
    assert made.prompt_length == 1
    assert llama_tokens.decode(made.input_ids[1:]).split() == ["0", "1", "2", "3", "4", "5", "6"]


def test_an_empty_response_is_named(llama_tokens):
    with pytest.raises(DataError, match="train/7: the response '' has no token to learn"):
        encode_examples(
            "causal_lm", [response("train/7", answer="")], llama_tokens, RowFormat(append_eos=False)
        )


def test_plain_text_learns_every_token_and_packs_into_blocks(llama_tokens):
    texts = [Example(item=str(i), text="red green blue " * 3) for i in range(4)]
    rows = encode_examples("causal_lm", texts, llama_tokens, RowFormat(max_length=6))
    assert (len(rows), rows.num_truncated, rows[0]["labels"]) == (4, 4, rows[0]["input_ids"])
    packed = encode_examples("causal_lm", texts, llama_tokens, RowFormat(max_length=16, packing=True))
    flat = [token for i in range(len(packed)) for token in packed[i]["input_ids"]]
    one = [*llama_tokens("red green blue " * 3)["input_ids"], 2]
    assert flat == one * 4
    assert [len(packed[i]["input_ids"]) for i in range(len(packed))] == [16, 16, 12]
    assert (packed.num_truncated, packed.num_examples) == (0, 4)
    with pytest.raises(DataError, match="nothing to learn"):
        encode_examples("causal_lm", [Example(item="0", text="")], llama_tokens, RowFormat(append_eos=False))


def test_chat_template_wraps_prompt_and_ends_the_turn(tiny_llama):
    tokens = load_tokenizer(str(tiny_llama))
    with pytest.raises(DataError, match="has no chat template"):
        encode_continuation(tokens, "a", "b", RowFormat(chat="always"))
    tokens.chat_template = CHAT
    fmt = RowFormat(system="good")
    made = encode_continuation(tokens, "what colour ?", "red", fmt, append_eos=True)
    assert tokens.decode(made.input_ids[made.prompt_length :]) == "red </s>"
    text = tokens.decode(made.input_ids[: made.prompt_length])
    assert text.count("</s>") == 2  # the system's and the user's turns
    assert tokens.bos_token not in text  # the template alone decides on special tokens
    bare = encode_continuation(tokens, "what colour ?", "red", fmt)
    assert tokens.decode(bare.input_ids[bare.prompt_length :]) == "red"
    never = encode_continuation(tokens, "what colour ?", "red", PLAIN)
    assert never.input_ids[0] == tokens.bos_token_id
    tokens.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError, match="chat template failed: no system role"):
        encode_continuation(tokens, "a", "b", fmt)


def test_classification_rows_keep_the_label_and_count_truncation(tiny_bert):
    tokens = load_tokenizer(str(tiny_bert))
    texts = [Example(item="0", text="good film", label=1), Example(item="1", text="bad " * 30, label=0)]
    encoded = encode_examples("sequence_classification", texts, tokens, RowFormat(max_length=8))
    assert [encoded[i]["labels"] for i in range(2)] == [1, 0]
    assert (encoded.num_truncated, len(encoded[1]["input_ids"])) == (1, 8)
    batch = data_collator("sequence_classification", tokens)([encoded[0], encoded[1]])
    assert batch["attention_mask"].sum(1).tolist() == [4, 8]
    with pytest.raises(DataError, match="2: no label"):
        encode_examples("sequence_classification", [Example(item="2", text="good")], tokens, PLAIN)


def test_padding_carries_no_loss(llama_tokens):
    encoded = encode_examples("causal_lm", [response(), response(prompt="item 3")], llama_tokens, PLAIN)
    batch = data_collator("causal_lm", llama_tokens)([encoded[0], encoded[1]])
    assert batch["labels"][1].tolist()[-3:] == [IGNORE] * 3
    assert batch["attention_mask"][1].tolist() == [1] * 5 + [0] * 3


def test_the_model_bounds_the_length(llama_tokens):
    class Config:
        max_position_embeddings = 48

    assert fitting_length(RowFormat(), llama_tokens, Config()) == 48
    assert fitting_length(RowFormat(), llama_tokens, Config(), num_virtual_tokens=8) == 40
    assert fitting_length(RowFormat(max_length=9), llama_tokens, Config()) == 9
    assert fitting_length(RowFormat(), llama_tokens, object()) == 64  # the tokenizer's own limit


def test_the_hash_of_rows_sees_every_token(llama_tokens):
    first = encode_examples("causal_lm", [response()], llama_tokens, PLAIN)
    same = encode_examples("causal_lm", [response()], llama_tokens, PLAIN)
    other = encode_examples("causal_lm", [response(answer="blue")], llama_tokens, PLAIN)
    assert first.sha256() == same.sha256() != other.sha256()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"text": ["a"]}, "must name two columns"),
        ({"choices": ["a"]}, "at least two columns"),
        ({"labels": ["a", "a"]}, "must be distinct"),
    ],
)
def test_impossible_formats_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RowFormat(**values)
