"""Covariances from K backward passes, against gradients one by one, a linear model, and draws."""

from dataclasses import replace

import eval_tiny
import eval_world
import numpy as np
import pytest
import stack_cases
import torch
from test_scoring_batched import FORMAT, _choices, _texts

from vlora.data import Example, RowFormat
from vlora.errors import ConfigError
from vlora.eval.linearised import Wanted, linearised_name
from vlora.eval.linearised_gate import linearised_agreement, text_agreement
from vlora.eval.records import Record, TokenScores, read_records
from vlora.eval.results import read_results
from vlora.eval.run import run_eval
from vlora.eval.score import build_scorer
from vlora.eval.sink import Sink
from vlora.posterior.keys import adapter_tensors
from vlora.posterior.lora_layout import split_keys


def _covariances(scorer, model, posterior, kind="independent") -> list[torch.Tensor]:
    sink = Sink([str(i) for i in range(scorer.num_items)], ["linearised"])
    scorer.linearise(model, [Wanted([posterior], kind)], sink)
    return [torch.tensor(sink.result(i)[0], dtype=torch.float64) for i in range(scorer.num_items)]


def _one_by_one(model, posterior, outputs) -> torch.Tensor:
    """J Sigma J^T of one item, by autograd on the model's own parameters, in float64."""
    live = adapter_tensors(model, posterior.mean)
    keys = [key for key in live if key in posterior.hess]
    for key in keys:
        live[key].requires_grad_(True)
    rows = []
    for value in outputs():
        grads = torch.autograd.grad(value, [live[key] for key in keys], retain_graph=True)
        rows.append(torch.cat([(g * posterior.std()[k]).flatten() for g, k in zip(grads, keys, strict=True)]))
    jacobian = torch.stack(rows).double()
    return jacobian @ jacobian.T


def test_correlated_weights_change_covariances_and_isotropic_grams_of_a_flat_h_do_not():
    """Grams that are multiples of the identity, orthogonal factors and one value of h: the diagonal posterior again."""
    model, posterior = stack_cases.CASES["llama"]()
    mean, curvature = dict(posterior.mean), {}
    for keys in split_keys(mean)[0].values():
        a, b = mean[keys.a], mean[keys.b]
        mean[keys.a], mean[keys.b] = torch.eye(*a.shape), torch.eye(*b.shape)
        curvature |= {
            f"{keys.stem}.input_gram": torch.eye(a.shape[1]),
            f"{keys.stem}.output_gram": torch.eye(len(b)),
        }
    flat = {key: torch.full_like(h, 0.5) for key, h in posterior.hess.items()}
    plain = replace(posterior, mean=mean, hess=flat, curvature=curvature)
    skewed = {key: gram + 9 * torch.ones_like(gram) for key, gram in curvature.items()}
    plain.load_into(model)
    scorer = build_scorer("multiple_choice", _choices(), eval_tiny.tokenizer(), FORMAT, model.config)
    expected = _covariances(scorer, model, plain)
    same = _covariances(scorer, model, plain, "kronecker")
    other = _covariances(scorer, model, replace(plain, curvature=skewed), "kronecker")
    for one, two, three in zip(expected, same, other, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(three, one, rtol=0.05)
    names = {linearised_name(p, "kronecker") for p in (plain, replace(plain, curvature=skewed))}
    assert len(names) == 2 and linearised_name(plain, "independent") == "linearised"


def _string(model, tokenizer, prompt, text) -> torch.Tensor:
    start, ids = len(tokenizer(prompt)["input_ids"]), tokenizer(f"{prompt} {text}")["input_ids"]
    log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum((log_probs[t - 1, ids[t]] for t in range(start, len(ids))), torch.tensor(0.0))


@pytest.mark.parametrize("case", ["llama", "upper blocks", "gpt2, biases"])
def test_choices_equal_gradients_one_by_one(case):
    model, posterior = stack_cases.CASES[case]()
    tokenizer, examples = eval_tiny.tokenizer(), _choices()
    scorer = build_scorer("multiple_choice", examples, tokenizer, FORMAT, model.config)
    for got, example in zip(_covariances(scorer, model, posterior), examples, strict=True):
        expected = _one_by_one(
            model, posterior, lambda e=example: [_string(model, tokenizer, e.prompt, c) for c in e.choices]
        )
        torch.testing.assert_close(got[: len(expected), : len(expected)], expected, rtol=1e-4, atol=1e-6)
        assert not got[len(expected) :].any()


def test_texts_have_the_variance_of_their_log_probability():
    model, posterior = stack_cases.CASES["llama"]()
    tokenizer, examples = eval_tiny.tokenizer(), _texts()
    row_format = RowFormat(prompt="question", append_eos=False)
    scorer = build_scorer("causal_lm", examples, tokenizer, row_format, model.config)
    for got, example in zip(_covariances(scorer, model, posterior), examples, strict=True):
        expected = _one_by_one(
            model, posterior, lambda e=example: [_string(model, tokenizer, e.prompt, e.response)]
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_linear_head_is_exact():
    """Logits W x + b with independent weights: variance sum_d x_d^2 var(W_kd) + var(b_k), covariance 0."""
    model, posterior = stack_cases.adapted(stack_cases.bert(), target_modules=["query"], task_type="SEQ_CLS")
    head = {key: value for key, value in posterior.hess.items() if "classifier" in key}
    posterior = type(posterior)(posterior.mean, head, posterior.meta, posterior.adapter_config)
    examples = [Example(item=f"{i}", text=text, label=0) for i, text in enumerate(["w1 w2", "red w3 w4 w5"])]
    scorer = build_scorer(
        "sequence_classification", examples, eval_tiny.tokenizer(), RowFormat(), model.config
    )
    seen = []
    model.get_base_model().classifier.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach())
    )
    covariances = _covariances(scorer, model, posterior)
    features = torch.cat(seen)[[1, 0]]  # longest first
    [weight], [bias] = ([posterior.std()[k] for k in head if k.endswith(end)] for end in ("weight", "bias"))
    for got, x in zip(covariances, features, strict=True):
        expected = torch.diag((x**2 * weight**2).sum(-1) + bias**2).double()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_an_adapter_without_row_copies_is_refused_in_one_line():
    model, posterior = stack_cases.adapted(stack_cases.deep_llama(), target_modules=["q_proj"], use_dora=True)
    scorer = build_scorer("multiple_choice", _choices(), eval_tiny.tokenizer(), FORMAT, model.config)
    with pytest.raises(ConfigError, match="linearised: true cannot be had: .* is DoRA; leave it out"):
        _covariances(scorer, model, posterior)


