"""Scoring token trees: choosing batches, and the log-probability of every scored token of a batch."""

from vlora.eval.batching import run_halving
from vlora.eval.forward import gather_log_probs
from vlora.eval.sink import Sink
from vlora.eval.tree_forward import PrefixCache, tree_logits
from vlora.eval.trees import Group, TreeBatch, Trees
from vlora.eval.variants import Variants

__all__ = ["LOGIT_BUDGET", "choose_batches", "run_batch"]

LOGIT_BUDGET = 2**27
"""Scored places times vocabulary times draws whose logits are held at once: half a gigabyte in float32."""


def choose_batches(
    group: Group, sink: Sink, part: slice, count: int, max_tokens: int, max_rows: int, max_places: int
) -> list[Trees]:
    """Batches of a group that the sink does not have yet; how they are cut does not depend on what it has.

    Args:
        group: Items behind one prefix.
        sink: Where scores go.
        part: Parameter vectors that are held.
        count: Their number.
        max_tokens: Most tokens in a batch, all vectors together.
        max_rows: Most rows in a batch, for one vector.
        max_places: Most scored places in a batch, for one vector.
    """
    sizes = {
        "max_tokens": max(1, max_tokens // count),
        "max_rows": max_rows,
        "max_places": max(1, max_places),
    }
    return [trees for trees in group.batches(**sizes) if sink.wants(trees.items, part)]


def run_batch(
    variants: Variants, trees: Trees, prefix: PrefixCache | None, pad_id: int, part: slice, sink: Sink
) -> None:
    """Score one batch of trees under the vectors that are held, and hand the result over."""
    count, found = len(variants.which[part]), []

    def work(some: Trees) -> None:
        batch = TreeBatch.of(some.trees, pad_id)
        logits = tree_logits(variants.model, batch, prefix, count)
        found.extend(gather_log_probs(logits, batch.place, batch.targets).split(batch.counts, dim=1))
        sink.spent(tokens=batch.num_tokens * variants.cost(count))

    with sink.timed():
        run_halving(trees, work)
    sink.take(trees.items, part, found)
