r"""Grams in which a row's tokens are added up before they are squared, the package's default, beside tokens apart.

    python -m benchmarks.merge_quality.joined --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

    joined: G = sum_i c_i D_i^T D_i,   D_i = sum_u g_iu x_iu^T       apart: G = sum_i c_i sum_u |g_iu|^2 x_iu x_iu^T

with c_i = v_i / sum_u |g_iu|^2 in both. Merged at the default and at the best scalar, on all sets of IVON's adapters:
streamed while the adapters trained (they are trained again, to the same bits) with equal votes, and of one pass with
equal votes and with votes by change, which is what ``curvature: true`` of ``vlora train`` gathers. MaTS takes the
streamed ones, with S. The other arms are scored at their defaults on the same adapters. One JSON per set; ``--seeds``
of the tuning range look at validation rows only and go to ``joined_tune``.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.arms import MAIN, OTHERS, merge
from benchmarks.merge_quality.change import votes_of
from benchmarks.merge_quality.curvature import loaded
from benchmarks.merge_quality.records import OURS
from benchmarks.merge_quality.run import RESULTS, TUNING_SEEDS, Unit, arguments, units
from benchmarks.merge_quality.scores import SCALARS, Scorer
from benchmarks.merge_quality.training import logits
from benchmarks.rows import keep_and_tell
from vlora.backward import watched
from vlora.curvature.tokens import add_examples

__all__ = ["DEFAULT", "EQUAL", "MATS", "STREAMED", "compare"]

STREAMED = f"{OURS}, joined, streamed"
EQUAL = f"{OURS}, joined, one pass"
DEFAULT = f"{OURS}, joined, one pass, votes by change"
MATS = "MaTS, joined, streamed"
BATCH = 32


def main() -> None:
    """One JSON per set of adapters."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    for unit in units(args.seeds or [0, 1, 2]):
        if unit.optimizer == "ivon" and args.only in unit.name:
            part = "joined_tune" if unit.seed in TUNING_SEEDS else "joined"
            keep_and_tell(RESULTS, part, unit.name, lambda u=unit: compare(u, args.data, args.work))


def compare(unit: Unit, data: Any, work: Any) -> dict[str, Any]:
    """Scores of one set; validation rows only of a tuning seed."""
    apart, joined = Library(data, work), Library(data, work, joined=True)
    joined.tasks = apart.tasks
    adapters = apart.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    streamed = joined.adapters(unit.family, unit.tasks, unit.gauge, unit.optimizer, unit.seed)
    heads = {a.task: a.head() for a in adapters} | {name: adapters[0].head() for name in unit.unseen}
    scorer = Scorer(apart, heads, unit, unit.seed not in TUNING_SEEDS)
    arms: dict[str, Any] = {"individual adapters": {"default": scorer.own(adapters)}}
    for name, arm in MAIN.items():
        arms[name] = {"default": scorer.all(merge(arm, adapters))}
    arms[STREAMED] = scorer.tuned(merge(MAIN[OURS], streamed), SCALARS)
    if unit.count == 4:
        arms[MATS] = scorer.tuned(merge(OTHERS["MaTS"], streamed), SCALARS)
    for name, by_change in ((EQUAL, False), (DEFAULT, True)):
        found = [
            replace(a, tensors={**a.tensors, **one_pass(a, apart, votes_of(a, apart) if by_change else None)})
            for a in adapters
        ]
        arms[name] = scorer.tuned(merge(MAIN[OURS], found), SCALARS)
    return {**vars(unit), "tasks": list(unit.tasks), "unseen": list(unit.unseen), "arms": arms}


def one_pass(adapter: Adapter, library: Library, votes: Tensor | None) -> dict[str, Tensor]:
    """Both Grams of every module, joined, of one pass over the training rows at the adapter's mean."""
    network, rows = loaded(adapter), library.task(adapter.task).train
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    place = slice(0, 0)

    def receive(module: str, x: Tensor, g: Tensor) -> None:
        x, g = (part.reshape(len(part), -1, part.shape[-1]) for part in (x, g))
        size = g.square().sum((1, 2))
        counted = torch.ones_like(size) if votes is None else votes[place].to(size)
        share = torch.where(size > 0, counted / size, 0.0).sqrt()
        if module not in sums:
            sums[module] = (torch.zeros(x.shape[-1], x.shape[-1]), torch.zeros(g.shape[-1], g.shape[-1]))
        input_gram, output_gram = sums[module]
        add_examples(input_gram, output_gram, x, g * share[:, None, None], joined=True)

    with watched({layer: partial(receive, module) for module, layer in network.adapted.items()}):
        for start in range(0, len(rows), BATCH):
            place = slice(start, start + BATCH)
            states = network(rows.hidden[place], rows.mask[place])
            scores = logits(states, adapter.head().detach())
            cross_entropy(scores, rows.label[place], reduction="sum").backward()
    network.zero_grad()
    return {
        f"{module}.{side}_gram": gram
        for module, pair in sums.items()
        for side, gram in zip(("input", "output"), pair, strict=True)
    }


if __name__ == "__main__":
    main()