@pytest.mark.parametrize("task", ["multiple_choice", "causal_lm"])
def test_a_whole_evaluation_has_it_beside_the_draws(tmp_path, task):
    world = eval_world.build(tmp_path)
    changes = {}
    if task == "causal_lm":
        changes["data"] = {"test": str(world / "test.jsonl"), "text": "question"}
    config = eval_world.config(
        world, tmp_path / "out", task=task, linearised=True, num_samples=64, num_bootstrap=20,
        model=[str(world / "first"), "base"], temperature=1e-3, **changes,
    )  # fmt: skip
    output = run_eval(config)
    records = [r for r in read_records(output / "records.jsonl") if r.model == "first"]
    if task == "causal_lm":
        spread = np.array([r.lm.nll_std for r in records])
        expected = np.sqrt([r.lm.nll_variance for r in records])
        assert np.corrcoef(spread, expected)[0, 1] > 0.9 and 0.8 < (spread / expected).mean() < 1.2
        agreement = text_agreement(records, expected**2, 64)
        assert agreement is not None and agreement.passed and agreement.correlation > 0.8
        said = read_results(output / "results.json")["models"][0]["summary"]["linearised"]
        assert said == agreement.describe() and "rank correlation of the variance of log p" in said
        found = read_results(output / "results.json")["models"]
        assert found[0]["linearised_agreement"] == pytest.approx(
            {**agreement.to_dict(), "covariance": "independent"}
        )
        assert "linearised_agreement" not in found[1]  # the base model
        return
    rows = read_results(output / "results.json")["rows"]
    found = {r["predictor"]: r["metrics"] for r in rows if r["model"] == "first" and r["group"] == "all"}
    assert {"linearised", "linearised+temperature"} <= found.keys()
    for name, tolerance in (("nll", 0.01), ("expected_entropy", 0.01), ("mutual_information", 0.4)):
        expected = found["samples"][name]["value"]  # 32 pairs know a variance to about sqrt(2 / 32)
        assert found["linearised"][name]["value"] == pytest.approx(expected, rel=tolerance), name
    models = read_results(output / "results.json")["models"]
    assert "rank correlation of mutual information" in models[0]["summary"]["linearised"]
    agreement = linearised_agreement(records)
    assert agreement is not None and models[0]["linearised_agreement"] == pytest.approx(
        {**agreement.to_dict(), "covariance": "independent"}
    )
    assert not any(r["predictor"].startswith("linearised") for r in rows if r["model"] == "base")


