"""Tables beside the grid: the length of a run, and estimates of h."""

from typing import Any

from benchmarks.readme_table import markdown, mean, number

__all__ = ["Records", "estimator_table", "lengths_table"]

ARMS = ("adamw", "ivon_auto")
Records = list[dict[str, Any]]


def lengths_table(records: Records) -> str:
    """IVON auto and AdamW at one learning rate over the length of a run, paired by seed, mean over seeds."""
    rows = []
    for steps in sorted({record["steps"] for record in records}):
        own = {arm: {r["seed"]: r for r in records if (r["arm"], r["steps"]) == (arm, steps)} for arm in ARMS}
        both = sorted(own["adamw"].keys() & own["ivon_auto"].keys())
        if not both:
            continue
        pairs = [(own["ivon_auto"][seed], own["adamw"][seed]) for seed in both]

        def over(metric: str, predictor: str, pairs: Any = pairs) -> str:
            values = [
                a["scores"][predictor]["raw"][metric] - b["scores"]["mean"]["raw"][metric] for a, b in pairs
            ]
            spread = f" ({min(values):+.3f} to {max(values):+.3f})" if len(values) > 1 else ""
            return f"{mean(values):+.3f}{spread}"

        base = [b["scores"]["mean"] for _, b in pairs]
        rows.append(
            [str(pairs[0][0]["rows"]), str(steps), str(len(both)),
             number(100 * mean([b["raw"]["accuracy"] for b in base]), 1),
             number(mean([b["raw"]["nll"] for b in base]), 3),
             over("accuracy", "mean"), over("nll", "mean"), over("nll", "draws"),
             number(mean([a["facts"]["std_quantiles"][1] for a, _ in pairs]), 3),
             number(mean([a["facts"]["rank_correlation"] for a, _ in pairs]), 2)]
        )  # fmt: skip
    header = [
        "rows", "steps", "seeds", "AdamW, accuracy, %", "AdamW, NLL", "mean − AdamW, accuracy", "mean − AdamW, NLL",
        "draws − AdamW, NLL", "median std", "rank correlation of h",
    ]  # fmt: skip
    return markdown(header, rows)


def estimator_table(records: Records) -> str:
    """Estimates of h by length of the run, mean over tasks and seeds."""
    keys = {
        "rank correlation": "rank_correlation", "within tensors": "rank_correlation_within",
        "share negative": "share_negative", "h / reference": "mean_to_reference",
    }  # fmt: skip
    rows = []
    for steps in sorted({record["steps"] for record in records}):
        found = [record["estimates"] for record in records if record["steps"] == steps]
        for name in found[0]:
            cells = [number(mean([one[name][key] for one in found]), 2) for key in keys.values()]
            rows.append([str(steps), name, *cells, str(len(found))])
    return markdown(["steps", "estimate", *keys, "runs"], rows)
