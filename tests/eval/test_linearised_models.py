"""The linearised variance on a real small model: draws get there as they get narrow.

The same noise is used at every width, so that two widths differ by curvature alone; what is left at the narrowest one
is the noise of so many draws, sqrt(4 / S) of a variance in mirrored pairs.
"""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from vlora.data import Example, RowFormat
from vlora.eval.forward import Draws
from vlora.eval.linearised import Wanted
from vlora.eval.predictive import logit_covariances
from vlora.eval.score import build_scorer, score_model
from vlora.posterior import Posterior, PosteriorMeta
from vlora.posterior.keys import saved_tensors

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DRAWS, EFFECTS = 32, (0.1, 0.02, 0.004)
"""Draws, and standard deviations of the answer that moves most, in nats."""
STORIES = (
    "Once upon a time there was a little girl who",
    "The dog ran to the park and saw a big",
    "Tom was sad. His mom gave him",
    "One day, a bird found a red ball",
    "The sun was hot and the cat",
)


def random_posterior(folder):
    """A random adapter with independent weights of one width."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    mean = {key: value.detach().clone() for key, value in saved_tensors(model).items()}
    hess = {key: torch.ones_like(value) for key, value in mean.items()}
    return model, Posterior(mean, hess, PosteriorMeta(num_examples=1, ess=1.0, seed=5), {"peft_type": "LORA"})


def variances(scorer, model, posterior):
    """Of a log-probability of every item: over draws, and to first order."""
    scores = score_model(scorer, Draws(model, posterior, DRAWS, antithetic=True))
    covariance = logit_covariances(scorer, model, [Wanted([posterior])])[0]
    if scores.texts is not None:
        return np.array([text["nll_std"] ** 2 for text in scores.texts]), covariance[:, 0, 0]
    probs = np.exp(scores.log_probs.numpy())
    best = probs.argmax(1)
    slope = np.eye(probs.shape[1])[best] - probs
    sampled = scores.sample_log_probs.numpy()[np.arange(len(best)), :, best].var(axis=1, ddof=1)
    return sampled, np.einsum("nk,nkl,nl->n", slope, covariance, slope)


@pytest.mark.shared
@pytest.mark.parametrize("task", ["multiple_choice", "causal_lm"])
def test_a_story_model(task, shared_dir):
    halves = [text.rsplit(" ", 3) for text in STORIES]
    ends = [" ".join(parts[1:]) for parts in halves]
    examples = [
        Example(
            item=f"{i}", text=parts[0], prompt=parts[0], response=ends[i], label=0,
            choices=(ends[i], ends[i - 1], ends[i - 2]),
        )
        for i, parts in enumerate(halves)
    ]  # fmt: skip
    _converges(
        task, shared_dir / "models/stories260K", examples, RowFormat(prompt="prompt", append_eos=False)
    )


def _converges(task, folder, examples, row_format):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model, posterior = random_posterior(folder)
    scorer = build_scorer(task, examples, tokenizer, row_format, model.config)
    whole = np.sqrt(logit_covariances(scorer, model, [Wanted([posterior])])[0].max())
    found = [variances(scorer, model, posterior.scaled(effect / whole)) for effect in EFFECTS]
    moved = (
        found[0][1] >= 0.05 * found[0][1].max()
    )  # an answer that is certain has no first order to speak of
    scaled = [(sampled / linearised)[moved] for sampled, linearised in found]
    far, near = (np.abs(one / scaled[2] - 1).max() for one in scaled[:2])  # the same noise: curvature alone
    assert near < 0.1 and near < far, (far, near)
    noise = np.sqrt(4 / DRAWS)
    assert np.abs(scaled[2] - 1).mean() < 1.5 * noise and np.abs(scaled[2] - 1).max() < 4 * noise, scaled[2]
