"""Leading directions in evaluation, calibration and prediction, against dense matrices over the whole adapter."""

import json
import shutil
from dataclasses import replace
from functools import partial

import eval_tiny
import eval_world
import linearised_world
import numpy as np
import pytest
import stack_cases
import torch
from linearised_world import GRID, NAME, arrays
from test_scoring_batched import FORMAT, _choices, _texts

from vlora.data import RowFormat
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.linearised import Wanted, linearised_name
from vlora.eval.metrics.linearised import softmax_moments
from vlora.eval.metrics.prior_precision import linearised_nll
from vlora.eval.predict import Predictor
from vlora.eval.predictive import logit_covariances
from vlora.eval.score import build_scorer
from vlora.posterior import Posterior
from vlora.posterior.calibration import fitted_prior, under_prior
from vlora.posterior.keys import adapter_tensors
from vlora.posterior.leading import Leading
from vlora.recipes.calibrate import calibration_table
from vlora.recipes.inspect import describe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
calibrate = partial(linearised_world.calibrate, predictor="leading")
evaluated = partial(linearised_world.evaluated, linearised="leading")
ROWS = 5


def directed(posterior: Posterior, seed: int = 0) -> tuple[Posterior, torch.Tensor]:
    """The posterior with all directions of a Fisher matrix of known gradients, and that matrix."""
    generator = torch.Generator().manual_seed(seed)
    rows = {key: 3 * torch.randn(ROWS, *h.shape, generator=generator) for key, h in posterior.hess.items()}
    flat = torch.cat([rows[key].flatten(1) for key in sorted(rows)], 1).double()
    return replace(posterior, directions=Leading.of([rows], ROWS)), flat.T @ flat


