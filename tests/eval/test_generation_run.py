"""Whole evaluations of answers: scores equal a plain loop, resume, batches, given answers, ensembles, judges."""

import json

import eval_tiny
import eval_world
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from vlora.errors import ConfigError, DataError, OutputExistsError
from vlora.eval.generation import collect
from vlora.eval.generation.records import read_answers
from vlora.eval.generation.run import ANSWERS, run_generation
from vlora.eval.generation.schema import AnswerResults
from vlora.eval.generation.session import prepare_session
from vlora.eval.generation.store import AnswerStore
from vlora.eval.semantic.sequence import answer_mixture
from vlora.posterior import Posterior
from vlora.recipes.evaluate import load_evaluation

TASK = "title: t\nkind: {kind}\nprompt: 'Q {{question}} A'\nmax_new_tokens: 3\nstop: []\ndecline: [who]\n"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = eval_world.build(tmp_path_factory.mktemp("world"))
    rng = np.random.default_rng(0)
    rows = [
        {
            "question": " ".join(f"w{i}" for i in rng.integers(0, 40, 1 + n % 4)),
            "answers": [f"w{n} w1", "red"],
        }
        for n in range(10)
    ]
    eval_world.write(folder / "open.jsonl", rows)
    eval_world.write(folder / "held.jsonl", rows[:4])
    eval_world.write(folder / "nobody.jsonl", [{"question": "who w1", "answers": []}] * 3)
    given = [{"question": "w1 w2", "response": f"w{n} red w3", "label": n % 2} for n in range(6)]
    eval_world.write(folder / "given.jsonl", given)
    for kind in ("open_qa", "given_answers"):
        (folder / f"{kind}.yaml").write_text(TASK.format(kind=kind))
    return folder


def settings(world, output, **changes):
    values = {
        "kind": "generation",
        "model": [str(world / "first"), {"path": str(world / "plain"), "name": "adamw"}],
        "base_model": str(world / "base"),
        "task": str(world / "open_qa.yaml"),
        "data": {
            "test": str(world / "open.jsonl"), "validation": str(world / "held.jsonl"),
            "ood": {"nobody": str(world / "nobody.jsonl")},
        },
        "num_samples": 4, "sampling": {"num_answers": 2}, "p_true": {"true": "red", "false": "blue"},
        "ensemble": False, "num_bootstrap": 20, "output": str(output),
    }  # fmt: skip
    return load_evaluation({**values, **changes})


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    output = run_generation(settings(world, tmp_path_factory.mktemp("done") / "out"))
    return list(read_answers(output / ANSWERS)), json.loads((output / "results.json").read_text()), output


def plain_log_prob(model, prompt: str, text: str, ended: bool) -> float:
    """Log-probability of an answer's tokens, one forward pass, nothing shared."""
    tokenizer = eval_tiny.tokenizer()
    start = tokenizer(prompt)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + ([2] if ended else [])
    with torch.no_grad():
        logs = model(torch.tensor([start + ids])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(start) - 1 + n, token]) for n, token in enumerate(ids))


def test_scores_are_those_of_a_plain_loop_under_every_draw(world, done):
    posterior = Posterior.from_pretrained(world / "first")
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    model = PeftModel.from_pretrained(base, world / "first").eval()
    records = [r for r in done[0] if r.model == "first" and r.split == "test"]
    rows = [json.loads(line) for line in (world / "open.jsonl").read_text().splitlines()]
    special = {"<pad>", "<s>", "<unk>"}
    compared = 0
    for record, row in zip(records, rows, strict=True):
        prompt = f"Q {row['question']} A"
        answer = record.answer
        for draw in (None, 0, 1, 2, 3):
            with posterior.sampled(model, draw, antithetic=True):
                if len(answer.text.split()) + answer.ended == len(answer.log_probs) and answer.text:
                    expected = plain_log_prob(model, prompt, answer.text, answer.ended)
                    found = sum(answer.log_probs) if draw is None else answer.draw_log_probs[draw]
                    assert found == pytest.approx(expected, abs=1e-4)
                    compared += 1
        for sample in record.samples:
            pooled = record.pool[sample.pool]
            assert sum(sample.log_probs) == pytest.approx(pooled.draw_log_probs[sample.draw], abs=1e-4)
            assert len(sample.log_probs) == pooled.tokens
    assert compared > 10 and not special & {w for r in records for p in r.pool for w in p.text.split()}
    assert all(record.antithetic and len(record.samples) == 8 for record in records)
    assert [s.draw for s in records[0].samples] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_model_without_draws_gives_as_many_answers(done):
    plain = [r for r in done[0] if r.model == "adamw"]
    assert all(len(r.samples) == 8 and {s.draw for s in r.samples} == {0} for r in plain)
    assert all(len(r.answer.draw_log_probs) == 1 and not r.antithetic for r in plain)


