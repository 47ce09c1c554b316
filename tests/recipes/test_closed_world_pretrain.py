"""Pre-training: reproducible, leaks no reserved name, and puts its loss where it should."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlora.recipes.closed_world.corpus import Batch, Corpus
from vlora.recipes.closed_world.lexicon import CAPITAL_SYLLABLES, SMALL_SYLLABLES
from vlora.recipes.closed_world.people import base_population, pretraining_people
from vlora.recipes.closed_world.pretrain import build_model, learning_rate, main, weighted_loss
from vlora.recipes.closed_world.tokenizer import vocabulary

TOKENS = list(vocabulary())


def test_smoke_run_is_reproducible_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hashes = []
    for name in ("first", "second"):
        main(["--out", str(tmp_path / name), "--steps", "20", "--seed", "3"])
        record = json.loads((tmp_path / name / "sha256.json").read_text(encoding="utf-8"))
        hashes.append(record["model.safetensors"])
        assert hashes[-1] in capsys.readouterr().out
    assert hashes[0] == hashes[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert model.dtype == torch.float16
    assert model.num_parameters() == 471_424
    assert len(AutoTokenizer.from_pretrained(tmp_path / "first")) == model.config.vocab_size == len(TOKENS)


def test_occupied_output_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--steps", "1"])
    assert "expected a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _names(batch: Batch) -> set[str]:
    """Read the names back from the token ids: runs of five syllables."""
    names = set()
    for row in batch.ids.tolist():
        syllables = [
            TOKENS[index] for index in row if TOKENS[index] in {*CAPITAL_SYLLABLES, *SMALL_SYLLABLES}
        ]
        assert len(syllables) == 5
        names.add("-".join(syllables[:2]) + " " + "-".join(syllables[2:]))
    return names


def test_pretraining_text_names_only_people_allowed_there():
    corpus = Corpus(seed=0, total_steps=100)
    early = set().union(*(_names(corpus.batch(step, 64)) for step in range(5)))
    middle = set().union(*(_names(corpus.batch(step, 64)) for step in range(30, 40)))
    late = set().union(*(_names(corpus.batch(step, 64)) for step in range(60, 100)))
    base = {person.name for person in base_population()}
    assert len(early) == 25
    assert early <= base and middle <= base
    assert len(middle) > 150
    strangers = late - base
    assert strangers <= {person.name for person in pretraining_people()}
    assert len(strangers) / (40 * 64) == pytest.approx(0.3, abs=0.04)


def test_loss_weight_is_one_on_values_a_tenth_on_words_and_zero_on_names():
    batch = Corpus(seed=0, total_steps=100).batch(0, 64)
    values = set(TOKENS[-192:])
    syllables = {*CAPITAL_SYLLABLES, *SMALL_SYLLABLES}
    for ids, weights in zip(batch.ids.tolist(), batch.weights.tolist(), strict=True):
        for index, weight in zip(ids, weights, strict=True):
            token = TOKENS[index]
            quiet = token in ("<pad>", "<bos>") or token in syllables
            expected = 1.0 if token in values else 0.0 if quiet else 0.1
            assert weight == pytest.approx(expected, abs=1e-7)
    assert torch.equal(batch.mask, (batch.ids != 0).long())


def test_weighted_loss_is_the_weighted_mean_of_token_losses():
    ids = torch.tensor([[1, 5, 7]])
    batch = Batch(ids=ids, mask=torch.ones_like(ids), weights=torch.tensor([[0.0, 0.1, 1.0]]))
    logits = torch.zeros(1, 3, 10)
    logits[0, 1, 7] = 2.0
    first = torch.log(torch.tensor(10.0))
    second = torch.log(torch.exp(torch.tensor(2.0)) + 9.0) - 2.0
    torch.testing.assert_close(weighted_loss(logits, batch), (0.1 * first + second) / 1.1)


def test_learning_rate_warms_up_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(step, 8000) for step in range(8001)]
    assert rates[0] == pytest.approx(3e-5)
    assert max(rates) == rates[99] == rates[100] == 3e-3
    assert rates[4050] == pytest.approx(1.5e-3)
    assert rates[8000] == pytest.approx(0.0, abs=1e-12)


def test_untrained_model_follows_its_seed():
    first, second, other = (build_model(seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.06, rel=0.03)
