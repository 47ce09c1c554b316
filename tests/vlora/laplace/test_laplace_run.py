"""`vlora posterior` on adapters that vlora did not train."""

import json
import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from vlora import Posterior
from vlora.config import load_config
from vlora.errors import ConfigError, DataError, OutputExistsError
from vlora.laplace import PosteriorConfig
from vlora.laplace.run import run_posterior


def log_of(folder):
    return json.loads((folder / "laplace_log.json").read_text())


def test_h_is_the_fisher_of_the_plain_adapter_and_the_mean_is_its_weights(
    make_posterior, tiny_bert, tmp_path
):
    """Precision N E[g^2] + alpha, with g by a loop that shares no code."""
    folder = run_posterior(make_posterior())
    posterior, adapter = Posterior.from_pretrained(folder), Posterior.from_pretrained(tmp_path / "adapter")
    assert all(torch.equal(posterior.mean[key], value) for key, value in adapter.mean.items())
    assert posterior.adapter_config == adapter.adapter_config
    assert set(posterior.hess) == set(posterior.mean)  # the head too
    meta = posterior.meta
    assert (meta.num_examples, meta.ess, meta.temperature, meta.method) == (24, 24.0, 1.0, "laplace")
    assert (meta.loss_reduction, meta.tokens_per_example, meta.labels) == ("mean", None, ["0", "1"])
    assert len(meta.base_model["fingerprint"]) == 64

    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    name = "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.default.weight"
    weight = dict(model.named_parameters())[name]
    want = torch.zeros_like(weight)
    rows = [
        json.loads(line) for line in (tmp_path / "sequence_classification.jsonl").read_text().splitlines()
    ]
    for row in rows:
        scores = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].log_softmax(-1)
        for score in scores:  # the expectation over both classes
            gradient = torch.autograd.grad(score, weight, retain_graph=True)[0]
            want += score.exp().detach() * gradient.square() / len(rows)
    key = name.replace(".default", "")
    torch.testing.assert_close(posterior.hess[key], want, rtol=1e-4, atol=1e-8)
    precision = log_of(folder)["prior"]["precision"][key]
    torch.testing.assert_close(posterior.precision()[key], 24 * want + precision, rtol=1e-4, atol=1e-6)


def test_the_folder_is_a_posterior_like_any_other(make_posterior, tiny_bert, tmp_path):
    folder = run_posterior(make_posterior())
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "posterior.json"),
        *("posterior.safetensors", "laplace_config.yaml", "laplace_log.json"),
    }
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    PeftModel.from_pretrained(base, folder)
    posterior = Posterior.from_pretrained(folder)
    assert posterior.at_temperature(0.1).meta.ess == 240
    assert set(posterior.site().precision) == set(posterior.mean)
    assert "measured after training (Laplace)" in posterior.summary()["verdict"]
    card = (folder / "README.md").read_text()
    assert "- laplace" in card and "- ivon" not in card
    assert "> Laplace approximation (expected Fisher) of the adapter" in card
    again = load_config(PosteriorConfig, folder / "laplace_config.yaml")
    assert (again.fisher, again.data.labels) == ("expected", ["0", "1"])
    twice = run_posterior(replace(again, output=str(tmp_path / "again")))
    assert Posterior.from_pretrained(twice).meta.hess_sha256 == posterior.meta.hess_sha256
    with pytest.raises(OutputExistsError, match="set overwrite=true"):
        run_posterior(make_posterior())
    run_posterior(make_posterior("sequence_classification", "overwrite=true"))


def test_one_prior_for_all_has_less_evidence_than_one_each(make_posterior, tmp_path):
    each = log_of(run_posterior(make_posterior()))["prior"]
    single = log_of(run_posterior(make_posterior(prior_scope="scalar", output=str(tmp_path / "scalar"))))[
        "prior"
    ]
    assert len(set(single["precision"].values())) == 1 < len(set(each["precision"].values()))
    assert single["log_evidence"] < each["log_evidence"] < 0
    assert 0 < single["effective_parameters"] < 2000


def test_a_given_precision_and_temperature_are_taken_as_they_are(make_posterior):
    folder = run_posterior(
        make_posterior(prior_precision=50.0, temperature=0.1, fisher="empirical", max_examples=7)
    )
    posterior = Posterior.from_pretrained(folder)
    assert posterior.meta.ess == pytest.approx(240) and posterior.meta.num_examples == 24
    key = next(iter(posterior.hess))
    torch.testing.assert_close(posterior.precision()[key], 240 * posterior.hess[key] + 50)
    assert (log_of(folder)["fisher"], log_of(folder)["fisher_examples"]) == ("empirical", 7)