def test_results_hold_every_family_and_the_baselines(done):
    records, results, output = done
    AnswerResults.model_validate_json((output / "results.json").read_text(), strict=True)
    assert results["kind"] == "generation" and len(results["task_sha256"]) == 64
    assert len(records) == 2 * (10 + 4 + 3)
    found = {(row["model"], row["estimator"]) for row in results["detection"]}
    for name in (
        "max_probability",
        "mean_token_entropy",
        "prompt_length",
        "p_true",
        "semantic_entropy",
        "eigenscore",
    ):
        assert {("first", name), ("adamw", name)} <= found
    assert ("first", "scored_semantic_information") in found
    assert ("adamw", "scored_semantic_information") not in found
    nobody = [r for r in results["answers"] if r["group"] == "nobody" and r["model"] == "first"]
    assert nobody[0]["metrics"]["correct"]["value"] == 0  # a question without an answer: any answer is wrong
    assert {r["confidence"] for r in results["confidences"]} > {
        "max_probability",
        "max_probability+temperature",
    }


def test_every_step_has_its_cost(done):
    rows = {(r["model"], r["estimator"]): r for r in done[1]["cost"]["by_estimator"]}
    names = ("answer", "samples", "rescoring", "eigenscore", "p_true", "judge")
    assert set(rows) == {(model, name) for model in ("first", "adamw") for name in names}
    assert rows["first", "answer"]["passes"] == 1 and rows["first", "samples"]["passes"] == 8
    assert rows["first", "p_true"]["passes"] == 2 * 5 and rows["adamw", "p_true"]["passes"] == 2 * 2
    pooled = np.mean([len(r.pool) for r in done[0] if r.model == "first"])
    assert rows["first", "rescoring"]["passes"] == pytest.approx(5 * pooled, abs=1e-3)
    assert rows["first", "answer"]["forwards"] >= 1 and rows["first", "judge"]["forwards"] is None
    assert rows["first", "judge"]["tokens"] == 0  # token F1 reads no model
    assert rows["first", "rescoring"]["forwards"] > 5
    seconds = done[1]["cost"]["seconds_by_model"]["first"]
    assert sum(r["seconds"] for r in rows.values() if r["model"] == "first") == pytest.approx(
        seconds, abs=0.01
    )
    assert "Cost per estimator" in (done[2] / "report.html").read_text()


def test_p_true_is_the_share_of_the_first_word(world, done):
    record = next(r for r in done[0] if r.model == "adamw" and r.answer.p_true is not None)
    config = settings(world, "unused")
    prompt = config.p_true.template.format(question=record.question, answer=record.answer.text or "nothing")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world / "base"), world / "plain"
    ).eval()
    true, false = (plain_log_prob(model, prompt, word, False) for word in ("red", "blue"))
    assert record.answer.p_true == pytest.approx(1 / (1 + np.exp(false - true)), abs=1e-4)


def test_words_the_tokenizer_cannot_tell_apart_give_no_verdict(world, tmp_path):
    config = settings(
        world, tmp_path / "o", p_true={"true": "Ja", "false": "Nein"}, model=str(world / "plain")
    )
    records = list(read_answers(run_generation(config) / ANSWERS))
    assert all(record.answer.p_true is None for record in records)


