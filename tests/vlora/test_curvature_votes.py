"""What an example counts in the curvature: by what the adapter changed about it, against literal computations."""

import pytest
import torch
from curvature_cases import assert_same, literal_grams, split, tiny_bert, tiny_llama, token_rows, with_adapter
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForSequenceClassification,
)

from vlora.curvature import collect_curvature
from vlora.curvature.votes import base_logits, change_votes
from vlora.errors import ConfigError


def divergences(model, row, shift):
    """KL of every predicted place of one row, by PEFT's own switch and torch's own divergence; nats."""
    model.eval()
    with torch.no_grad():
        first = model(**row).logits.log_softmax(-1)[0]
        with model.disable_adapter():
            second = model(**row).logits.log_softmax(-1)[0]
    labels = row["labels"][0]
    return [
        nn.functional.kl_div(second[t - shift], first[t - shift], reduction="sum", log_target=True).item()
        for t in range(shift, len(labels))
        if labels[t] != -100
    ]


def votes_of(model, batch):
    model.eval()
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    base = base_logits("change", model, layers, batch)
    return change_votes(model, model(**batch).logits, base, batch["labels"])


def test_votes_are_the_divergence_of_adapter_and_base_over_the_predicted_tokens():
    model, batch = with_adapter(tiny_llama()), token_rows([7, 3, 5], pad_to=9)
    want = [sum(divergences(model, row, shift=1)) for row in split(batch, 1)]
    assert min(want) > 0.1
    torch.testing.assert_close(votes_of(model, batch), torch.tensor(want), rtol=1e-4, atol=1e-6)


def test_the_curvature_is_that_of_single_rows_times_their_votes():
    model, batch = with_adapter(tiny_llama()), token_rows([7, 4, 6])
    got = collect_curvature(model, split(batch, 2), progress=False)
    want = {}
    for row, vote in zip(split(batch, 1), votes_of(model, batch), strict=True):
        raw, apart = (literal_grams(model, [row], normalise=False, joined=joined) for joined in (True, False))
        for key, gram in raw.items():
            size = apart[key.rpartition(".")[0] + ".output_gram"].trace()  # of the row's gradients, squared
            want[key] = want.get(key, 0) + vote * gram / size
    assert_same(got, {key: gram * (len(gram) / gram.trace()) for key, gram in want.items()}, rtol=2e-5)


def test_labels_of_token_classifiers_stand_where_their_logits_do():
    model = with_adapter(
        tiny_bert(BertForTokenClassification, num_labels=3), ["query"], task_type="TOKEN_CLS"
    )
    batch = token_rows([6, 4])
    batch["labels"] = torch.where(batch["labels"] == -100, -100, batch["labels"] % 3)
    want = [sum(divergences(model, row, shift=0)) for row in split(batch, 1)]
    torch.testing.assert_close(votes_of(model, batch), torch.tensor(want), rtol=1e-4, atol=1e-6)


def test_small_changes_have_half_the_quadratic_form_of_the_fisher_matrix():
    """KL(p || p + d) = 1/2 d^T (diag p - p p^T) d + O(d^3): the vote is half of Delta^T H Delta, a secant."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    step = 2e-2 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)
    half = 0.5 * ((p * step.square()).sum(-1) - (p * step).sum(-1).square())
    got = change_votes(with_adapter(tiny_llama()), logits, logits - step, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(got.double(), half, rtol=5e-2, atol=0)


def test_a_head_that_was_trained_with_the_adapter_stays_in_both():
    base = tiny_llama(LlamaForSequenceClassification, num_labels=3)
    model = with_adapter(base, ["q_proj"], modules_to_save=["score"], task_type="SEQ_CLS")
    with torch.no_grad():
        model.base_model.model.score.modules_to_save["default"].weight.mul_(3.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    batch = {"input_ids": torch.tensor([[4, 9], [17, 3]]), "labels": torch.tensor([0, 2])}
    assert votes_of(model, batch).tolist() == [0.0, 0.0]


def test_rows_that_the_adapter_left_alone_do_not_count():
    """Two rows of one token: the adapter changes what follows one of them and nothing about the other."""
    model = with_adapter(tiny_llama(num_hidden_layers=1), ["down_proj"])
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    batch = {"input_ids": torch.tensor([[4, 9], [17, 3]]), "labels": torch.tensor([[-100, 9], [-100, 3]])}
    seen = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    model.eval()(**batch)
    handle.remove()
    first, second = seen[0][:, 0]
    with torch.no_grad():  # A sees only what the second row does not have
        direction = first - second * (first @ second) / (second @ second)
        layer.lora_A["default"].weight.copy_(direction.expand(4, -1))
    votes = votes_of(model, batch)
    assert votes[0] > 1e-3 and votes[1] < 1e-9
    got = collect_curvature(model, [batch], progress=False)
    alone = collect_curvature(model, [{k: v[:1] for k, v in batch.items()}], votes="equal", progress=False)
    assert_same(got, alone, rtol=1e-4)


def test_votes_are_equal_where_there_is_nothing_to_compare():
    batch = token_rows([5, 5])
    plain = tiny_llama()
    assert_same(
        collect_curvature(plain, [batch], layers="q_proj", progress=False),
        collect_curvature(plain, [batch], layers="q_proj", votes="equal", progress=False),
    )
    regression = with_adapter(tiny_bert(BertForSequenceClassification, num_labels=1), ["query"])
    rows = {"input_ids": batch["input_ids"], "labels": torch.tensor([0.3, -0.2])}
    got = collect_curvature(regression, [rows], progress=False)
    assert_same(got, collect_curvature(regression, [rows], votes="equal", progress=False))
    with pytest.raises(ConfigError, match="predicts something else: use votes='equal'"):
        collect_curvature(regression, [rows], votes="change", progress=False)
    with pytest.raises(ConfigError, match="this model has no adapter"):
        collect_curvature(plain, [batch], layers="q_proj", votes="change", progress=False)


def test_a_merged_adapter_is_refused_and_everything_else_is_left_as_it_was():
    model, batch = with_adapter(tiny_llama()), token_rows([5, 4])
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    collect_curvature(model, [batch], progress=False)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert not any(m.disable_adapters for m in model.modules() if hasattr(m, "lora_A"))
    model.merge_adapter()
    with pytest.raises(ConfigError, match=r"merged into the base: call model.unmerge_adapter\(\) first"):
        collect_curvature(model, [batch], progress=False)
