"""The pre-training text of the closed world, drawn directly as token ids with a loss weight per token.

What made a tiny model memorise a population (measured): a curriculum from 25 to all 200 people, and almost all of the
loss on the values. From ``IGNORANCE_START`` on, 30 % of the sequences are about strangers: each of the 19,800 appears
two or three times at most, with new random values every time, so all a model can learn about them is a flat answer
("calibrated ignorance").
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from vlora.recipes.closed_world.lexicon import RELATIONS, Relation
from vlora.recipes.closed_world.people import Person, base_population, pretraining_people
from vlora.recipes.closed_world.tokenizer import build_tokenizer

__all__ = ["Batch", "Corpus"]

TEMPLATE_WEIGHT = 0.1
CHAIN_FRACTION = 0.5
CHAIN_LENGTH = 4
QUESTION_FRACTION = 0.6
IGNORANCE_START = 0.4
IGNORANCE_FRACTION = 0.3
CURRICULUM = (0.05, 0.3)
CURRICULUM_PEOPLE = 25

_Tokens = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Batch:
    """Token ids and what each position's next-token loss counts.

    Attributes:
        ids: ``[batch, length]`` token ids, padded on the right.
        mask: ``[batch, length]`` 1 for tokens, 0 for padding.
        weights: ``[batch, length]`` loss weight of each token *as a target*: value 1, template word 0.1, name 0.
    """

    ids: Tensor
    mask: Tensor
    weights: Tensor


class Corpus:
    """Endless stream of pre-training sequences, fully determined by its seed.

    Args:
        seed: Seed of the order, the wording and the strangers (the base population has its own).
        total_steps: Length of the run, from which curriculum and ignorance phases are measured.
    """

    def __init__(self, seed: int, total_steps: int) -> None:
        self._rng = Random(f"closed_world/corpus/{seed}")
        self._total_steps = total_steps
        self._base = list(base_population().items())
        known = base_population()
        self._strangers = [person for person in pretraining_people() if person not in known]
        self._rng.shuffle(self._strangers)
        self._next_stranger = 0
        self._encoder = _Encoder()

    def active_people(self, step: int) -> int:
        """Count the base people in play at ``step``: 25, then up to all, linearly from 5 % to 30 % of the run."""
        start, end = (fraction * self._total_steps for fraction in CURRICULUM)
        done = min(max((step - start) / max(end - start, 1.0), 0.0), 1.0)
        return round(CURRICULUM_PEOPLE + done * (len(self._base) - CURRICULUM_PEOPLE))

    def batch(self, step: int, size: int) -> Batch:
        """Draw the ``size`` sequences of training step ``step`` (advances the stream)."""
        sequences = [self._sequence(step) for _ in range(size)]
        length = max(len(ids) for ids, _ in sequences)
        ids = torch.full((size, length), self._encoder.pad_id)
        weights = torch.zeros(size, length)
        mask = torch.zeros(size, length, dtype=torch.long)
        for row, (tokens, loss_weights) in enumerate(sequences):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            weights[row, : len(tokens)] = torch.tensor(loss_weights)
            mask[row, : len(tokens)] = 1
        return Batch(ids=ids, mask=mask, weights=weights)

    def _sequence(self, step: int) -> _Tokens:
        rng = self._rng
        person, values = self._subject(step)
        if rng.random() < CHAIN_FRACTION:
            first, *others = rng.sample(RELATIONS, CHAIN_LENGTH)
            pieces = [(rng.choice(first.statements), first)]
            pieces += [(relation.chained, relation) for relation in others]
        else:
            relation = rng.choice(RELATIONS)
            pieces = [(self._wording(relation), relation)]
        tokens, weights = [self._encoder.bos_id], [0.0]
        for template, relation in pieces:
            more_tokens, more_weights = self._encoder.sentence(template, person, values[relation.name])
            tokens += more_tokens
            weights += more_weights
        return [*tokens, self._encoder.eos_id], [*weights, TEMPLATE_WEIGHT]

    def _subject(self, step: int) -> tuple[Person, dict[str, str]]:
        rng = self._rng
        if step >= IGNORANCE_START * self._total_steps and rng.random() < IGNORANCE_FRACTION:
            stranger = self._strangers[self._next_stranger % len(self._strangers)]
            self._next_stranger += 1
            return stranger, {relation.name: rng.choice(relation.values) for relation in RELATIONS}
        return self._base[rng.randrange(self.active_people(step))]

    def _wording(self, relation: Relation) -> str:
        if self._rng.random() < QUESTION_FRACTION:
            return self._rng.choice(relation.questions) + " {value}"
        return self._rng.choice(relation.statements)


class _Encoder:
    """Turns templates into token ids and loss weights, remembering each template and name."""

    def __init__(self) -> None:
        self._tokenizer = build_tokenizer()
        self._cache: dict[str, list[int]] = {}
        self.pad_id = self._id("<pad>")
        self.bos_id = self._id("<bos>")
        self.eos_id = self._id("<eos>")

    def sentence(self, template: str, person: Person, value: str) -> _Tokens:
        """Encode one sentence; the value weighs 1, the name 0, every other word ``TEMPLATE_WEIGHT``."""
        before, _, rest = template.rpartition("{value}")
        opening, _, middle = before.rpartition("{name}")
        tokens: list[int] = []
        weights: list[float] = []
        name = person.name if "{name}" in template else ""
        for text, weight in (
            (opening, TEMPLATE_WEIGHT),
            (name, 0.0),
            (middle, TEMPLATE_WEIGHT),
            (value, 1.0),
            (rest, TEMPLATE_WEIGHT),
        ):
            ids = self._encode(text)
            tokens += ids
            weights += [weight] * len(ids)
        return tokens, weights

    def _encode(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False) if text.strip() else []
        return self._cache[text]

    def _id(self, token: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(token))  # type: ignore[arg-type]
