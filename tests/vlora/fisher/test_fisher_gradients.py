"""Squared gradients against hand-made formulas, and hooks against the plain loop on real architectures."""

from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from curvature_cases import quantise, split, tiny_llama, token_rows, with_adapter
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from vlora.errors import ConfigError, DataError, TrainingError
from vlora.fisher import example_losses, squared_gradients


class Logistic(nn.Module):
    """Multinomial logistic regression with Hugging Face's way of answering."""

    def __init__(self, features=3, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(features, classes)

    def forward(self, x):
        return SimpleNamespace(logits=self.linear(x))


def points(rows=12, features=3, classes=4):
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(rows, features, generator=generator),
        "labels": torch.randint(classes, (rows,), generator=generator),
    }


def by_hand(model, batch, expected):
    """(p - y)^2 x^2 per example; in the mean over y ~ p it is p (1 - p) x^2."""
    p = model(batch["x"]).logits.softmax(-1).detach()
    y = nn.functional.one_hot(batch["labels"], 4)
    residual = p * (1 - p) if expected else (p - y).square()
    weight = torch.einsum("nc,nf->ncf", residual, batch["x"].square()).mean(0)
    return {"linear.weight": weight, "linear.bias": residual.mean(0)}


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("labels", ["given", "expected"])
def test_logistic_regression_by_hand(labels, method):
    model, batch = Logistic(), points()
    found = squared_gradients(model, split_rows(batch, 5), labels=labels, method=method, progress=False)
    for name, want in by_hand(model, batch, labels == "expected").items():
        torch.testing.assert_close(found.values[name], want, rtol=1e-5, atol=1e-7)
    assert found.method == ("loop" if method == "loop" else "hooks")
    loss = nn.functional.cross_entropy(model(batch["x"]).logits, batch["labels"])
    assert found.mean_loss == pytest.approx(loss.item(), rel=1e-6)
    assert (found.num_examples, found.tokens_per_example) == (12, None)


def test_sampled_labels_have_the_exact_fisher_as_their_mean():
    model, batch = Logistic(), points(rows=3)
    many = {key: value.repeat(4000, *[1] * (value.dim() - 1)) for key, value in batch.items()}
    exact = squared_gradients(model, [batch], labels="expected", progress=False).values
    found = squared_gradients(model, split_rows(many, 1000), labels="sampled", progress=False).values
    for name, want in exact.items():
        torch.testing.assert_close(found[name], want, rtol=0.08, atol=0)
    other = squared_gradients(model, split_rows(many, 1000), labels="sampled", seed=1, progress=False).values
    assert not torch.equal(other["linear.weight"], found["linear.weight"])


def test_the_exact_fisher_is_the_gauss_newton_diagonal():
    """For a softmax likelihood of logits linear in the weights it is the Hessian itself."""
    model, batch = Logistic(), points()

    def loss(weight):
        logits = batch["x"] @ weight.T + model.linear.bias.detach()
        return nn.functional.cross_entropy(logits, batch["labels"])

    weight = model.linear.weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight).reshape(12, 12).diagonal().reshape(4, 3)
    found = squared_gradients(model, [batch], labels="expected", progress=False)
    torch.testing.assert_close(found.values["linear.weight"], hessian, rtol=1e-4, atol=1e-7)


def split_rows(batch, size):
    rows = len(batch["labels"])
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]


