"""What a model knows about the base population, and how unsure it is about people it has never seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vlora.recipes.closed_world.lexicon import RELATIONS, Relation
from vlora.recipes.closed_world.people import BASE_SEED, Person, base_population, world_people

__all__ = ["BaseKnowledge", "answer_log_probs", "measure_base"]

NUM_UNKNOWN = 200


@dataclass(frozen=True)
class BaseKnowledge:
    """Result of ``measure_base``.

    Attributes:
        recall: Share of the base population's 1,600 facts answered right (24-way, arg max).
        entropy_base: Mean entropy of the answers to these, in nats.
        entropy_unknown: Mean entropy of answers about people whom pre-training never saw, in nats.
    """

    recall: float
    entropy_base: float
    entropy_unknown: float

    def __str__(self) -> str:
        return (
            f"base recall {self.recall:.3f}, entropy {self.entropy_base:.3f} nats, "
            f"unknown people {self.entropy_unknown:.3f} nats"
        )


@torch.no_grad()
def answer_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[Sequence[str]],
    *,
    batch_size: int = 512,
) -> Tensor:
    """Score single-token choices after each prompt.

    Args:
        model: Causal language model.
        tokenizer: The closed world's tokenizer (right padding).
        prompts: N prompts.
        choices: For each prompt its K choices, one token each.
        batch_size: Prompts per forward pass.

    Returns:
        ``[N, K]`` float32 log p(choice | prompt), normalised over the K choices.
    """
    model.eval()
    vocabulary = tokenizer.get_vocab()
    columns = torch.tensor([[vocabulary[choice] for choice in row] for row in choices])
    parts = []
    for start in range(0, len(prompts), batch_size):
        encoded = tokenizer(list(prompts[start : start + batch_size]), padding=True, return_tensors="pt")
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        last = encoded["attention_mask"].sum(dim=1) - 1
        final = logits[torch.arange(len(last)), last].float()
        parts.append(final.gather(1, columns[start : start + batch_size]).log_softmax(dim=-1))
    return torch.cat(parts)


def measure_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BaseKnowledge:
    """Ask for every fact of the base population, and about 200 unseen people, in the first question's wording."""
    asked = [(person, relation) for person in base_population() for relation in RELATIONS]
    log_probs = _ask(model, tokenizer, asked)
    answers = torch.tensor(
        [relation.values.index(base_population()[person][relation.name]) for person, relation in asked]
    )
    rng = Random(f"closed_world/probe/{BASE_SEED}")
    strangers = [(person, rng.choice(RELATIONS)) for person in rng.sample(world_people(), NUM_UNKNOWN)]
    return BaseKnowledge(
        recall=(log_probs.argmax(dim=1) == answers).float().mean().item(),
        entropy_base=_mean_entropy(log_probs),
        entropy_unknown=_mean_entropy(_ask(model, tokenizer, strangers)),
    )


def _ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[Person, Relation]]
) -> Tensor:
    prompts = [relation.questions[0].format(name=person.name) for person, relation in asked]
    return answer_log_probs(model, tokenizer, prompts, [relation.values for _, relation in asked])


def _mean_entropy(log_probs: Tensor) -> float:
    return -(log_probs.exp() * log_probs).sum(dim=1).mean().item()