def test_p_true_adds_up_spellings_and_another_list_is_another_evaluation(world, tmp_path):
    """Spellings in the settings: the plain sum of their probabilities, kept under a key of their own."""
    words = {"true": ["red", "dark red", "red"], "false": "blue"}
    config = settings(world, tmp_path / "o", p_true=words, model=str(world / "plain"))
    record = next(read_answers(run_generation(config) / ANSWERS))
    prompt = config.p_true.template.format(question=record.question, answer=record.answer.text or "nothing")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world / "base"), world / "plain"
    ).eval()
    one, two, false = (
        np.exp(plain_log_prob(model, prompt, word, False)) for word in ("red", "dark red", "blue")
    )
    assert record.answer.p_true == pytest.approx((one + two) / (one + two + false), abs=1e-4)
    changed = settings(
        world, tmp_path / "o", p_true={**words, "true": ["red", "dark red"]}, model=str(world / "plain")
    )
    assert prepare_session(changed).shared_key != prepare_session(config).shared_key


def test_answers_do_not_depend_on_the_batch(world, done, tmp_path):
    output = run_generation(settings(world, tmp_path / "o", batch_size=5, batch_tokens=40))
    for one, two in zip(read_answers(output / ANSWERS), done[0], strict=True):
        assert [p.text for p in one.pool] == [p.text for p in two.pool] and one.item == two.item
        assert one.answer.draw_log_probs == pytest.approx(two.answer.draw_log_probs, abs=1e-4)


def test_a_killed_run_goes_on(world, done, tmp_path, monkeypatch):
    config = settings(world, tmp_path / "o", batch_size=4)
    answered, original = [], collect.Collector.records

    def records(self, questions):
        if len(answered) == 6:
            raise KeyboardInterrupt
        answered.append([q.item for q in questions])
        return original(self, questions)

    monkeypatch.setattr(collect.Collector, "records", records)
    with pytest.raises(KeyboardInterrupt):
        run_generation(config)
    assert not (tmp_path / "o").exists()
    files = sorted((tmp_path / "o.work").glob("*.answers.jsonl"))
    assert len(files) == 2
    unfinished = min(files, key=lambda file: len(file.read_text().splitlines()))
    with open(unfinished, "a") as file:
        file.write('{"model": "adamw", "it')  # killed in the middle of a line
    answered.clear()
    monkeypatch.setattr(
        collect.Collector, "records", lambda self, qs: answered.append(len(qs)) or original(self, qs)
    )
    output = run_generation(config)
    assert sum(answered) == 34 - 17 - 4 and not (tmp_path / "o.work").exists()
    again, whole = (
        {(r["model"], r["estimator"]): r for r in results["cost"]["by_estimator"]}
        for results in (json.loads((output / "results.json").read_text()), done[1])
    )
    assert {key: row["passes"] for key, row in again.items()} == {
        k: row["passes"] for k, row in whole.items()
    }
    text = (output / ANSWERS).read_text().splitlines()
    for line, record in zip(text, done[0], strict=True):
        assert json.loads(line)["item"] == record.item
        assert [p["text"] for p in json.loads(line)["pool"]] == [p.text for p in record.pool]


def test_damage_and_other_settings_cost_nothing_but_themselves(world, done, tmp_path, monkeypatch, caplog):
    config, answered, original = settings(world, tmp_path / "o"), [], collect.Collector.records
    session, store = prepare_session(config), AnswerStore(config.output)
    for name, key in session.keys.items():
        store.append(name, key, [one for one in done[0] if one.model == name], {"answer": [17, 170, 1.0]})
    other = prepare_session(settings(world, tmp_path / "o", seed=1))
    store.append("first", other.keys["first"], [done[0][0]], {"answer": [1, 10, 0.1]})
    kept = {path.name: path.read_bytes() for path in store.path.glob(f"*{other.keys['first'][:16]}*")}
    file = store.file("first", session.keys["first"])
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n")
    monkeypatch.setattr(
        collect.Collector,
        "records",
        lambda self, qs: answered.extend(q.item for q in qs) or original(self, qs),
    )
    output = run_generation(config)
    assert answered == [json.loads(lines[1])["item"]]
    assert "1 damaged line(s) left out; their questions are answered again" in caplog.text
    assert "holds 1 file(s) of answers under other settings or of another version" in caplog.text
    texts = [one.answer.text for one in read_answers(output / ANSWERS)]
    assert texts == [one.answer.text for one in done[0]]
    assert len(kept) == 2 and kept == {path.name: path.read_bytes() for path in store.path.iterdir()}


