"""Tables of the learning rate, of the shipped defaults, and of pruning and priors."""

import math
from typing import Any

import numpy as np

from benchmarks.readme_table import interval, markdown, mean, number

__all__ = ["priors_table", "probe_table", "pruning_table", "rates_table", "shipped_gaps", "shipped_table"]

Records = list[dict[str, Any]]
PROBES = ((10, 20), (20, 40), (40, 80))
"""Steps over which a probe would compare training losses."""


def rates_table(records: Records) -> str:
    """Validation NLL of the mean (and accuracy) by rate; the lowest NLL of a row is marked."""
    rates = sorted({record["lr"] for record in records})
    rows = []
    for task, steps in sorted({(r["task"], r["steps"]) for r in records}, key=lambda key: (key[1], key[0])):
        found = {r["lr"]: r for r in records if (r["task"], r["steps"]) == (task, steps)}
        best = min(found, key=lambda lr: found[lr]["nll"])
        one = found[best]
        cells = [_cell(found[lr], marked=lr == best) if lr in found else "" for lr in rates]
        rows.append([task, str(one.get("width", 384)), str(one["rows"]), str(steps), *cells])
    return markdown(["task", "width", "rows", "steps", *(f"{lr:g}" for lr in rates)], rows)


def _cell(record: dict[str, Any], *, marked: bool) -> str:
    nll = f"**{record['nll']:.3f}**" if marked else f"{record['nll']:.3f}"
    return nll + (f" ({100 * record['accuracy']:.0f})" if "accuracy" in record else "")


def probe_table(records: Records) -> str:
    """Would a probe find the rate: the lowest training loss over some first steps against the lowest validation NLL?"""
    runs: dict[tuple[str, int], Records] = {}
    for record in records:
        if "losses" in record:
            runs.setdefault((record["task"], record["steps"]), []).append(record)
    rows = []
    for first, last in PROBES:
        picked = [(min(own, key=lambda r: sum(r["losses"][first:last])), own) for own in runs.values()]
        best = [min(own, key=lambda r: r["nll"]) for _, own in picked]
        highest = sum(one["lr"] == max(r["lr"] for r in own) for one, own in picked)
        right = sum(one["lr"] == other["lr"] for (one, _), other in zip(picked, best, strict=True))
        cost = np.array([one["nll"] - other["nll"] for (one, _), other in zip(picked, best, strict=True)])
        rows.append([f"{first} to {last}", str(len(picked)), str(highest), str(right), interval(cost, 3)])
    header = [
        "steps compared",
        "runs",
        "highest rate chosen",
        "best rate chosen",
        "NLL above that of the best",
    ]
    return markdown(header, rows)


def shipped_table(records: Records, tuned: Records) -> str:
    """IVON's defaults beside AdamW at the same rate, and beside AdamW at its tuned rate where there is one."""
    keys = sorted({(r["task"] == "pool", r["steps"], r["task"]) for r in records})
    rows = []
    for _, steps, task in keys:
        own = {
            (r["arm"], r["seed"]): r["scores"] for r in records if (r["task"], r["steps"]) == (task, steps)
        }
        best = {r["seed"]: r["scores"] for r in tuned if (r["task"], r["arm"]) == (task, "adamw")}
        seeds = sorted({seed for arm, seed in own if arm == "ivon_auto" and ("adamw", seed) in own})
        ivon, adamw = ([own[arm, seed] for seed in seeds] for arm in ("ivon_auto", "adamw"))
        reference = [best[seed] for seed in seeds if seed in best] if task != "pool" else []
        if not seeds:
            continue
        rows.append([task, str(steps), str(len(seeds)), *_beside(ivon, adamw, reference)])
    header = [
        "task", "steps", "seeds", "AdamW, %", "IVON mean, %", "AdamW tuned, %", "AdamW, NLL", "IVON mean, NLL",
        "IVON draws, NLL", "AdamW tuned, NLL",
    ]  # fmt: skip
    return markdown(header, rows)