def test_held_out_rows_choose_the_prior(make_posterior, tiny_bert, tmp_path, caplog):
    """The NLL of the grid by a loop that shares no code; a useless adapter wants its noise as small as it gets."""
    config = make_posterior(prior_grid=[1.0, 1e4, 1e9], num_samples=4)
    data = replace(config.data, validation=config.data.train)
    config = replace(config, data=data, prior_precision="held_out")
    with caplog.at_level(logging.WARNING, logger="vlora"):
        folder = run_posterior(config)
    found = log_of(folder)["held_out"]
    assert found["factor"] == float(min(found["nll"], key=lambda f: found["nll"][f]))
    assert found["nll"]["1e+09"] == pytest.approx(found["nll_mean"], abs=1e-3)
    if found["factor"] == 1e9:
        assert "narrowest prior of the grid" in caplog.text
    posterior = Posterior.from_pretrained(folder)
    prior = log_of(folder)["prior"]["precision"]
    key = next(iter(prior))
    assert posterior.meta.of("weight_decay", key) * 24 == pytest.approx(found["factor"] * prior[key])
    health = posterior.meta.health
    assert health["reference_examples"] == 24 and 0.5 < health["rank_correlation"] <= 1

    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny_bert), folder
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [
        json.loads(line) for line in (tmp_path / "sequence_classification.jsonl").read_text().splitlines()
    ]
    total = 0.0
    for row in rows:
        inputs, p = tokenizer(row["text"], return_tensors="pt"), 0.0
        for k in range(4):
            with posterior.sampled(model, k, antithetic=True), torch.no_grad():
                p += model(**inputs).logits.softmax(-1)[0, row["label"]].item() / 4
        total -= math.log(p) / len(rows)
    assert found["nll"][f"{found['factor']:g}"] == pytest.approx(total, rel=1e-4)


def test_harmful_draws_are_told(make_posterior, tiny_bert, tmp_path, write_rows, caplog):
    """An adapter that is right about everything loses by noise as wide as this."""
    config = make_posterior(prior_precision=1e-4)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [{"text": f"{word} film {n}"} for word in ("good", "very", "large") for n in range(5)]
    for row in rows:
        row["label"] = model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax().item()
    data = replace(config.data, validation=write_rows(rows, "own.jsonl"), labels=["0", "1"])
    config = replace(config, data=data)
    with caplog.at_level(logging.WARNING, logger="vlora"):
        found = log_of(run_posterior(config))["validation"]
    assert found["nll"] > found["nll_mean"]
    assert "draws are worse than the mean on the validation rows" in caplog.text


@pytest.mark.parametrize("reduction", ["mean", "token_mean"])
def test_a_causal_model_is_measured_by_sequence_or_by_token(make_posterior, reduction):
    posterior = Posterior.from_pretrained(
        run_posterior(make_posterior("causal_lm", loss_reduction=reduction))
    )
    assert posterior.meta.tokens_per_example == 2  # a colour and EOS
    assert posterior.meta.loss_reduction == reduction
    assert posterior.meta.labels is None
    assert all(sd.isfinite().all() for sd in posterior.std().values())


@pytest.mark.parametrize(
    ("keys", "lora"),
    [
        ({"quantization": "4bit"}, {}),
        ({"quantization": "8bit", "dtype": "bfloat16"}, {}),
        ({"dtype": "bfloat16"}, {"use_rslora": True}),
        ({}, {"use_dora": True}),
    ],
)
def test_low_precision_bases_and_variants(make_posterior, keys, lora):
    folder = run_posterior(make_posterior("causal_lm", lora=lora, **keys))
    posterior = Posterior.from_pretrained(folder)
    assert log_of(folder)["fisher_method"] == ("loop" if "use_dora" in lora else "hooks")
    assert any(key.endswith("lora_magnitude_vector") for key in posterior.hess) == ("use_dora" in lora)
    assert all(sd.isfinite().all() and sd.min() > 0 for sd in posterior.std().values())


