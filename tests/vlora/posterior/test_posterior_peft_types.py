"""Every PEFT type: IVON steps, a folder that plain PEFT loads at the mean, draws that reach the forward pass."""

from pathlib import Path

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, PeftType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from vlora import IVON, Posterior
from vlora.errors import PosteriorFormatError, TrainingError
from vlora.posterior.keys import saved_tensors
from vlora.training.adapters import add_adapter

TARGETS = {"target_modules": ["q_proj", "v_proj"]}
PROMPT = {"num_virtual_tokens": 3}
SETTINGS = {
    "adalora": {**TARGETS, "total_step": 10, "init_r": 4},
    "adaption_prompt": {"adapter_len": 3, "adapter_layers": 1},
    "boft": {**TARGETS, "boft_block_size": 4},
    "c3a": {**TARGETS, "block_size": 4},
    "cartridge": {**PROMPT, "num_frozen_tokens": 0},
    "cpt": {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "fourierft": {**TARGETS, "n_frequency": 10},
    "ia3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ln_tuning": {"target_modules": ["norm"]},
    "miss": {**TARGETS, "r": 2},
    "multitask_prompt_tuning": {**PROMPT, "num_tasks": 2},
    "oft": {**TARGETS, "oft_block_size": 4},
    "p_tuning": {**PROMPT, "encoder_hidden_size": 8},
    "poly": {**TARGETS, "r": 2, "n_tasks": 2},
    "prefix_tuning": PROMPT,
    "prompt_tuning": PROMPT,
    "psoft": {**TARGETS, "r": 2},
    "randlora": {**TARGETS, "r": 2, "randlora_alpha": 2},
    "road": {**TARGETS, "group_size": 4},
    "shadow": {"shadow_dropout": 0.0},
    "shira": {**TARGETS, "r": 2},
    "trainable_tokens": {"token_indices": [3, 4, 9]},
    "vblora": {**TARGETS, "num_vectors": 20, "vector_length": 4, "topk": 2, "r": 2},
    "waveft": {**TARGETS, "n_frequency": 10},
}
TYPES = [str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING]
REFUSED = {
    "cpt": "no posterior over 'prompt_embeddings' of CPT: its forward pass rewrites the trained tensor",
    "p_tuning": "of P_TUNING: PEFT saves what the prompt encoder computes, not the encoder .* use prompt_tuning",
    "xlora": "of XLORA: PEFT takes the layers of its classifier for adapters",
}
REFUSED_SETTINGS = [
    ("cartridge", {"num_frozen_tokens": 1}, "as one tensor; set num_frozen_tokens: 0"),
    ("prefix_tuning", {"prefix_projection": True, "encoder_hidden_size": 8}, "set prefix_projection: false"),
    ("vblora", {"save_only_topk_weights": True}, "of VBLORA: .* set save_only_topk_weights: false"),
]


# PEFT's own notices about a method: no bias to train, no compiled extension, layers it does not know.
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*(no bias term|CUDA extension|boft_n_butterfly_factor|Sparse invariant|Unsupported layer type).*"
    ),
]


def tiny(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, use_cache=False).eval()


def expert(folder: Path, to: Path) -> str:
    """A LoRA adapter whose B is not zero, for X-LoRA to mix."""
    torch.manual_seed(6)
    model = get_peft_model(tiny(folder), LoraConfig(r=2, init_lora_weights=False, **TARGETS))
    model.save_pretrained(to)
    return str(to)


def adapted(folder: Path, kind: str, **changes) -> PeftModel:
    torch.manual_seed(5)
    settings = {**SETTINGS.get(kind, TARGETS), **changes}
    if kind == "xlora":
        experts = {str(i): expert(folder, folder.parent / f"expert-{i}") for i in range(2)}
        settings = {"hidden_size": 16, "adapters": experts, **changes}
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.upper())]
    return add_adapter(tiny(folder), cls(task_type="CAUSAL_LM", **settings))


