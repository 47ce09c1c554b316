"""Stacked draws against holding each draw in turn, and what cannot be stacked."""

import pytest
import stack_cases
import torch
from peft import IA3Config, get_peft_model

from vlora.errors import ConfigError
from vlora.stacked import Stack, obstacle


def _ids(rows: int = 3, size: int = 7) -> torch.Tensor:
    return torch.randint(4, stack_cases.SIZE, (rows, size), generator=torch.Generator().manual_seed(0))


def _in_turn(model, posterior, draws, antithetic, **inputs):
    found = []
    for draw in draws:
        with posterior.sampled(model, draw, antithetic=antithetic), torch.no_grad():
            found.append(model(**inputs).logits)
    return torch.stack(found)


@pytest.mark.parametrize("case", stack_cases.CASES)
def test_stacked_draws_equal_draws_in_turn(case):
    model, posterior = stack_cases.CASES[case]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draws, ids = [None, 0, 1, 5], _ids()
    assert obstacle(model, posterior) is None
    expected = _in_turn(model, posterior, draws, True, input_ids=ids)
    stack = Stack.of_draws(model, posterior, draws, antithetic=True)
    with stack.active() as count, torch.no_grad():
        got = model(input_ids=ids.repeat(count, 1)).logits.unflatten(0, (count, 3))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (expected[1] - expected[0]).abs().max() > 0.05
    with stack.active(slice(1, 3)) as count, torch.no_grad():
        part = model(input_ids=ids.repeat(count, 1)).logits.unflatten(0, (count, 3))
    torch.testing.assert_close(part, expected[1:3], atol=1e-5, rtol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected[0])  # nothing is left behind


@pytest.mark.parametrize("labels", [3])
def test_classifier_with_trained_head_and_padding(labels):
    model, posterior = stack_cases.adapted(
        stack_cases.bert(labels),
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
        layers_to_transform=[1],
    )
    assert any("classifier" in key for key in posterior.hess)
    ids = _ids()
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 2:] = 0
    expected = _in_turn(model, posterior, [0, None, 2], False, input_ids=ids, attention_mask=mask)
    stack = Stack.of_draws(model, posterior, [0, None, 2])
    assert len(stack.shared) == 1 and stack.cost() == 0.5 + 3 * 0.5
    with stack.active() as count, torch.no_grad():
        got = model(input_ids=ids.repeat(count, 1), attention_mask=mask.repeat(count, 1)).logits
    torch.testing.assert_close(got.unflatten(0, (count, 3)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "depth"),
    [("llama", 0), ("upper blocks", 2), ("head", 3), ("gpt2, biases", 1), ("gpt2, norm and tokens", 0)],
)
def test_blocks_below_the_first_adapted_one_run_on_the_rows_of_one_draw(case, depth):
    model, posterior = stack_cases.CASES[case]()
    stack = Stack.of_draws(model, posterior, [0, 1, 2])
    assert len(stack.shared) == depth
    rows = []
    base = model.get_base_model()
    blocks = base.model.layers if hasattr(base, "model") else base.transformer.h
    for block in blocks:
        block.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    with stack.active(), torch.no_grad():
        model(input_ids=_ids(2).repeat(3, 1))
    assert rows == [2] * depth + [6] * (len(blocks) - depth)


def test_only_the_head_adapted_runs_the_trunk_once():
    model, posterior = stack_cases.adapted(stack_cases.deep_llama(), target_modules=["lm_head"])
    stack = Stack.of_draws(model, posterior, [0, 1, 2, 3])
    assert stack.cost() == 1.0
    expected = _in_turn(model, posterior, range(4), False, input_ids=_ids())
    with stack.active() as count, torch.no_grad():
        got = model(input_ids=_ids().repeat(count, 1)).logits
    torch.testing.assert_close(got.unflatten(0, (count, 3)), expected, atol=1e-5, rtol=1e-5)


def test_key_value_cache_holds_shared_blocks_once():
    from transformers import DynamicCache

    model, posterior = stack_cases.CASES["upper blocks"]()
    ids = _ids(2, 9)
    expected = _in_turn(model, posterior, [0, 1], False, input_ids=ids)[..., 5:, :]
    with Stack.of_draws(model, posterior, [0, 1]).active(), torch.no_grad():
        cache = DynamicCache()
        model(input_ids=ids[:, :5].repeat(2, 1), past_key_values=cache, use_cache=True)
        assert [len(layer.keys) for layer in cache.layers] == [2, 2, 4, 4]
        got = model(input_ids=ids[:, 5:].repeat(2, 1), past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got.unflatten(0, (2, 2)), expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_stacked_weights_row_by_row():
    """With one copy of the mean per row, one backward pass gives every row's own gradient."""
    model, posterior = stack_cases.CASES["upper blocks"]()
    model.requires_grad_(False)
    ids = _ids()
    copies = {
        key: value.expand(3, *value.shape).clone().requires_grad_() for key, value in posterior.mean.items()
    }
    with Stack(model, copies).active(same_rows=False):
        loss = model(input_ids=ids).logits[:, -1, 5].sum()
        together = torch.autograd.grad(loss, list(copies.values()))
    for row in range(3):
        one = {key: value[None].clone().requires_grad_() for key, value in posterior.mean.items()}
        with Stack(model, one).active():
            alone = torch.autograd.grad(
                model(input_ids=ids[row : row + 1]).logits[:, -1, 5].sum(), list(one.values())
            )
        for left, right in zip(together, alone, strict=True):
            torch.testing.assert_close(left[row], right[0], atol=1e-5, rtol=1e-4)


def test_what_cannot_be_stacked_says_why():
    model, posterior = stack_cases.adapted(stack_cases.deep_llama(), target_modules=["q_proj"], use_dora=True)
    assert obstacle(model, posterior) == "model.layers.0.self_attn.q_proj is DoRA"
    with pytest.raises(ConfigError, match=r"draws cannot be stacked: .* is DoRA; use scoring: loop"):
        Stack.of_draws(model, posterior, [0])
    model, posterior = stack_cases.adapted(stack_cases.deep_llama(), target_modules=["embed_tokens"])
    assert obstacle(model, posterior) == "model.embed_tokens is LoRA on Embedding"
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    model = get_peft_model(stack_cases.deep_llama(), config)
    assert obstacle(model, stack_cases.posterior_of(model, config)) == "the adapter is IA3, not LoRA"
    model, posterior = stack_cases.adapted(
        stack_cases.deep_llama(), target_modules=["q_proj"], modules_to_save=["norm"]
    )
    assert obstacle(model, posterior) == "a LlamaRMSNorm is trained"
    model, posterior = stack_cases.adapted(
        stack_cases.gpt2(), target_modules=["c_fc"], fan_in_fan_out=True, modules_to_save=["wpe"]
    )
    assert obstacle(model, posterior) == "an embedding of something else than tokens is trained"
    assert obstacle(torch.nn.Linear(2, 2), posterior) == "the model carries no PEFT adapter"
