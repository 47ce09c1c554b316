"""PEFT's hot-swap puts another adapter under the same name: a posterior follows, or says why it cannot."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from transformers import LlamaForCausalLM

from vlora import IVON, Posterior
from vlora.errors import PosteriorFormatError, TrainingError

SETTINGS = {"lr": 0.1, "ess": 1e4, "hess_init": 0.1}


@torch.enable_grad()
def step(model, optimizer, tokens):
    optimizer.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def trained(base_folder, tokens, tmp_path):
    """Train an adapter and save its posterior; returns (folder, model, optimizer)."""

    def make(name, seed, **settings):
        torch.manual_seed(seed)
        lora = LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **settings})
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base_folder), lora).eval()
        optimizer = IVON([p for p in model.parameters() if p.requires_grad], **SETTINGS)
        for _ in range(2):
            step(model, optimizer, tokens)
        Posterior.from_optimizer(model, optimizer, num_examples=3).save_pretrained(tmp_path / name)
        return str(tmp_path / name), model, optimizer

    return make


@torch.no_grad()
def test_posteriors_of_one_layout_follow_the_swap(trained, tokens):
    first, model, _ = trained("first", 1)
    second, other, _ = trained("second", 2)
    a, b = Posterior.from_pretrained(first), Posterior.from_pretrained(second)
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    at_mean = other(tokens).logits
    assert torch.equal(model(tokens).logits, at_mean)
    with b.sampled(model, 1), b.sampled(other, 1):
        assert torch.equal(model(tokens).logits, other(tokens).logits)
        assert not torch.equal(model(tokens).logits, at_mean)
    assert torch.equal(model(tokens).logits, at_mean)
    with a.sampled(model, None):  # the one before the swap still knows its own mean
        assert not torch.equal(model(tokens).logits, at_mean)
    assert torch.equal(model(tokens).logits, at_mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 1, "lora_alpha": 2}, r"with shape \(2, 16\), the posterior with \(1, 16\): another rank"),
        (
            {"lora_alpha": 8},
            "the model scales .* by 2, the posterior's adapter_config says 4: another adapter",
        ),
        (
            {"r": 2, "alpha_pattern": {"^model.layers.1.self_attn.v_proj": 8}},
            "layers.1.*v_proj' by 2, .* says 4",
        ),
        ({"use_rslora": True}, "by 2, the posterior's adapter_config says 2.8"),
    ],
)
def test_a_posterior_of_another_layout_is_refused_before_anything_is_written(
    trained, tokens, settings, message
):
    _, model, _ = trained("first", 1)
    second, *_ = trained("second", 2, **settings)
    posterior = Posterior.from_pretrained(second)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PosteriorFormatError, match=message):
        posterior.load_into(model)
    with pytest.raises(PosteriorFormatError, match=message), posterior.sampled(model, 0):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_former_posterior_is_refused_under_a_swapped_scaling(trained, tokens):
    first, model, optimizer = trained("first", 1)
    second, *_ = trained("second", 2, lora_alpha=8)
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    with pytest.raises(PosteriorFormatError, match="by 4, the posterior's adapter_config says 2"):
        Posterior.from_pretrained(first).load_into(model)
    changed = pytest.warns(
        UserWarning, match="8 of 8 trained tensors were changed after the last optimizer step"
    )
    with changed, pytest.raises(PosteriorFormatError, match="by 4, the posterior's adapter_config says 2"):
        Posterior.from_optimizer(model, optimizer, num_examples=3)


def test_training_goes_on_from_weights_that_were_swapped_in(trained, tokens):
    _, model, optimizer = trained("first", 1)
    second, other, _ = trained("second", 2)
    wanted = Posterior.from_pretrained(second).mean
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    with pytest.warns(UserWarning, match="h still belongs to what they held before"):
        posterior = Posterior.from_optimizer(model, optimizer, num_examples=3)
    assert all(torch.equal(posterior.mean[key], value) for key, value in wanted.items())
    step(model, optimizer, tokens)
    after = Posterior.from_optimizer(model, optimizer, num_examples=3)
    assert all((after.mean[key] - value).abs().max() < 0.5 for key, value in wanted.items())
    assert any(not torch.equal(after.mean[key], value) for key, value in wanted.items())


def test_a_posterior_after_a_swap_to_a_higher_rank_is_refused(trained, tokens):
    _, model, optimizer = trained("first", 1)
    second, *_ = trained("second", 2, r=4, lora_alpha=8)
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    with pytest.raises(
        TrainingError, match=r"shape \(4, 16\) now, .* \(2, 16\): an adapter of another rank was hot-swapped"
    ):
        Posterior.from_optimizer(model, optimizer, num_examples=3)