def _beside(ivon: Records, adamw: Records, tuned: Records) -> list[str]:
    def over(scores: Records, predictor: str, metric: str) -> float:
        return mean([score[predictor]["raw"][metric] for score in scores]) if scores else math.nan

    pairs = ((adamw, "mean"), (ivon, "mean"), (tuned, "mean"))
    accuracies = [number(100 * over(scores, name, "accuracy"), 1) for scores, name in pairs]
    losses = ((adamw, "mean"), (ivon, "mean"), (ivon, "draws"), (tuned, "mean"))
    return accuracies + [number(over(scores, name, "nll"), 3) for scores, name in losses]


def shipped_gaps(records: Records, tuned: Records) -> str:
    """Paired differences over the eight tasks, interval over tasks' means over seeds."""
    tasks = sorted({r["task"] for r in records} - {"pool"})
    rows = []
    for name, arm, predictor, base in (
        ("IVON mean − AdamW, same rate", "ivon_auto", "mean", records),
        ("IVON draws − AdamW, same rate", "ivon_auto", "draws", records),
        ("IVON mean − AdamW tuned", "ivon_auto", "mean", tuned),
        ("IVON draws − AdamW tuned", "ivon_auto", "draws", tuned),
        ("AdamW, default rate − AdamW tuned", "adamw", "mean", tuned),
    ):
        cells = []
        for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3), ("ece", 1, 3), ("aurc", 1, 3)):
            gaps = [mean(_gaps(records, base, task, (arm, predictor), metric)) * scale for task in tasks]
            cells.append(interval(np.array(gaps), digits))
        rows.append([name, *cells])
    return markdown(["difference", "accuracy, points", "NLL", "ECE", "AURC"], rows)


def _gaps(records: Records, base: Records, task: str, row: tuple[str, str], metric: str) -> list[float]:
    """By seed: one predictor less AdamW's mean."""
    arm, predictor = row
    own, other = (
        {r["seed"]: r["scores"][name]["raw"][metric] for r in part if (r["task"], r["arm"]) == (task, wanted)}
        for part, wanted, name in ((records, arm, predictor), (base, "adamw", "mean"))
    )
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def pruning_table(records: Records) -> str:
    """Accuracy and NLL after pruning by ratio, by size and at random, mean over tasks and seeds."""
    amounts = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in records[0]["pruned"] if ", " in name))
    rows = []
    for kind in ("entries", "components"):
        for amount in amounts:
            names = [f"{kind}, {how}, {amount}" for how in ("ratio", "size", "random")]
            if names[0] not in records[0]["pruned"]:
                continue
            losses = [mean([r["pruned"][name]["nll"] for r in records]) for name in names]
            hits = [100 * mean([r["pruned"][name]["accuracy"] for r in records]) for name in names]
            rows.append([kind, amount, *(number(v, 1) for v in hits), *(number(v, 3) for v in losses)])
    whole = [r["pruned"]["all"] for r in records]
    rows.insert(
        0,
        ["nothing", "", number(100 * mean([w["accuracy"] for w in whole]), 1), "", "",
         number(mean([w["nll"] for w in whole]), 3), "", ""],
    )  # fmt: skip
    header = [
        "pruned", "share dropped, or kept of 8", "ratio, %", "size, %", "random, %", "ratio, NLL", "size, NLL",
        "random, NLL",
    ]  # fmt: skip
    return markdown(header, rows)


def priors_table(records: Records) -> str:
    """A learned prior less the fixed one at the same ess: paired by task, mean over seeds."""
    tasks = sorted({record["task"] for record in records})
    rows = []
    for predictor in ("mean", "draws"):
        cells = []
        for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3), ("ece", 1, 3), ("aurc", 1, 3)):
            gaps = [
                scale
                * mean(
                    [
                        r["priors"]["empirical_bayes"][predictor][metric]
                        - r["priors"]["fixed"][predictor][metric]
                        for r in records
                        if r["task"] == task
                    ]
                )
                for task in tasks
            ]
            cells.append(interval(np.array(gaps), digits))
        rows.append([predictor, *cells])
    return markdown(["learned − fixed prior", "accuracy, points", "NLL", "ECE", "AURC"], rows)
