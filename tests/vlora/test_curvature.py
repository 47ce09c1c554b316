"""The hooks' Kronecker factors against literal per-example computations."""

import pytest
import torch
from curvature_cases import (
    PROJECTIONS,
    assert_same,
    literal_grams,
    quantise,
    split,
    tiny_bert,
    tiny_llama,
    token_rows,
    unpadded_batches,
    with_adapter,
)
from torch import nn
from transformers import BertForSequenceClassification, LlamaForSequenceClassification

from vlora.curvature import collect_curvature
from vlora.curvature.tokens import add_examples


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
def test_equals_the_literal_computation_example_by_example(normalise, joined):
    model, batch = with_adapter(tiny_llama()), token_rows([7, 7, 7, 7, 7])
    settings = {"normalise": normalise, "joined": joined, "votes": "equal", "progress": False}
    got = collect_curvature(model, split(batch, 3), **settings)
    assert_same(got, literal_grams(model, split(batch, 1), normalise, joined), rtol=2e-5)
    assert len(got) == 2 * 2 * len(PROJECTIONS)
    key = "base_model.model.model.layers.0.mlp.up_proj"
    assert f"{key}.lora_A.default.weight" in dict(model.named_parameters())
    assert got[f"{key}.input_gram"].shape == (16, 16)
    assert got[f"{key}.output_gram"].shape == (24, 24)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_neither_batch_size_nor_padding_nor_masked_rows_matter(normalise, side):
    """A token-mean loss weighs rows of unequal length by the batch they are in; the result must not."""
    model, lengths = with_adapter(tiny_llama()), [3, 9, 5, 6]
    one_by_one = unpadded_batches(lengths)
    want = collect_curvature(model, one_by_one, normalise=normalise, progress=False)
    padded = token_rows(lengths, pad_to=12, side=side)
    # A third, fully masked row beside two others, and a batch of masked rows only.
    silent = {k: v[:1].clone() for k, v in padded.items()} | {"labels": torch.full((1, 12), -100)}
    batches = [*split(padded, 2), silent]
    batches[0] = {k: torch.cat([v, silent[k]]) for k, v in batches[0].items()}
    got = collect_curvature(model, batches, normalise=normalise, progress=False)
    assert_same(got, want, rtol=2e-5)


def test_single_tokens_reproduce_exact_weight_gradients():
    """With one token a row dW = g xᵀ: G = Σ dWᵀdW, S = Σ dW dWᵀ; for one row S⊗G = |dW|² vec(dW) vec(dW)ᵀ."""
    base = tiny_llama(LlamaForSequenceClassification, attention_bias=True, num_labels=3)
    model = with_adapter(base, ["v_proj"])
    batch = {"input_ids": torch.tensor([[4], [9], [17]]), "labels": torch.tensor([0, 2, 1])}
    name = "base_model.model.model.layers.1.self_attn.v_proj"
    layer = model.get_submodule(name).base_layer.requires_grad_(True)
    model.eval()
    input_gram, output_gram = torch.zeros(16, 16), torch.zeros(8, 8)
    for row in split(batch, 1):
        d_weight = torch.autograd.grad(model(**row).loss, layer.weight)[0]
        input_gram += d_weight.T @ d_weight
        output_gram += d_weight @ d_weight.T
    got = collect_curvature(model, [batch], normalise=False, progress=False)
    torch.testing.assert_close(got[f"{name}.input_gram"], input_gram, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(got[f"{name}.output_gram"], output_gram, rtol=1e-4, atol=1e-8)
    last = collect_curvature(model, [row], normalise=False, progress=False)
    product = torch.kron(last[f"{name}.output_gram"], last[f"{name}.input_gram"])
    exact = d_weight.square().sum() * torch.outer(d_weight.flatten(), d_weight.flatten())
    torch.testing.assert_close(product, exact, rtol=1e-4, atol=1e-6 * exact.max().item())


def test_normalised_factors_are_symmetric_psd_with_mean_eigenvalue_one():
    got = collect_curvature(with_adapter(tiny_llama()), [token_rows([8, 5, 11])], progress=False)
    for gram in got.values():
        assert torch.equal(gram, gram.T)
        assert gram.dtype == torch.float32
        eigenvalues = torch.linalg.eigvalsh(gram.double())
        assert eigenvalues.min() > -1e-5
        assert eigenvalues.mean().item() == pytest.approx(1, abs=1e-5)


def test_several_tokens_reproduce_exact_weight_gradients():
    """Joined factors are the partial traces of the rows' own gradients, in either way of computing them."""
    for length in (5, 30):  # by the Grams of the tokens, and by the gradient of the weight: 30² > 16 · 8
        model = with_adapter(tiny_llama(max_position_embeddings=64), ["v_proj"])
        batch, name = token_rows([length] * 3), "base_model.model.model.layers.0.self_attn.v_proj"
        layer = model.get_submodule(name).base_layer.requires_grad_(True)
        model.eval()
        owns = [torch.autograd.grad(model(**row).loss, layer.weight)[0] for row in split(batch, 1)]
        got = collect_curvature(model, [batch], normalise=False, progress=False)
        for side, want in (("input", sum(d.T @ d for d in owns)), ("output", sum(d @ d.T for d in owns))):
            torch.testing.assert_close(
                got[f"{name}.{side}_gram"], want, rtol=1e-4, atol=1e-6 * want.max().item()
            )


def test_examples_some_at_a_time_give_the_same(monkeypatch):
    model, batch = with_adapter(tiny_llama()), token_rows([9, 5, 7])
    want = collect_curvature(model, [batch], votes="equal", progress=False)
    monkeypatch.setattr("vlora.curvature.tokens._NUMBERS", 1)
    assert_same(collect_curvature(model, [batch], votes="equal", progress=False), want)


def test_inputs_without_a_gradient_may_be_anything():
    for width, joined in ((3, True), (300, True), (3, False)):  # joined by the weight and by the tokens
        x = torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0))
        g = torch.ones(2, 4, width)
        g[1, 2:] = 0
        broken = x.clone()
        broken[1, 2:] = torch.nan
        sums = [[torch.zeros(width, width), torch.zeros(width, width)] for _ in range(2)]
        for total, inputs in zip(sums, (x, broken), strict=True):
            add_examples(*total, inputs, g, joined=joined)
        assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize("width", [3, 300])
