"""How long does ``vlora merge preview`` take? CPU seconds of one thread for 2,000 weightings.

    python -m benchmarks.merge_quality.preview_cost [--data DATA --work WORK] [--only NAME]

With DATA and WORK on the real adapters of ``preview.py``, two, four and eight domains of MiniLM; always on generated
ones: Gaussian factors, Grams with eigenvalues 1/k in a random basis and random h. The seconds hold the model, all
weightings, the search for the best and the full solution of the named ones.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.merge_quality.run import RESULTS
from benchmarks.rows import keep_and_tell
from vlora.merge.config import AdapterSource, MergeConfig
from vlora.merge.preview.search import preview
from vlora.posterior import Posterior, PosteriorMeta

COUNT = 2000
GENERATED = {
    "3 of rank 8, 12 modules of 384 x 384": (3, 8, 12, 384, 1),
    "3 of rank 16, 12 of 384 x 384": (3, 16, 12, 384, 1),
    "3 of rank 16, 2 of 2048 x 2048, full Grams": (3, 16, 2, 2048, 1),
    "5 of rank 8, 4 of 384 x 384": (5, 8, 4, 384, 1),
    "12 of rank 4, 2 of 384 x 384": (12, 4, 2, 384, 1),
    "6 of rank 8, three of a task, 4 of 384 x 384": (6, 8, 4, 384, 3),
}
"""Adapters, rank, modules, width, adapters of a task."""
REAL = (2, 4, 8)
GRADIENT_MATCHING = {"method": "gradient_matching", "curvature": "kronecker"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sum": ({"method": "task_arithmetic"}, {}),
    "gradient matching": (GRADIENT_MATCHING, {}),
    "gradient matching, no variance": (GRADIENT_MATCHING, {"variance": False}),
    "sum, mixture .01": ({"method": "task_arithmetic"}, {"mixture": 0.01}),
    "gradient matching, no variance, mixture .01": (GRADIENT_MATCHING, {"mixture": 0.01, "variance": False}),
}
"""Settings of the merge and of the preview."""


def main() -> None:
    """One JSON per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--work", type=Path, help="folder for features and adapters")
    parser.add_argument("--only", default="", help="only cases whose file name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data and args.work:
        for order, count in enumerate(REAL):
            if args.only in f"minilm_{count}":
                made = f"{count} domains of MiniLM, rank 8, 5 modules of 384 and 1536"
                name = f"minilm_{count}"
                keep_and_tell(
                    RESULTS, "preview_cost", name,
                    lambda c=count, m=made, o=order: measure(m, o, real(c, args.data, args.work), 1),
                )  # fmt: skip
    for order, (case, sizes) in enumerate(GENERATED.items(), len(REAL)):
        name = "generated_" + "_".join(map(str, sizes))
        if args.only in name:
            keep_and_tell(
                RESULTS, "preview_cost", name,
                lambda c=case, o=order, s=sizes: measure(f"generated: {c}", o, generated(*s[:4]), s[4]),
            )  # fmt: skip


def measure(case: str, order: int, adapters: Sequence[Posterior], seeds: int) -> dict[str, Any]:
    """Seconds of every kind of preview; mixtures only where a task has several adapters."""
    record: dict[str, Any] = {"case": case, "order": order, "count": COUNT, "cpu": {}, "check": {}}
    for kind, (merge, settings) in KINDS.items():
        if seeds == 1 and "mixture" in settings:
            continue
        sources = tuple(
            AdapterSource(path=f"adapter{i}", group=f"task{i // seeds}" if seeds > 1 else None)
            for i in range(len(adapters))
        )
        config = MergeConfig(adapters=sources, output="", **merge)
        started = time.process_time()
        told = preview(config, adapters, count=COUNT, **settings)
        record["cpu"][kind] = time.process_time() - started
        if kind == "gradient matching":
            record["check"] = told.check
    return record


def real(count: int, data: Path, work: Path) -> list[Posterior]:
    """Adapters of the first domains, seed 0."""
    from benchmarks.merge_quality.adapters import Library
    from benchmarks.merge_quality.preview import as_posterior
    from benchmarks.merge_quality.tasks import DOMAINS

    library = Library(data, work)
    return [as_posterior(a) for a in library.adapters("domains", DOMAINS[:count], "independent", "ivon", 0)]


def generated(count: int, rank: int, modules: int, width: int) -> list[Posterior]:
    """Random adapters with h and full Grams."""
    return [_generated(number, rank, modules, width) for number in range(count)]


def _generated(number: int, rank: int, modules: int, width: int) -> Posterior:
    generator = torch.Generator().manual_seed(number)

    def gram() -> Tensor:
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        return (basis / torch.arange(1, width + 1)) @ basis.T

    mean, hess, curvature = {}, {}, {}
    for module in range(modules):
        stem = f"base_model.model.layers.{module}.proj"
        for side, shape in (("A", (rank, width)), ("B", (width, rank))):
            mean[f"{stem}.lora_{side}.weight"] = torch.randn(shape, generator=generator)
            hess[f"{stem}.lora_{side}.weight"] = torch.rand(shape, generator=generator)
        curvature |= {f"{stem}.input_gram": gram(), f"{stem}.output_gram": gram()}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["proj"]}
    meta = PosteriorMeta(num_examples=1000, ess=1e6, weight_decay=1e-3)
    return Posterior(mean, hess, meta, config, curvature)


if __name__ == "__main__":
    main()
