"""One question while it is worked on: its answers in tokens, their scores, and the parts of its record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlora.eval.generate import Answer
from vlora.eval.generation.meaning import Meaning
from vlora.eval.generation.questions import Question
from vlora.eval.generation.records import Given, Pooled
from vlora.eval.generation.token_scores import TokenScore
from vlora.eval.semantic.sequence import answer_mixture

__all__ = ["Draft", "Ids", "Scored", "judged_answer", "pooled"]

Ids = tuple[int, ...]


@dataclass
class Draft:
    """One question while it is worked on."""

    question: Question
    prompt: Ids
    candidates: list[Answer]
    """Answers of which one will be judged: one, or one a member."""
    sampled: list[tuple[int, Answer]]
    """Draw and answer."""

    def pool(self) -> list[Ids]:
        """Distinct answers in order of appearance, candidates first."""
        every = [*self.candidates, *(answer for _, answer in self.sampled)]
        return list(dict.fromkeys(tuple(answer.ids) for answer in every))

    @property
    def num_candidates(self) -> int:
        """Distinct answers of which one will be judged; they come first in the pool."""
        return len({tuple(answer.ids) for answer in self.candidates})


@dataclass
class Scored:
    """Distinct answers to one question with their scores."""

    pool: list[Ids]
    at_mean: list[TokenScore] | None
    draws: list[list[TokenScore]]

    def best(self, candidates: int) -> int:
        """The judged answer: of the first answers of the pool the one most probable under the mixture of draws."""
        if candidates == 1:
            return 0
        totals = [
            answer_mixture([scores[number].log_probs.sum() for scores in self.draws])
            for number in range(candidates)
        ]
        return int(np.argmax(totals))


def judged_answer(
    draft: Draft, scored: Scored, best: int, text: str, verdict: tuple[float | None, list[float]]
) -> Given:
    """The judged answer with its scores."""
    draws = [scores[best] for scores in scored.draws]
    if scored.at_mean is not None:
        log_probs, entropies = scored.at_mean[best].log_probs, scored.at_mean[best].entropies
    else:
        stacked = np.stack([score.log_probs for score in draws])
        log_probs = np.logaddexp.reduce(stacked, axis=0) - np.log(len(draws))
        entropies = np.mean([score.entropies for score in draws], axis=0)
    ended = {tuple(answer.ids): answer.ended for answer in draft.candidates}
    return Given(
        text=text,
        given=draft.question.response is not None,
        ended=ended.get(scored.pool[best], True),
        log_probs=log_probs.tolist(),
        entropies=entropies.tolist(),
        draw_log_probs=[float(score.log_probs.sum()) for score in draws],
        draw_entropies=[float(score.entropies.mean()) for score in draws],
        p_true=verdict[0],
        draw_p_true=verdict[1],
    )


def pooled(scored: Scored, order: Sequence[int], texts: Sequence[str], meaning: Meaning) -> list[Pooled]:
    """Distinct answers, the judged one first."""
    return [
        Pooled(
            text=text,
            cluster=int(cluster),
            tokens=len(scored.pool[number]),
            draw_log_probs=[float(scores[number].log_probs.sum()) for scores in scored.draws],
        )
        for number, text, cluster in zip(order, texts, meaning.clusters, strict=True)
    ]