def inputs_of(kind: str, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    tasks = {"task_ids": torch.tensor([0, 1, 0])} if kind in ("multitask_prompt_tuning", "poly") else {}
    return {**batch, **tasks}


def trained(model: PeftModel, batch: dict[str, torch.Tensor], steps: int = 2) -> IVON:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = IVON(parameters, lr=0.1, ess=1e3, hess_init=0.1)
    model.train()
    for _ in range(steps):
        optimizer.train()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return optimizer


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in REFUSED])
def test_a_posterior_of_every_type_loads_in_plain_peft_and_its_draws_reach_the_logits(
    base_folder, tmp_path, tokens, kind
):
    model, batch = adapted(base_folder, kind), inputs_of(kind, tokens)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = trained(model, batch)
    moved = [
        name for name, p in model.named_parameters() if name in start and not torch.equal(p, start[name])
    ]
    assert moved
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=3)
    assert len(posterior.hess) == sum(1 for p in optimizer.state if optimizer.state[p].get("step", 0) > 0)
    posterior.save_pretrained(tmp_path / "out")
    plain = PeftModel.from_pretrained(tiny(base_folder), str(tmp_path / "out")).eval()
    back = Posterior.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        at_mean = model(**batch).logits
        assert torch.equal(plain(**batch).logits, at_mean)
        before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
        with back.sampled(plain, 1), posterior.sampled(model, 1):
            drawn = plain(**batch).logits
            assert torch.equal(drawn, model(**batch).logits)
            assert not torch.equal(drawn, at_mean)
        assert torch.equal(plain(**batch).logits, at_mean)
        assert torch.equal(model(**batch).logits, at_mean)
        assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [*((kind, {}, reason) for kind, reason in REFUSED.items()), *REFUSED_SETTINGS],
)
def test_what_cannot_be_right_is_refused_by_name_with_an_alternative(
    base_folder, tokens, kind, changes, reason
):
    model = adapted(base_folder, kind, **changes)
    with pytest.raises(PosteriorFormatError, match=reason):
        saved_tensors(model)
    optimizer = trained(model, inputs_of(kind, tokens), steps=1)
    with pytest.raises(PosteriorFormatError, match=reason):
        Posterior.from_optimizer(model, optimizer, num_examples=3)


def test_the_documented_table_is_this_table():
    text = (Path(__file__).parents[3] / "docs/gotchas.md").read_text()
    assert f"PEFT 0.21 knows {len(TYPES)}. With IVON {len(TYPES) - len(REFUSED)} of them" in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in (*REFUSED, *(kind for kind, _, _ in REFUSED_SETTINGS)):
        assert any(row.startswith(f"| `{name}`") for row in rows), name


def test_vblora_draws_move_the_bank_and_the_logits(base_folder, tokens):
    model = adapted(base_folder, "vblora")
    posterior = Posterior.from_optimizer(model, trained(model, inputs_of("vblora", tokens)), num_examples=3)
    assert "base_model.vblora_vector_bank" in posterior.hess
    assert sum("vblora_logits" in key for key in posterior.hess) == 8


def test_saved_projections_and_indices_stay_deterministic(base_folder, tokens):
    for kind, fixed in (("vera", "vera_A"), ("randlora", "randlora_A"), ("shira", "shira_indices")):
        model = adapted(base_folder, kind)
        posterior = Posterior.from_optimizer(model, trained(model, inputs_of(kind, tokens)), num_examples=3)
        keys = [key for key in posterior.mean if fixed in key]
        assert keys and not set(keys) & set(posterior.hess)
        assert all(torch.equal(posterior.sample(0)[key], posterior.mean[key]) for key in keys)


def test_shira_indices_follow_the_folder(base_folder, tmp_path, tokens):
    """Entries are meaningless without their places: loading into another SHiRA writes both."""
    model, batch = adapted(base_folder, "shira"), inputs_of("shira", tokens)
    posterior = Posterior.from_optimizer(model, trained(model, batch), num_examples=3)
    other = adapted(base_folder, "shira", random_seed=9).eval()
    with torch.no_grad():
        assert not torch.equal(other(**batch).logits, model(**batch).logits)
        posterior.load_into(other)
        assert torch.equal(other(**batch).logits, model(**batch).logits)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("adapter_name", ["default", "second"])
