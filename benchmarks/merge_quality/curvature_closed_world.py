"""The stand-ins for curvature against exact per-example gradients on the closed world's adapters: many tokens a row.

    python -m benchmarks.merge_quality.curvature_closed_world --work WORK [--seeds 0 1] [--only NAME]

What is asked is in :mod:`benchmarks.merge_quality.curvature`. There all but one module see one token a row; here every
module of a causal language model (two layers, 14 modules) sees all tokens of a row, and most rows are about people that
the base knows already. Adapters A and B of a world are those of ``benchmarks/closed_world``: IVON at its chosen rate,
Grams streamed while they train with one vote each, and of one pass over 2,048 rows with equal votes and with votes by
change; tokens apart (the streamed ones, too) or joined. The exact gradients are of 320 training rows, of the sum of the
losses of a row's tokens.
"""

import argparse
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.closed_world import arms
from benchmarks.closed_world.run import best
from benchmarks.closed_world.worlds import ADAPTERS, data_block, questions, world_files
from benchmarks.merge_quality.curvature import ROWS, one_module
from benchmarks.merge_quality.run import RESULTS
from benchmarks.rows import keep_and_tell
from vlora import Posterior
from vlora.backward import watched
from vlora.config import load_config
from vlora.curvature import Votes, adapted_layers, collect_curvature
from vlora.data.pieces import pieces
from vlora.laplace.config import PosteriorConfig
from vlora.laplace.prepare import Prepared, prepare
from vlora.merge.adapters.reading import read_inputs
from vlora.recipes.closed_world import model_folder

PASS_ROWS = 2048
PREFIX = "base_model.model."
PASSES: dict[str, tuple[Votes, bool]] = {
    "one pass": ("equal", False),
    "one pass, votes by change": ("change", False),
    "one pass, joined": ("equal", True),
    "one pass, joined, votes by change": ("change", True),
}
"""What a row counts, and whether its tokens are added up before they are squared."""


def main() -> None:
    """One JSON per adapter and world."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of worlds and adapters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="worlds")
    parser.add_argument("--only", default="", help="only units whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    for seed in args.seeds:
        for adapter in ADAPTERS:
            if args.only in f"{adapter}__{seed}":
                make = partial(compare, adapter, seed, args.work)
                keep_and_tell(RESULTS, "curvature_closed_world", f"{adapter}__{seed}", make)


def compare(adapter: str, seed: int, work: Path) -> dict[str, Any]:
    """All modules of one adapter."""
    files = world_files(seed, work)
    asked = questions(seed, files, adapter)
    setting = arms.Setting(seed, files, adapter, asked, work / f"world_{seed}", {"ivon": best("ivon")})
    folder = setting.trained("ivon", streamed="equal")
    run = prepared(folder, files[f"train_{adapter}"])
    sources: dict[str, Mapping[str, Tensor]] = {"streamed": run.adapter.curvature or {}}
    for name, (votes, joined) in PASSES.items():
        settings = {"max_examples": PASS_ROWS, "votes": votes, "joined": joined, "progress": False}
        sources[name] = collect_curvature(run.model, run.batches(run.train), **settings)
    exact, inputs, modules = gradients(run), read_inputs([run.adapter], [adapter]), {}
    for module in inputs.modules:
        grams = {
            source: {side: found[f"{PREFIX}{module}.{side}_gram"] for side in ("input", "output")}
            for source, found in sources.items()
        }
        modules[module] = one_module(exact.pop(PREFIX + module), inputs.update(0, module), grams)
    return {"task": adapter, "seed": seed, "rows": ROWS, "optimizer": best("ivon"), "modules": modules}


def prepared(folder: Path, train: Path) -> Prepared:
    """The adapter on its base, and its training rows."""
    config = {
        "adapter": str(folder), "base_model": str(model_folder()), "task": "causal_lm", "batch_size": 32,
        "data": data_block(train), "output": str(folder) + ".unused",
    }  # fmt: skip
    run = prepare(load_config(PosteriorConfig, config))
    assert isinstance(run.adapter, Posterior)
    run.model.eval().requires_grad_(False)
    return run


def gradients(run: Prepared, count: int = ROWS) -> dict[str, Tensor]:
    """Exact gradient of every row's summed loss with respect to the full weights, ``(N, m, n)`` per module."""
    parts: dict[str, list[Tensor]] = {name: [] for name in adapted_layers(run.model)}

    def receive(name: str, x: Tensor, g: Tensor) -> None:
        parts[name].append(g.mT @ x)

    layers: dict[nn.Module, Any] = {
        layer: partial(receive, name) for name, layer in adapted_layers(run.model).items()
    }  # type: ignore[misc]
    with torch.enable_grad(), watched(layers):
        for _, batch in pieces(run.batches(run.train), count, one_by_one=False):
            logits = run.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            labels = batch["labels"][:, 1:].flatten()
            cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum").backward()
    return {name: torch.cat(found) for name, found in parts.items()}


if __name__ == "__main__":
    main()