def test_tensors_can_be_kept_deterministic_and_curvature_asked_for(make_posterior):
    config = make_posterior(deterministic=["lora_A"], curvature=True)
    posterior = Posterior.from_pretrained(run_posterior(config))
    assert {key.split(".")[-2] for key in posterior.hess} == {"lora_B", "classifier"}
    key = next(key for key in posterior.mean if "lora_A" in key)
    assert torch.equal(posterior.sample(0)[key], posterior.mean[key])
    assert posterior.curvature is not None
    assert any(key.endswith(".input_gram") for key in posterior.curvature)


def test_an_untrained_tensor_takes_the_common_prior(make_posterior, tiny_llama, tmp_path):
    """Where B is zero it has no scale of its own, and A has no gradient."""
    config = make_posterior("causal_lm")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "adapter/adapter_model.safetensors"
    weights = load_file(file)
    zero = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file({**weights, zero: torch.zeros_like(weights[zero])}, file, metadata={"format": "pt"})
    prior = log_of(run_posterior(config))["prior"]
    assert sorted(prior["undetermined"]) == [zero.replace("lora_B", "lora_A"), zero]
    assert len({prior["precision"][key] for key in prior["undetermined"]}) == 1


def test_refusals_are_one_clear_line(make_posterior, tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match=r"held_out needs data.validation"):
        make_posterior(prior_precision="held_out")
    with pytest.raises(ConfigError, match="temperature must be > 0"):
        make_posterior(temperature=0)
    with pytest.raises(ConfigError, match="prior_precision must be > 0"):
        make_posterior(prior_precision=-1.0)
    with pytest.raises(ConfigError, match="use sampled"):
        make_posterior("causal_lm", fisher="expected")
    with pytest.raises(ConfigError, match="leaves no tensor"):
        run_posterior(make_posterior(deterministic=["base_model"]))
    with pytest.raises(DataError, match="has 2 classes, the data 3"):
        run_posterior(make_posterior("sequence_classification", "data.labels=['0', '1', '2']"))
    with pytest.raises(DataError, match="none.jsonl does not exist"):
        run_posterior(make_posterior("sequence_classification", f"data.train={tmp_path}/none.jsonl"))
    assert not (tmp_path / "out").exists()


def test_another_adapter_type_and_an_untrained_one_are_refused(make_posterior, tiny_llama, tmp_path):
    from peft import IA3Config, LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(base, IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    with pytest.raises(ConfigError, match="expected a LoRA adapter, .* peft_type IA3"):
        run_posterior(make_posterior("causal_lm", adapter=str(tmp_path / "ia3")))
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path / "fresh")
    fresh = make_posterior("causal_lm", adapter=str(tmp_path / "fresh"), deterministic=["lora_A"])
    with pytest.raises(DataError, match="no prior precision maximises the evidence"):
        run_posterior(fresh)
    shutil.rmtree(tmp_path / "fresh")


def test_leading_directions_are_measured_at_the_scale_of_h(make_posterior):
    """With every row under both classes and all directions kept, the trace of F is N times the sum of h."""
    folder = run_posterior(make_posterior(directions=64))
    posterior = Posterior.from_pretrained(folder)
    found = posterior.directions
    assert found is not None and set(found.keys) == set(posterior.hess) and len(found.values) <= 24
    total = 24 * sum(float(h.double().sum()) for h in posterior.hess.values())
    assert float(found.values.sum()) == pytest.approx(total, rel=1e-3)
    config = load_config(PosteriorConfig, folder / "laplace_config.yaml")
    few = replace(config, adapter=str(folder), directions=3, directions_examples=8, fisher="sampled")
    few = replace(few, deterministic=["lora_A"], output=str(folder.parent / "few"))
    again = Posterior.from_pretrained(run_posterior(few)).directions
    assert again is not None and len(again.values) == 3 and not any("lora_A" in key for key in again.keys)
    bare = replace(few, directions=None, output=str(folder.parent / "bare"))
    assert Posterior.from_pretrained(run_posterior(bare)).directions is None  # h and N were measured anew


def test_directions_that_cannot_be_measured_are_refused_first(make_posterior, tmp_path):
    with pytest.raises(ConfigError, match="directions need .* linear layers alone, .*lora_magnitude_vector"):
        run_posterior(make_posterior("causal_lm", lora={"use_dora": True}, directions=4))
    assert not (tmp_path / "out").exists()
    for name in ("directions", "directions_examples"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
            make_posterior(**{name: 0})