def test_an_example_whose_tokens_cancel_has_no_say(width):
    """Its gradient of the weight is rounding noise, which the scale to mean eigenvalue 1 would blow up."""
    x = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(0)).expand(1, 4, width)
    g = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(1))
    g = torch.cat([g, 0.3 - g, torch.zeros(1, 0, width)], 1) - 0.15
    sums = torch.zeros(width, width), torch.zeros(width, width)
    add_examples(*sums, x, g, joined=True)
    assert not any(total.any() for total in sums)


def test_joined_examples_count_as_much_as_their_tokens_agree():
    """Three equal tokens count three times as much as three orthogonal ones: c |D|^2 = |sum g|^2 |x|^2 / sum |g|^2."""
    x = torch.eye(3)[:1].expand(3, 3)
    for g, want in ((torch.eye(3)[:1].expand(3, 3), 3.0), (torch.eye(3), 1.0)):
        gram, other = torch.zeros(3, 3), torch.zeros(3, 3)
        add_examples(gram, other, x[None], g[None] / g.norm(), joined=True)
        assert gram.trace().item() == pytest.approx(want, rel=1e-6)
        assert other.trace().item() == pytest.approx(want, rel=1e-6)


def test_every_example_has_the_same_vote():
    """S of two rows is the mean of each row's own S, however much larger the gradient of one of them is."""
    model, batch = with_adapter(tiny_llama()), token_rows([9, 9])
    rows = split(batch, 1)
    rows[1]["labels"][0, :-1] = -100
    both = {k: torch.cat([row[k] for row in rows]) for k in batch}
    settings = {"joined": False, "progress": False}
    alone = [collect_curvature(model, [row], votes="equal", **settings) for row in rows]
    raw = [collect_curvature(model, [row], normalise=False, **settings) for row in rows]
    got = collect_curvature(model, [both], votes="equal", **settings)
    ratios = []
    for key in (k for k in got if k.endswith("output_gram")):
        torch.testing.assert_close(got[key], (alone[0][key] + alone[1][key]) / 2, rtol=1e-4, atol=1e-5)
        ratios.append((raw[1][key].trace() / raw[0][key].trace()).item())
    assert max(ratios) > 2  # unweighted, the second row would have outvoted the first


