"""Tables about curvature itself: how good its stand-ins are, and what gathering it costs."""

import numpy as np

from benchmarks.merge_quality.records import Records
from benchmarks.readme_table import markdown, number

__all__ = ["curvature_table", "gathering_table", "pass_table", "with_all_stand_ins"]


def curvature_table(records: Records) -> str:
    """Stand-ins that all records have against exact per-example gradients, mean over modules, adapters and seeds."""
    modules = [m for record in records for m in record["modules"].values()]
    kinds = {
        "rank_correlation": "rank correlation of the diagonal",
        "cosine": "cosine of the matrices",
        "cosine_alike": "cosine, every row alike",
    }
    rows = []
    common = [name for name in modules[0]["cosine"] if all(name in module["cosine"] for module in modules)]
    for name in common:
        known = [[m[kind][name] for m in modules if name in m.get(kind, {})] for kind in kinds]
        rows.append([name, *(number(float(np.mean(found)), 2) if found else "—" for found in known)])
    return markdown(["stand-in", *kinds.values()], rows)


def with_all_stand_ins(records: Records) -> Records:
    """Records that have the stand-ins which were added later."""
    return [r for r in records if all("1 / Var" in m["cosine"] for m in r["modules"].values())]


def gathering_table(records: Records) -> str:
    """What gathering adds to a training step, and the sizes of the sums."""
    rows = []
    for record in records:
        cells = [f"{100 * extra:+.1f} %" for extra in record["extra"].values()]
        sizes = [f"{record[key][0] / 2**20:.0f} MiB" for key in ("bytes_full", "bytes_16")]
        step = (
            f"{1000 * record['step_seconds']['without']:.0f} ms"
            if "step_seconds" in record
            else f"{record['flops'] / 1e9:.0f} GFLOP"
        )
        rows.append([record["case"], step, *cells, *sizes])
    return markdown(["model", "step", *records[0]["extra"], "full", "16 directions"], rows)


def pass_table(records: Records) -> str:
    """One pass over data after training, beside a training step."""
    rows = [
        [record["case"], number(record["ratio"], 2), f"{record['stored'] / 2**20:.0f} MiB"]
        for record in records
    ]
    return markdown(["model", "pass / training step, same batch", "size of the factors"], rows)
