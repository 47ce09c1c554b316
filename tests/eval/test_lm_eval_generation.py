"""Generating tasks of lm-evaluation-harness: the mean's greedy answer, stop strings, room, the vote of draws."""

import importlib.util
import json

import eval_tiny
import pytest
from transformers import AutoModelForCausalLM

from vlora.errors import ConfigError, DataError
from vlora.eval.generate import Decoding, generate_answers
from vlora.eval.lm_eval_scores import most_given
from vlora.models import load_adapter
from vlora.posterior import Posterior
from vlora.recipes.harness import run_harness

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HARNESS, reason="lm-evaluation-harness is not installed")
ROOM = 6
TEXTS = ["Q w1 w2 A", "Q w7 is w3 w3 w9 A", "who is w5 ?"]


def test_the_vote_of_the_draws():
    assert most_given(["a", "b", "b "], "c") == "b"  # outer white space does not tell answers apart
    assert most_given(["a", "b", "a", "b"], "b") == "b"  # of equally frequent ones the mean's own
    assert most_given(["a", "b", "a", "b"], "c") == "a"
    assert most_given(["a", "b", "d"], "c") == "c"  # draws that all differ do not outvote the mean
    assert most_given(["a"], "c") == "a"
    with pytest.raises(DataError, match="of at least one draw, got none"):
        most_given([], "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny posterior, wide enough that its draws disagree."""
    place = tmp_path_factory.mktemp("generating")
    base = eval_tiny.save_base(place / "base", eval_tiny.llama())
    _, posterior = eval_tiny.adapted(AutoModelForCausalLM.from_pretrained(base), "CAUSAL_LM", 1)
    posterior.save_pretrained(place / "p")
    return place


def greedy(folder, text, draw=None):
    """The greedy answer of our own decoder, as words without the stop token."""
    tokens, posterior = eval_tiny.tokenizer(), Posterior.from_pretrained(folder / "p")
    model = load_adapter(AutoModelForCausalLM.from_pretrained(folder / "base"), posterior).eval()
    prompts, decoding = [tokens(text)["input_ids"]], Decoding(ROOM, stop_ids=frozenset([2]))
    if draw is None:
        ((answer,),) = generate_answers(model, prompts, decoding)
    else:
        with posterior.sampled(model, draw, antithetic=True):
            ((answer,),) = generate_answers(model, prompts, decoding)
    return tokens.decode(answer.ids, skip_special_tokens=True)


def harness_model(folder, **settings):
    from vlora.eval.lm_eval import VloraLM

    return VloraLM(
        str(folder / "p"),
        base_model=str(folder / "base"),
        num_samples=4,
        batch_size=2,
        device="cpu",
        **settings,
    )


def asked(texts, **settings):
    from lm_eval.api.instance import Instance

    return [Instance("generate_until", {}, (text, dict(settings)), row) for row, text in enumerate(texts)]


@needs_harness
def test_greedy_at_the_mean_up_to_a_stop_string_or_the_room(folder):
    model = harness_model(folder)
    wanted = [greedy(folder, text) for text in TEXTS]
    found = model.generate_until(asked(TEXTS, until=[], max_gen_toks=ROOM))
    assert [text.split() for text in found] == [text.split() for text in wanted] and not model.draw_scores
    assert all(len(text.split()) <= ROOM for text in found)
    stop = wanted[0].split()[2]
    (cut,) = model.generate_until(asked(TEXTS[:1], until=[stop], max_gen_toks=ROOM))
    assert cut.strip() == wanted[0].partition(stop)[0].strip() and cut.strip() != wanted[0].strip()
    with pytest.raises(ConfigError, match="answers of up to 64 tokens, prompt and answer together get 64"):
        model.generate_until(asked(TEXTS, until=[], max_gen_toks=64))
    with pytest.raises(ConfigError, match="set max_gen_toks"):  # the harness's own default is 256
        model.generate_until(asked(TEXTS, until=[]))


@needs_harness
def test_the_vote_is_over_the_greedy_answers_of_the_draws(folder, tmp_path):
    docs = [{"q": text, "right": greedy(folder, text, 0).strip()} for text in TEXTS]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "open", "dataset_path": "json", "test_split": "test", "output_type": "generate_until",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "doc_to_text": "{{q}}", "doc_to_target": "{{right}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["?"], "max_gen_toks": ROOM, "do_sample": False},
    }  # fmt: skip
    (tmp_path / "open.yaml").write_text(json.dumps(task))
    settings = {
        "include_path": tmp_path,
        "base_model": str(folder / "base"),
        "num_samples": 4,
        "device": "cpu",
    }
    content = run_harness(str(folder / "p"), ["open"], tmp_path / "o", vote=True, **settings)
    entries = [json.loads(line) for line in (tmp_path / "o/draws.jsonl").read_text().splitlines()]
    right = 0
    for doc, entry in zip(docs, sorted(entries, key=lambda e: TEXTS.index(e["context"])), strict=True):
        own = [greedy(folder, doc["q"], draw).partition("?")[0].split() for draw in range(4)]
        assert [text.split() for text in entry["answers"]] == own
        right += most_given(entry["answers"], entry["at_mean"]).strip() == doc["right"]
    assert content["results"]["open"]["exact_match,none"] == pytest.approx(right / len(docs))
    assert len({text for entry in entries for text in entry["answers"]}) > len(docs)  # draws do disagree
    assert harness_model(folder, vote=True).get_model_info()["vlora_vote"] is True


@needs_harness
def test_the_cache_sees_the_vote_alone_and_no_draws_cannot_vote(folder, caplog):
    model, seen = harness_model(folder, vote=True), []
    model.cache_hook = type("Hook", (), {"add_partial": lambda self, *entry: seen.append(entry)})()
    requests = asked(TEXTS, until=["?"], max_gen_toks=ROOM)
    found = model.generate_until(requests)
    assert seen == [("generate_until", r.args, text) for r, text in zip(requests, found, strict=True)]
    from vlora.eval.lm_eval import VloraLM

    alone = VloraLM(
        str(folder / "p"), base_model=str(folder / "base"), num_samples=0, vote=True, device="cpu"
    )
    assert not alone.vote and "no draws to vote" in caplog.text