def test_max_examples_stops_inside_a_batch_and_reads_no_further():
    model, batch = with_adapter(tiny_llama()), token_rows([6] * 5)

    def source():
        yield from split(batch, 2)[:2]
        raise AssertionError("read past the last example")

    got = collect_curvature(model, source(), max_examples=3, progress=False)
    assert_same(got, collect_curvature(model, [{k: v[:3] for k, v in batch.items()}], progress=False))


def test_frozen_adapter_gradient_checkpointing_and_no_grad_give_the_same():
    model, batch = with_adapter(tiny_llama()), token_rows([6, 8])
    want = collect_curvature(model, [batch], progress=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    assert_same(collect_curvature(model, [batch], progress=False), want)
    model.requires_grad_(False)
    with torch.no_grad():
        assert_same(collect_curvature(model, [batch], progress=False), want)


def test_classification_encoder_in_float32_and_float64():
    base = tiny_bert(BertForSequenceClassification, initializer_range=0.3)
    model = with_adapter(base, ["query", "value", "dense"], task_type="SEQ_CLS")
    batch = token_rows([4, 7, 6]) | {"labels": torch.tensor([1, 0, 1])}
    got = collect_curvature(model, [batch], votes="equal", progress=False)
    rows = [row | {"labels": batch["labels"][i : i + 1]} for i, row in enumerate(unpadded_batches([4, 7, 6]))]
    assert_same(got, literal_grams(model, rows, True))
    assert "base_model.model.bert.pooler.dense.input_gram" in got  # sees [B, n], without a token axis
    model = model.double()
    exact = collect_curvature(model, [batch], dtype=torch.float64, votes="equal", progress=False)
    assert_same(exact, literal_grams(model, rows, True), rtol=1e-12)
    assert {gram.dtype for gram in exact.values()} == {torch.float64}


def test_unused_module_keeps_zeros():
    """A layer that the loss does not depend on has no curvature; that is a result, not an error."""
    base = tiny_llama()
    base.spare = nn.Linear(5, 3)
    got = collect_curvature(with_adapter(base, ["q_proj", "spare"]), [token_rows([6])], progress=False)
    assert not got["base_model.model.spare.input_gram"].any()
    assert got["base_model.model.model.layers.0.self_attn.q_proj.input_gram"].any()


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_base_on_cpu(bits):
    """Rows stay independent under quantisation, and the factors stay near those of the unquantised base."""
    bnb = pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    plain = with_adapter(tiny_llama(**sizes, initializer_range=0.1))
    base = tiny_llama(**sizes, initializer_range=0.1)
    quantise(base, bnb, bits)
    model = with_adapter(base)
    model.load_state_dict({k: v for k, v in plain.state_dict().items() if "lora_" in k}, strict=False)
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, bnb.nn.Linear8bitLt if bits == 8 else bnb.nn.Linear4bit)
    batch = token_rows([12, 9, 12])
    got = collect_curvature(model, [batch], progress=False)
    assert_same(got, collect_curvature(model, split(batch, 1), progress=False), rtol=1e-3)
    want = collect_curvature(plain, [batch], progress=False)
    for key, gram in want.items():
        assert torch.linalg.eigvalsh(got[key]).min() > -1e-4
        cosine = nn.functional.cosine_similarity(got[key].flatten(), gram.flatten(), dim=0)
        assert cosine > (0.999 if bits == 8 else 0.8), key


def test_the_unweighted_gram_is_that_of_the_inputs_the_loss_depends_on():
    model, batch = with_adapter(tiny_llama()), token_rows([7, 7, 7], pad_to=9)
    name = "base_model.model.model.layers.1.mlp.up_proj"
    seen = []
    hook = model.get_submodule(name).register_forward_hook(lambda _m, args, _o: seen.append(args[0].detach()))
    with torch.no_grad():
        model.eval()(**batch)
    hook.remove()
    # The last token of a row predicts nothing, and padding is masked.
    x = seen[0][:, :6].reshape(-1, 16)
    plain = collect_curvature(model, split(batch, 2), normalise=False, activations=True, progress=False)
    torch.testing.assert_close(plain[f"{name}.activation_gram"], x.T @ x, rtol=1e-4, atol=1e-5)
    scaled = collect_curvature(model, [batch], activations=True, progress=False)
    assert scaled[f"{name}.activation_gram"].trace().item() == pytest.approx(16, rel=1e-5)
    without = collect_curvature(model, [batch], progress=False)
    assert set(scaled) - set(without) == {key for key in scaled if key.endswith(".activation_gram")}