@pytest.mark.parametrize(
    ("settings", "trains", "fixed"),
    [
        (
            {"target_modules": ["q_proj", "embed_tokens"]},
            "lora_embedding_A",
            "embed_tokens.base_layer.weight",
        ),
        ({**TARGETS, "trainable_token_indices": [3, 4]}, "trainable_tokens_delta", None),
        ({**TARGETS, "modules_to_save": ["embed_tokens", "lm_head"]}, "embed_tokens.weight", None),
    ],
)
def test_embeddings_and_single_tokens(base_folder, tmp_path, tokens, settings, trains, fixed, adapter_name):
    torch.manual_seed(5)
    model = get_peft_model(tiny(base_folder), LoraConfig(r=2, **settings), adapter_name=adapter_name)
    batch = inputs_of("lora", tokens)
    optimizer = trained(model, batch)
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=3, adapter_name=adapter_name)
    assert any(trains in key for key in posterior.hess)
    if fixed:
        assert any(fixed in key for key in posterior.mean) and not any(fixed in key for key in posterior.hess)
    posterior.save_pretrained(tmp_path / "out")
    plain = PeftModel.from_pretrained(tiny(base_folder), str(tmp_path / "out")).eval()
    with torch.no_grad():
        at_mean = model(**batch).logits
        assert torch.equal(plain(**batch).logits, at_mean)
        with posterior.sampled(plain, 1), posterior.sampled(model, 1, adapter_name=adapter_name):
            assert torch.equal(plain(**batch).logits, model(**batch).logits)
            assert not torch.equal(plain(**batch).logits, at_mean)
        assert torch.equal(plain(**batch).logits, at_mean)


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable_token_indices": [3, 4]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_tied_embeddings_are_drawn_once(base_folder, tmp_path, tokens, settings):
    base = tmp_path / "tied"
    config = LlamaConfig.from_pretrained(base_folder, tie_word_embeddings=True)
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    torch.manual_seed(5)
    model = get_peft_model(tiny(base), LoraConfig(r=2, **TARGETS, **settings))
    batch = inputs_of("lora", tokens)
    optimizer = trained(model, batch)
    posterior = Posterior.from_optimizer(model, optimizer, num_examples=3)
    assert len(posterior.hess) == len([p for p in model.parameters() if p.requires_grad])
    posterior.save_pretrained(tmp_path / "out")
    plain = PeftModel.from_pretrained(tiny(base), str(tmp_path / "out")).eval()
    with torch.no_grad():
        at_mean = model(**batch).logits
        assert torch.equal(plain(**batch).logits, at_mean)
        with posterior.sampled(plain, 1), posterior.sampled(model, 1):
            assert torch.equal(plain(**batch).logits, model(**batch).logits)
            assert not torch.equal(plain(**batch).logits, at_mean)
        assert torch.equal(plain(**batch).logits, at_mean)


def test_a_trained_tensor_that_peft_does_not_save_is_named(base_folder, tokens):
    model = adapted(base_folder, "lora")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or name.endswith("model.norm.weight"))
    optimizer = trained(model, inputs_of("lora", tokens))
    with pytest.raises(
        TrainingError,
        match="does not save 1 trained tensors .*norm.weight.* name the module in modules_to_save",
    ):
        Posterior.from_optimizer(model, optimizer, num_examples=3)


def test_adalora_with_cut_ranks_is_refused(base_folder, tokens):
    model = adapted(base_folder, "adalora", init_r=4, target_r=2, tinit=0, tfinal=1, deltaT=1, total_step=4)
    batch = inputs_of("adalora", tokens)
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=1e3, hess_init=0.1)
    for step in range(1, 5):
        optimizer.train()
        model(**batch, labels=tokens).loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    with pytest.raises(PosteriorFormatError, match="of ADALORA: the saved factors are cut to the ranks"):
        Posterior.from_optimizer(model, optimizer, num_examples=3)
