"""What every estimator cost: passes, forward-equivalents and seconds, from what was kept beside the scores.

One *forward-equivalent* of an item is its prompt and what its answers add, once, with nothing shared between items and
no padding (as in ``benchmarks/eval_cost``). Tokens are those that went through the whole model, padding included; a
token that skips the blocks below the first adapted one counts in part, and each backward pass of the linearised
predictive counts as one more pass through the blocks that it reaches.

Costs lie on disk beside the scores or answers that they paid for. So they cover everything that the results are made
of, also where a killed run was continued or an earlier one left scores that were taken over.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Batch", "Spent", "cost_rows", "item_tokens", "spent_on_scores"]

Batch = tuple[Sequence[str], Sequence[str], float, float]
"""Names of draws and items of one finished batch of scores, and the seconds and tokens that it took."""


@dataclass
class Spent:
    """What one estimator took, over all items."""

    passes: float = 0.0
    """Parameter vectors, decodes, scored strings or judged pairs, summed over items."""
    tokens: float = 0.0
    """Tokens through the model."""
    seconds: float = 0.0
    """Wall-clock time."""

    def add(self, passes: float = 0.0, tokens: float = 0.0, seconds: float = 0.0) -> None:
        """Count some more."""
        self.passes, self.tokens, self.seconds = (
            self.passes + passes,
            self.tokens + tokens,
            self.seconds + seconds,
        )


def item_tokens(prompt: int, lengths: Iterable[int] = ()) -> int:
    """Tokens that one forward-equivalent of an item reads: its prompt, and all but the last token of every string.

    Args:
        prompt: Length of the prompt.
        lengths: Scored tokens of every string behind it; the first of them is predicted by the prompt itself.
    """
    return prompt + sum(max(length - 1, 0) for length in lengths)


def spent_on_scores(
    batches: Iterable[Batch], draws: Collection[str], items: Sequence[str]
) -> dict[str, Spent]:
    """Cost of the scores of some draws and items, by estimator: ``mean``, ``draws`` or ``linearised``.

    Vectors that went through one pass side by side share it equally, and so do the items of a batch; what a store holds
    for other draws or items is left out.

    Args:
        batches: All finished batches of one model.
        draws: Names of the parameter vectors or covariances that are used; several joined by ``|`` where scores belong
            to all of them together.
        items: Hash of every item that is used.
    """
    wanted, used, found = set(draws), set(items), dict[str, Spent]()
    for names, keys, seconds, tokens in batches:
        share = sum(key in used for key in keys) / max(len(keys), 1) / max(len(names), 1)
        for name in (name for name in names if name in wanted):
            parts = _parts(name)
            for part in parts:
                spent = found.setdefault(_estimator(part), Spent())
                spent.add(0.0, tokens * share / len(parts), seconds * share / len(parts))
    vectors = [_estimator(part) for part in {part for name in wanted for part in _parts(name)}]
    for name, spent in found.items():  # all covariances of an item come from one Jacobian
        spent.passes = len(items) * (1 if name == "linearised" else vectors.count(name))
    return {name: found[name] for name in ("mean", "draws", "linearised") if name in found}


def cost_rows(
    model: str, spent: Mapping[str, Spent], items: int, whole: int, foreign: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Rows of ``cost.by_estimator`` of one model.

    Args:
        model: Its name.
        spent: Cost by estimator.
        items: Number of items.
        whole: Tokens of one forward-equivalent of all items, by :func:`item_tokens`.
        foreign: Estimators whose tokens went through another model, which have no forward-equivalents of this one.
    """
    return [
        {
            "model": model,
            "estimator": name,
            "passes": round(cost.passes / items, 3),
            "forwards": None if name in foreign else round(cost.tokens / max(whole, 1), 4),
            "tokens": round(cost.tokens),
            "seconds": round(cost.seconds, 4),
        }
        for name, cost in spent.items()
    ]


def _parts(name: str) -> list[str]:
    """Parameter vectors of a name; what follows an ``@`` tells how they were scored."""
    return name.partition("@")[0].split("|")


def _estimator(draw: str) -> str:
    if draw == "mean":
        return "mean"
    return "linearised" if draw.startswith("linearised") else "draws"