def shape_of(fisher: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Covariance with all of F's ROWS directions where everything else has variance 1, and F's last eigenvalue."""
    values, vectors = torch.linalg.eigh(fisher)
    last, known = values[-ROWS], vectors[:, -ROWS:]
    rest = torch.eye(len(fisher), dtype=torch.float64) - known @ known.T
    return known @ torch.diag(last / values[-ROWS:]) @ known.T + rest, float(last)


def jacobian(model, posterior, outputs) -> torch.Tensor:
    """Gradients of outputs by autograd on the model's own parameters, one by one, float64 ``(K, P)``."""
    live = adapter_tensors(model, posterior.hess)
    keys = sorted(live)
    for key in keys:
        live[key].requires_grad_(True)
    rows = [torch.autograd.grad(value, [live[k] for k in keys], retain_graph=True) for value in outputs]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()


def string(model, tokenizer, prompt: str, answer: str) -> torch.Tensor:
    """Log-likelihood of an answer after its prompt, in full."""
    ids = tokenizer(f"{prompt} {answer}")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    log_probs = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum((log_probs[t - 1, ids[t]] for t in range(start, len(ids))), torch.tensor(0.0))


@pytest.mark.parametrize("case", ["llama", "gpt2, biases"])
def test_covariances_are_those_of_the_dense_matrix_one_by_one(case):
    """J Sigma J^T under a prior, at the temperature of training, and what is calibrated."""
    model, posterior = stack_cases.CASES[case]()
    posterior, fisher = directed(posterior)
    ratios, last = shape_of(fisher)
    sigmas = [ratios / 4.0, posterior.temperature * ratios / last, ratios / 9.0]
    tokenizer, examples = eval_tiny.tokenizer(), _choices()
    scorer = build_scorer("multiple_choice", examples, tokenizer, FORMAT, model.config)
    wanted = [
        Wanted([posterior.with_prior(4.0), posterior, under_prior(posterior, 9.0)], "leading"),
        Wanted([posterior]),
    ]
    *found, plain = logit_covariances(scorer, model, wanted)
    np.testing.assert_array_equal(plain, logit_covariances(scorer, model, wanted[1:])[0])
    for row, example in enumerate(examples):
        own = jacobian(
            model, posterior, [string(model, tokenizer, example.prompt, c) for c in example.choices]
        )
        for one, sigma in zip(found, sigmas, strict=True):
            want = (own @ sigma @ own.T).numpy()
            size = len(want)
            np.testing.assert_allclose(one[row][:size, :size], want, rtol=1e-4, atol=1e-5 * want.max())
            assert not one[row][size:].any()


def test_texts_have_the_variance_of_their_log_probability():
    model, posterior = stack_cases.CASES["llama"]()
    posterior, fisher = directed(posterior)
    sigma = shape_of(fisher)[0] / 4.0
    tokenizer, examples = eval_tiny.tokenizer(), _texts()
    row_format = RowFormat(prompt="question", append_eos=False)
    scorer = build_scorer("causal_lm", examples, tokenizer, row_format, model.config)
    (found,) = logit_covariances(scorer, model, [Wanted([under_prior(posterior, 4.0)], "leading")])
    for got, example in zip(found, examples, strict=True):
        own = jacobian(model, posterior, [string(model, tokenizer, example.prompt, example.response)])
        np.testing.assert_allclose(got, (own @ sigma @ own.T).numpy(), rtol=1e-4)


def test_the_name_in_the_store_tells_directions_apart():
    _, posterior = stack_cases.CASES["llama"]()
    one, other = (directed(posterior, seed)[0] for seed in (0, 1))
    names = {linearised_name(p, "leading") for p in (one, other)} | {linearised_name(one, "independent")}
    assert len(names) == 3 and linearised_name(one, "leading") == linearised_name(one.scaled(2.0), "leading")
    assert linearised_name(one, "leading", prior=3.0).endswith("_3.0")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A world whose first posterior has leading directions and a fitted prior."""
    folder = eval_world.build(tmp_path_factory.mktemp("leading"))
    directed(Posterior.from_pretrained(folder / NAME))[0].save_pretrained(folder / NAME)
    (done,) = calibrate(folder)
    return folder, done


def test_the_fitted_prior_is_what_evaluations_say_and_is_applied(built, tmp_path):
    folder, done = built
    section = done.content["linearised_prior"]
    assert section.keys() >= {"independent", "leading"} and "kronecker" not in section
    assert len(section["leading"]["directions_sha256"]) == 64
    assert "directions_sha256" not in section["independent"]
    best = section["leading"]["prior_precision"]
    table, short = calibration_table([done]), describe(str(folder / NAME))["calibration"]
    assert f"linearised, leading directions, prior precision {best:g}" in table
    assert "sets and threshold are those of the predictor leading" in table
    assert short["linearised prior precision, leading"] == best and short["predictor"] == "leading"

    shutil.copytree(folder / NAME, tmp_path / NAME)
    model = str(tmp_path / NAME)
    (whole,) = calibrate(folder, model=model, calibration={"threshold_share": 0})  # fits on all rows
    fitted = whole.content["linearised_prior"]["leading"]
    best, tried = fitted["prior_precision"], dict(fitted["evaluated"])
    assert list(tried) == GRID and fitted["nll"] == tried[best] == min(tried.values())
    for choice, precision in (("auto", best), (GRID[1], GRID[1])):
        records, results = evaluated(folder, tmp_path / "e", model=model, linearised_prior=choice)
        held_out = [record for record in records if record.split == "validation"]
        assert linearised_nll(*arrays(held_out)) == pytest.approx(tried[precision], abs=1e-6)
        assert results["models"][0]["linearised_prior"] == precision
        said = results["models"][0]["summary"]["linearised_prior"]
        assert said.startswith(f"precision {precision:g} of what the leading directions leave out, ")


def test_predictions_are_those_of_an_evaluation(built, tmp_path):
    folder, done = built
    predictor = Predictor.from_pretrained(folder / NAME, base_model=str(folder / "base"))
    assert predictor.decisions.predictor == "leading"
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    predictions = predictor.predict(rows, answer_all=True)
    records, _ = evaluated(folder, tmp_path / "e")
    test = [record for record in records if record.split == "test"]
    log_probs, covariance, _ = arrays(test)
    moments = softmax_moments(log_probs, covariance)
    for row, one in enumerate(predictions):
        assert one.epistemic == pytest.approx(moments.mutual_information[row], abs=1e-5)


def test_draws_are_compared_without_directions(built, tmp_path):
    """How well first order follows the draws is a question of the draws' own covariance."""
    folder, _ = built
    found = [
        evaluated(folder, tmp_path / name, num_samples=8, linearised=kind, linearised_prior=prior)[1][
            "models"
        ][0]
        for name, kind, prior in (("a", "leading", "auto"), ("b", "leading", None), ("c", True, None))
    ]
    said = [one["summary"]["linearised"] for one in found]
    assert said[0] == said[1] == said[2]


def test_a_predictor_without_a_calibration_is_chosen_and_texts_have_a_variance(built, tmp_path):
    folder, _ = built
    shutil.copytree(folder / NAME, tmp_path / NAME)
    (tmp_path / NAME / "calibration.json").unlink()
    base = {"base_model": str(folder / "base"), "task": "multiple_choice"}
    rows = [{"question": "Q w1 A", "choices": ["red", "blue"]}]
    one, other = (
        Predictor.from_pretrained(tmp_path / NAME, predictor=name, **base).predict(rows)[0]
        for name in ("leading", "linearised")
    )
    assert one.epistemic > 0 and one.probabilities != other.probabilities
    texts = {"test": str(folder / "test.jsonl"), "text": "question"}
    records, _ = evaluated(folder, tmp_path / "e", task="causal_lm", data=texts, model=str(tmp_path / NAME))
    assert all(record.lm.nll_variance > 0 for record in records)


def test_what_cannot_be_had_is_named(built, tmp_path):
    folder, done = built
    second, base = str(folder / "second"), {"base_model": str(folder / "base"), "task": "multiple_choice"}
    lacking = "has no leading directions .* measure them with vlora posterior"
    with pytest.raises(ConfigError, match=f"linearised: leading cannot be had for second: it {lacking}"):
        evaluated(folder, tmp_path / "e", model=second)
    with pytest.raises(ConfigError, match=f"predictor: leading cannot be had for second: it {lacking}"):
        calibrate(folder, model=second)
    with pytest.raises(ConfigError, match=f"predictor leading cannot be had: it {lacking}"):
        Predictor.from_pretrained(second, predictor="leading", **base)
    with pytest.raises(
        ConfigError, match="linearised_prior is 'stored' but .* no prior fitted with leading dir"
    ):
        directed(Posterior.from_pretrained(second))[0].save_pretrained(tmp_path / "bare")
        evaluated(folder, tmp_path / "e", model=str(tmp_path / "bare"), linearised_prior="stored")
    with pytest.raises(ConfigError, match="predictor: leading needs the prior that"):
        calibrate(folder, calibration={"prior_grid": []})
    with pytest.raises(ConfigError, match="linearised.*got 'trailing'"):
        evaluated(folder, tmp_path / "e", linearised="trailing")
    posterior = Posterior.from_pretrained(folder / NAME)
    other, _ = directed(posterior, seed=7)
    assert fitted_prior(other, "independent") is not None
    with pytest.raises(
        PosteriorFormatError, match="fitted with other leading directions .directions.safetensors"
    ):
        fitted_prior(other, "leading")