def test_another_setting_does_not_take_old_answers(world, tmp_path):
    first = prepare_session(settings(world, tmp_path / "o"))
    for changes in ({"seed": 1}, {"sampling": {"num_answers": 3}}, {"grade": {"by": "contains"}}):
        other = prepare_session(settings(world, tmp_path / "o", **changes))
        assert other.key(other.speakers[0]) != first.key(first.speakers[0])
    same = prepare_session(settings(world, tmp_path / "p", batch_size=1, num_bootstrap=7))
    assert same.key(same.speakers[0]) == first.key(first.speakers[0])
    assert AnswerStore(tmp_path / "o").load("first", first.key(first.speakers[0])) == []


def test_given_answers_are_judged_not_generated(world, tmp_path):
    config = settings(
        world, tmp_path / "o", task=str(world / "given_answers.yaml"), data=str(world / "given.jsonl"),
        model=str(world / "first"),
    )  # fmt: skip
    records = list(read_answers(run_generation(config) / ANSWERS))
    assert [r.correct for r in records] == [0, 1, 0, 1, 0, 1]
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world / "base"), world / "first"
    ).eval()
    for number, record in enumerate(records):
        assert record.answer.given and record.answer.text == f"w{number} red w3"
        expected = plain_log_prob(model, "Q w1 w2 A", record.answer.text, False)
        assert sum(record.answer.log_probs) == pytest.approx(expected, abs=1e-4)
        assert len(record.samples) == 8
    alone = settings(
        world, tmp_path / "p", task=str(world / "given_answers.yaml"), data=str(world / "given.jsonl"),
        model="base", sampling={"num_answers": 0},
    )  # fmt: skip
    output = run_generation(alone)
    assert all(not record.samples for record in read_answers(output / ANSWERS))
    names = {row["estimator"] for row in json.loads((output / "results.json").read_text())["estimators"]}
    assert "max_probability" in names and "semantic_entropy" not in names


def test_an_ensemble_answers_with_one_voice(world, tmp_path):
    models = [str(world / "first"), str(world / "second")]
    output = run_generation(settings(world, tmp_path / "o", model=models, ensemble=True, num_samples=2))
    records = list(read_answers(output / ANSWERS))
    by_model = {n: [r for r in records if r.model == n] for n in ("first", "second", "ensemble")}
    for one, two, both in zip(*by_model.values(), strict=True):
        assert {s.draw for s in both.samples} == {0, 1} and len(both.samples) == 4  # 2 x num_samples
        assert both.answer.text in (one.answer.text, two.answer.text)
        for single, member in ((one, 0), (two, 1)):
            if single.answer.text == both.answer.text:
                assert sum(single.answer.log_probs) == pytest.approx(
                    both.answer.draw_log_probs[member], abs=1e-4
                )
        sums = [answer_mixture(both.pool[n].draw_log_probs) for n in range(len(both.pool))]
        others = [
            s for s, p in zip(sums, both.pool, strict=True) if p.text in (one.answer.text, two.answer.text)
        ]
        assert sums[0] == pytest.approx(max(others))
    counted = json.loads((output / "results.json").read_text())["models"][-1]
    assert counted == {
        "name": "ensemble", "kind": "ensemble", "members": ["first", "second"], "num_draws": 2
    }  # fmt: skip
    with pytest.raises(ConfigError, match="ensemble: no model 'third'; the models are first, second"):
        run_generation(settings(world, tmp_path / "p", model=models, ensemble=["first", "third"]))
    with pytest.raises(ConfigError, match="at least two different adapters"):
        run_generation(settings(world, tmp_path / "p", model=models[:1], ensemble=True))


