"""What the steps behind the answers cost, counted where a model runs, chunk by chunk.

    answer       the greedy answer
    samples      the sampled answers
    rescoring    every distinct answer scored under every draw and at the mean
    eigenscore   hidden states of the sampled answers
    p_true       the model's verdict on the judged answer, under every draw and at the mean
    judge        meanings and grades; pairs and tokens of the entailment model, none without one

Tokens are counted by a hook on the model that answers, padding included; those of the judge went through another model.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from vlora.eval.costs import Spent, cost_rows, item_tokens
from vlora.eval.generation.records import AnswerRecord

__all__ = ["NEEDED_BY", "Meter", "answer_costs", "merged"]

NEEDED_BY = {
    "answer": "everything",
    "samples": "scores from several answers and from posterior draws",
    "rescoring": "scores from posterior draws, and -log p of every answer",
    "eigenscore": "EigenScore",
    "p_true": "p(True)",
    "judge": "grades, and scores of meaning",
}
"""Step -> what could not be had without it."""
Chunk = Mapping[str, Sequence[float]]
"""Step -> passes, tokens, seconds."""


class Meter:
    """Counts the passes, tokens and seconds of each step."""

    def __init__(self) -> None:
        self._spent: dict[str, Spent] = {}

    @contextmanager
    def running(self, step: str, model: nn.Module | None = None) -> Iterator[Spent]:
        """Count the time inside the block, and the tokens that go through a model there.

        Args:
            step: Name of the step.
            model: A causal language model that is given ``input_ids`` by name; None counts no tokens.

        Yields:
            What the step took so far, to add passes to it.
        """
        spent, start = self._spent.setdefault(step, Spent()), time.perf_counter()

        def count(module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
            spent.add(tokens=inputs["input_ids"].numel())

        hook = None if model is None else model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield spent
        finally:
            if hook is not None:
                hook.remove()
            spent.add(seconds=time.perf_counter() - start)

    @contextmanager
    def judging(self, judge: object) -> Iterator[None]:
        """Count the time inside the block, and the pairs and tokens that a judge takes there, if it counts them."""
        before = [float(getattr(judge, name, 0)) for name in ("judged", "tokens")]
        with self.running("judge") as spent:
            yield
            after = [float(getattr(judge, name, 0)) for name in ("judged", "tokens")]
            spent.add(after[0] - before[0], after[1] - before[1])

    def take(self) -> dict[str, list[float]]:
        """What was counted since the last call, JSON-able: step -> passes, tokens, seconds."""
        found, self._spent = self._spent, {}
        return {
            step: [round(cost.passes), round(cost.tokens), round(cost.seconds, 6)]
            for step, cost in found.items()
        }


def merged(chunks: Sequence[tuple[Sequence[str], Chunk]], items: Sequence[str]) -> dict[str, Spent]:
    """Cost of the answers to some questions by step, in the order of :data:`NEEDED_BY`.

    A chunk counts for the questions whose answers were kept from it: where a kill lost the end of a chunk, its
    questions were answered again in a later one.

    Args:
        chunks: In order of time, the questions of each and what its steps took.
        items: Questions with a kept answer.
    """
    open_items, found = set(items), {step: Spent() for step in NEEDED_BY}
    for keys, steps in reversed(chunks):
        kept = open_items.intersection(keys)
        open_items -= kept
        share = len(kept) / max(len(keys), 1)
        for step, (passes, tokens, seconds) in steps.items():
            found[step].add(passes * share, tokens * share, seconds * share)
    return {step: cost for step, cost in found.items() if cost != Spent()}


def answer_costs(records: Sequence[AnswerRecord], spent: Mapping[str, Spent]) -> list[dict[str, Any]]:
    """Rows of ``cost.by_estimator`` of one model.

    One forward-equivalent of a question is its prompt and its judged answer.

    Args:
        records: All of the model.
        spent: By step, from :func:`merged`.
    """
    whole = sum(item_tokens(record.num_tokens, [len(record.answer.log_probs)]) for record in records)
    return cost_rows(records[0].model, spent, len(records), whole, foreign=("judge",))
