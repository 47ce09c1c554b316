"""The question about the model's own answer: which strings are scored for each verdict, and p(True) out of them.

A spelling is scored as the whole string that follows the prompt. Probabilities of different strings may be added where
neither begins with the other, so of two such spellings the shorter one counts. A spelling that the tokenizer cannot
tell from one of the other verdict says nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vlora.eval.generation.token_scores import Row, TokenScore
from vlora.eval.semantic.judged import p_true

__all__ = ["Asked", "ask", "chances"]

Pair = tuple[Sequence[int], Sequence[int]]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """The strings to score about one answer; none where its verdicts cannot be told apart."""

    rows: list[Row]
    """Spellings of "true", then of "false", behind one prompt."""
    num_true: int
    """Rows that say "true"."""


def ask(true: Sequence[Pair], false: Sequence[Pair]) -> Asked:
    """The spellings that count.

    Args:
        true: Tokens of prompt and spelling, for every spelling of "true".
        false: The same for "false".
    """
    pairs = _behind_one_prompt([*true, *false])
    prompts, said = {answer: prompt for prompt, answer in pairs}, [answer for _, answer in pairs]
    own, other = ([answer for answer in part if answer] for part in (said[: len(true)], said[len(true) :]))
    kept = _distinct(own, other), _distinct(other, own)
    if not all(kept):
        return Asked([], 0)
    return Asked([Row(prompts[answer], answer) for answers in kept for answer in answers], len(kept[0]))


def chances(asked: Sequence[Asked], scores: Sequence[TokenScore]) -> list[float]:
    """p(True) of every answer that was asked about; ``scores`` are of their rows, one answer's after the other's."""
    totals, found = [float(score.log_probs.sum()) for score in scores], []
    for one in asked:
        if one.rows:
            own, totals = totals[: len(one.rows)], totals[len(one.rows) :]
            found.append(p_true(own[: one.num_true], own[one.num_true :]))
    return found


def _behind_one_prompt(pairs: Sequence[Pair]) -> list[tuple[Ids, Ids]]:
    """All strings behind the prompt that they share: a tokenizer may join its end with one of them.

    Prompts whose front was cut, to make room for strings of different lengths, stay as they are.
    """
    size = min(len(prompt) for prompt, _ in pairs)
    whole = [(*prompt, *answer) for prompt, answer in pairs]
    if len({ids[:size] for ids in whole}) > 1:
        return [(tuple(prompt), tuple(answer)) for prompt, answer in pairs]
    return [(ids[:size], ids[size:]) for ids in whole]


def _distinct(own: Sequence[Ids], other: Sequence[Ids]) -> list[Ids]:
    """Spellings of one verdict without those that begin with another one, or share their beginning with the other's."""
    apart = [a for a in dict.fromkeys(own) if not any(_starts(a, b) or _starts(b, a) for b in other)]
    return [a for a in apart if not any(_starts(a, b) for b in apart if b != a)]


def _starts(ids: Ids, beginning: Ids) -> bool:
    return ids[: len(beginning)] == beginning