def test_an_entailment_judge_clusters_and_its_failures_are_counted(world, tmp_path, monkeypatch):
    from vlora.eval.entailment import EntailmentModel

    judge = {"clusters_by": "entailment", "model": eval_tiny.judge_folder(tmp_path / "judge")}
    config = settings(
        world, tmp_path / "o", judge=judge, grade={"by": "entailment"}, model=str(world / "plain")
    )
    records = list(read_answers(run_generation(config) / ANSWERS))
    assert {record.clusters_by for record in records} == {"entailment"}
    costs = json.loads((tmp_path / "o" / "results.json").read_text())["cost"]["by_estimator"]
    [judged] = [row for row in costs if row["estimator"] == "judge"]
    assert judged["passes"] > 1 and judged["tokens"] > 34 * judged["passes"] and judged["forwards"] is None
    assert all(record.measured["contradiction"] is not None for record in records)
    assert not (
        tmp_path / "o.work"
    ).exists()  # verdicts are kept with the unfinished answers, and go with them
    original = EntailmentModel._forward

    def failing(self, pairs):
        if any("w5" in text for pair in pairs for text in pair):
            raise RuntimeError("cannot judge this")
        return original(self, pairs)

    monkeypatch.setattr(EntailmentModel, "_forward", failing)
    output = run_generation(settings(world, tmp_path / "p", judge=judge, grade={"by": "entailment"}))
    results = json.loads((output / "results.json").read_text())
    found = list(read_answers(output / ANSWERS))
    assert len(found) == 34 and 0 < sum(r.judge_failures > 0 for r in found) < 34
    assert sum(r["judge_failures"] for r in results["answers"]) > 0
    lost = [r for r in found if r.judge_failures and r.clusters_by == "text"]
    assert lost and all(r.measured["kernel_language_entropy"] is None for r in lost)


def test_bad_settings(world, tmp_path):
    with pytest.raises(ConfigError, match="leave out kind: generation"):
        run_generation(settings(world, tmp_path / "o", task="arc_easy", data=str(world / "test.jsonl")))
    with pytest.raises(ConfigError, match="detect.x: no group 'nobdy'"):
        run_generation(
            settings(world, tmp_path / "o", detect={"x": {"positive": ["nobdy"], "negative": ["all"]}})
        )
    with pytest.raises(
        ConfigError, match="max_new_tokens is 64 but prompt and answer together get 64 tokens"
    ):
        run_generation(settings(world, tmp_path / "o", sampling={"max_new_tokens": 64}))
    with pytest.raises(ConfigError, match="unknown key 'num_answer'; did you mean 'num_answers'"):
        settings(world, tmp_path / "o", sampling={"num_answer": 3})
    with pytest.raises(ConfigError, match="needs judge.model"):
        settings(world, tmp_path / "o", judge={"clusters_by": "entailment"})
    with pytest.raises(ConfigError, match="p_true.template may use"):
        settings(world, tmp_path / "o", p_true={"template": "{q}"})
    with pytest.raises(ConfigError, match="pairs, so num_samples must be even"):
        settings(world, tmp_path / "o", num_samples=3)
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "x").write_text("")
    with pytest.raises(OutputExistsError, match="holds something else"):
        run_generation(settings(world, tmp_path / "thing"))
    eval_world.write(tmp_path / "rows.jsonl", [{"question": "w1"}])
    with pytest.raises(DataError, match="test row 0: no column 'answers'"):
        run_generation(settings(world, tmp_path / "o", data=str(tmp_path / "rows.jsonl")))


def test_the_command_prints_the_table_and_writes_the_report(world, tmp_path):
    from typer.testing import CliRunner

    from vlora.config import save_config
    from vlora.recipes.cli import app

    save_config(settings(world, tmp_path / "o", model="base", num_samples=2), tmp_path / "c.yaml")
    done = CliRunner().invoke(app, ["eval", str(tmp_path / "c.yaml"), "data.max_rows=4"])
    assert done.exit_code == 0, done.output
    assert "not_attempted" in done.stdout and "nobody vs test: AUROC" in done.stdout
    assert f"wrote {tmp_path / 'o' / 'report.html'}" in done.stdout
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "answers.jsonl", "config.yaml", "report.html", "results.json",
    ]  # fmt: skip
    wrong = CliRunner().invoke(app, ["eval", str(tmp_path / "c.yaml"), "sampling.num_anwers=4"])
    assert wrong.exit_code == 1 and "did you mean 'num_answers'" in wrong.stderr