def _record(log_probs, samples, covariance) -> Record:
    return Record(
        model="m", item="i", split="test", group="all", num_tokens=1, log_probs=np.array(log_probs),
        sample_log_probs=np.array(samples), linearised_covariance=np.array(covariance),
    )  # fmt: skip


def test_the_gate_passes_gaussian_logits_and_fails_others():
    rng = np.random.default_rng(0)
    close, far = [], []
    for number in range(12):
        mean, sd = rng.normal(size=3), 0.05 + 0.1 * number
        logits = mean + sd * rng.normal(size=(400, 3))
        samples = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_probs = mean - np.log(np.exp(mean).sum())
        close.append(_record(log_probs, samples, np.eye(3) * sd**2))
        far.append(_record(log_probs, samples, np.eye(3) * (1.3 - sd) ** 2))
    agreement, other = linearised_agreement(close), linearised_agreement(far)
    assert agreement is not None and agreement.passed and agreement.correlation > 0.95
    assert agreement.ratio == pytest.approx(1, abs=0.1) and agreement.distance < 0.02
    assert other is not None and not other.passed and other.correlation < 0
    assert "on 12 items" in other.describe()
    assert other.to_dict() == {
        "compared": "mutual_information", "items": 12, "correlation": other.correlation,
        "least_correlation": 0.7, "distance": other.distance, "most_distance": 0.05, "ratio": other.ratio,
        "passed": False,
    }  # fmt: skip
    same = linearised_agreement(close[:1] * 5)
    assert (
        same is not None and same.to_dict()["correlation"] is None and not same.passed
    )  # constants have no ranks
    assert linearised_agreement(close[:2]) is None


def _measured(tokens, spread, antithetic):
    zeros = [np.zeros(count) for count in tokens]
    return [
        Record(
            model="m", item=str(number), split="test", group="all", num_tokens=1, antithetic=antithetic,
            lm=TokenScores(num_tokens=count, nll=1.0, correct=zero, confidence=zero, entropy=zero, nll_std=float(sd)),
        )
        for number, (count, sd, zero) in enumerate(zip(tokens, spread, zeros, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_gate_of_texts_allows_for_the_noise_of_few_draws(antithetic):
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 40, 300)
    truth = (0.1 * tokens * np.exp(0.5 * rng.normal(size=300))) ** 2
    noise = rng.normal(size=(300, 4))
    draws = np.concatenate([noise, -noise], axis=1) if antithetic else rng.normal(size=(300, 8))
    records = _measured(tokens, np.sqrt(truth) * draws.std(axis=1, ddof=1), antithetic)
    exact = text_agreement(records, truth, 8)
    assert exact is not None and exact.passed and exact.items == 300
    assert exact.ratio == pytest.approx(1, abs=0.15) and abs(exact.correlation - exact.attainable) < 0.05
    wide, shuffled = text_agreement(records, 3 * truth, 8), text_agreement(records, rng.permutation(truth), 8)
    assert wide is not None and not wide.passed and wide.ratio == pytest.approx(3 * exact.ratio)
    assert shuffled is not None and not shuffled.passed and shuffled.correlation < shuffled.attainable
    assert "on 300 texts" in wide.describe()
    assert wide.to_dict() == {
        "compared": "log_prob_variance", "items": 300, "correlation": wide.correlation,
        "attainable": wide.attainable, "least_correlation": min(0.7, wide.attainable), "ratio": wide.ratio,
        "most_ratio": 2.0, "passed": False,
    }  # fmt: skip


def test_the_gate_of_texts_ranks_by_token_and_not_by_length():
    tokens = np.arange(2, 42)
    rows = _measured(
        tokens, tokens * np.linspace(2, 1, 40), False
    )  # longer texts vary more, and less per token
    same = text_agreement(rows, (tokens * np.linspace(1, 2, 40)) ** 2, 64)
    assert same is not None and same.correlation == pytest.approx(-1) and not same.passed
    assert text_agreement(rows[:2], [1.0, 1.0], 64) is None and text_agreement(rows, [1.0] * 40, 1) is None