def classifier(**lora):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_labels=3, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    base = BertForSequenceClassification(config)
    settings = {
        "r": 4,
        "target_modules": ["query", "value", "dense"],
        "lora_dropout": 0.2,
        "task_type": "SEQ_CLS",
    }
    model = peft.get_peft_model(base, peft.LoraConfig(**{**settings, **lora}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def sentences():
    batch = token_rows([7, 3, 9, 5, 4])
    return {**batch, "labels": torch.tensor([0, 2, 1, -100, 2])}


def same(left, right, rtol=1e-5):
    assert left.values.keys() == right.values.keys()
    for name, want in right.values.items():
        assert want.abs().max() > 0, name
        torch.testing.assert_close(left.values[name], want, rtol=rtol, atol=rtol * want.max().item())


@pytest.mark.parametrize("labels", ["given", "sampled", "expected"])
def test_hooks_equal_the_loop_on_a_classifier_with_its_head(labels):
    model, batches = classifier(), split(sentences(), 3)
    fast = squared_gradients(model, batches, labels=labels, progress=False)
    slow = squared_gradients(model, batches, labels=labels, method="loop", progress=False)
    assert (fast.method, slow.method) == ("hooks", "loop")
    assert any("classifier" in name for name in fast.values)
    assert fast.num_examples == slow.num_examples == 4  # one row has no label
    same(fast, slow)


@pytest.mark.parametrize("labels", ["given", "sampled"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_hooks_equal_the_loop_on_a_causal_model(labels, side):
    """Padding, rows of several lengths and batches of another size change nothing."""
    model = with_adapter(tiny_llama(), use_rslora=True)
    batch = token_rows([6, 2, 9, 4], side=side)
    fast = squared_gradients(model, split(batch, 3), labels=labels, progress=False)
    slow = squared_gradients(model, split(batch, 2), labels=labels, method="loop", progress=False)
    assert (fast.method, slow.method) == ("hooks", "loop")
    same(fast, slow)
    assert fast.tokens_per_example == (5 + 1 + 8 + 3) / 4


def test_token_mean_is_the_curvature_of_the_loss_per_token():
    model, batch = with_adapter(tiny_llama()), token_rows([6, 2, 9, 4])
    whole = squared_gradients(model, [batch], progress=False)
    token = squared_gradients(model, [batch], reduction="token_mean", progress=False)
    for name, value in whole.values.items():
        torch.testing.assert_close(token.values[name] * 4.25, value)
    assert token.mean_loss * 4.25 == pytest.approx(whole.mean_loss)
    model.eval()
    assert token.mean_loss == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert example_losses(model, batch).sum().item() == pytest.approx(4 * whole.mean_loss, rel=1e-5)


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"modules_to_save": ["LayerNorm"]}, {"target_modules": ["word_embeddings"]}]
)
def test_what_hooks_do_not_cover_goes_row_by_row(lora):
    model = classifier(**lora)
    auto = squared_gradients(model, [sentences()], progress=False)
    assert auto.method == "loop"
    same(auto, squared_gradients(model, [sentences()], method="loop", progress=False))


def test_a_layer_used_twice_is_noticed_on_the_first_row():
    """Each use alone has a smaller gradient; the squares of parts are not the square of the sum."""

    class Twice(Logistic):
        def __init__(self):
            super().__init__(3, 3)

        def forward(self, x):
            return SimpleNamespace(logits=self.linear(torch.tanh(self.linear(x))))

    model, batch = Twice(), points(classes=3)
    found = squared_gradients(model, [batch], progress=False)
    assert found.method == "loop"
    same(found, squared_gradients(model, [batch], method="loop", progress=False))


def test_tokens_that_are_not_apart_by_row_go_row_by_row():
    class Flat(Logistic):
        def forward(self, input_ids):
            hidden = nn.functional.one_hot(input_ids, 3).float()
            return SimpleNamespace(logits=self.linear(hidden.flatten(0, 1)).reshape(*input_ids.shape, 4))

    model = Flat()
    ids = torch.randint(3, (4, 6), generator=torch.Generator().manual_seed(0))
    found = squared_gradients(model, [{"input_ids": ids, "labels": ids}], progress=False)
    assert found.method == "loop"
    same(found, squared_gradients(model, [{"input_ids": ids, "labels": ids}], method="loop", progress=False))


@pytest.mark.parametrize("kind", ["bf16", "8bit", "4bit"])
def test_low_precision_bases(kind):
    base = tiny_llama()
    if kind == "bf16":
        base = base.to(torch.bfloat16)
    else:
        quantise(base, pytest.importorskip("bitsandbytes"), int(kind[0]))
        for module in base.modules():  # as vlora loads them: the packed kernel would rewrite the weights
            module.support_avx512bf16_for_cpu = False
    model = with_adapter(base)
    batch = token_rows([6, 2, 9, 4])
    fast = squared_gradients(model, [batch], progress=False)
    slow = squared_gradients(model, [batch], method="loop", progress=False)
    assert fast.method == "hooks"
    for name, want in slow.values.items():
        got = fast.values[name]
        assert (got - want).norm() < (0.05 if kind == "bf16" else 0.02) * want.norm(), name


def test_the_model_is_left_as_it_was():
    model = classifier().train()
    model.bert.pooler.eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    for method in ("auto", "loop"):
        state = torch.get_rng_state(), np.random.get_state()[1].copy()
        before = [(p.detach().clone(), p.requires_grad, p.grad is None) for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        squared_gradients(model, [sentences()], labels="sampled", method=method, progress=False)
        for (value, flag, empty), p in zip(before, model.parameters(), strict=True):
            assert torch.equal(value, p) and p.requires_grad == flag and (p.grad is None) == empty
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(state[0], torch.get_rng_state())
        assert (state[1] == np.random.get_state()[1]).all()
        assert not any(module._forward_hooks for module in model.modules())


def test_parameters_can_be_chosen_and_examples_limited():
    model, batch = Logistic().requires_grad_(False), points()
    chosen = {"w": model.linear.weight}
    found = squared_gradients(model, split_rows(batch, 5), parameters=chosen, max_examples=7, progress=False)
    want = by_hand(model, {key: value[:7] for key, value in batch.items()}, False)["linear.weight"]
    torch.testing.assert_close(found.values["w"], want, rtol=1e-5, atol=1e-7)
    assert found.num_examples == 7 and list(found.values) == ["w"]


def test_bad_input_is_named():
    model, batch = Logistic(), points()
    quiet = {"progress": False}
    with pytest.raises(ConfigError, match="labels must be one of"):
        squared_gradients(model, [batch], labels="true", **quiet)  # pyright: ignore
    with pytest.raises(ConfigError, match="max_examples must be at least 1"):
        squared_gradients(model, [batch], max_examples=0, **quiet)
    with pytest.raises(ConfigError, match="no parameter to measure"):
        squared_gradients(Logistic().requires_grad_(False), [batch], **quiet)
    with pytest.raises(DataError, match="got none"):
        squared_gradients(model, [], **quiet)
    with pytest.raises(DataError, match="got none"):
        squared_gradients(model, [{**batch, "labels": torch.full((12,), -100)}], **quiet)
    with pytest.raises(DataError, match=r"got keys \['x'\]"):
        squared_gradients(model, [{"x": batch["x"]}], **quiet)
    with pytest.raises(DataError, match="do not fit logits"):
        squared_gradients(model, [{**batch, "labels": torch.zeros(12, 2, dtype=torch.long)}], **quiet)
    with pytest.raises(DataError, match="texts have too many of"):
        squared_gradients(with_adapter(tiny_llama()), [token_rows([4])], labels="expected", **quiet)
    stranger = {"other": nn.Parameter(torch.zeros(2))}
    with pytest.raises(DataError, match="does not depend on any of the parameters"):
        squared_gradients(model, [batch], parameters=stranger, **quiet)
    with pytest.raises(TrainingError, match="logits hold NaN"):
        squared_gradients(model, [{**batch, "x": batch["x"] / 0}], **quiet)
