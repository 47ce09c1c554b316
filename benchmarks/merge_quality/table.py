"""The tables of this benchmark, made from its JSON files and from nothing else.

    python -m benchmarks.merge_quality.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
A difference is paired: same adapters, same test rows. Its interval is mean ± t(.975, n - 1) s.e. over the n sets of
adapters (seeds) of a family; sets share their test rows and their tasks, so it speaks for new adapters of these tasks.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.merge_quality.arms import MAIN
from benchmarks.merge_quality.curvature_tables import curvature_table, gathering_table, pass_table
from benchmarks.merge_quality.heads_tables import change_sections, heads_sections
from benchmarks.merge_quality.lineage_tables import lineage_sections
from benchmarks.merge_quality.pairs_tables import pair_differences, pair_scores, sets_of
from benchmarks.merge_quality.preview_tables import agreement_table, choice_table, rays_table, seconds_table
from benchmarks.merge_quality.records import (
    FAMILIES,
    OURS,
    REFERENCES,
    Records,
    common_arms,
    differences,
    family,
    joined,
    mean,
)  # fmt: skip
from benchmarks.merge_quality.votes_tables import votes_table
from benchmarks.posterior_quality.table import load
from benchmarks.readme_table import interval, markdown, number, write_tables
from vlora.posterior.ranks import spearman

HERE = Path(__file__).parent


UNSEEN = ("unseen accuracy", "unseen NLL", "unseen ECE")
"""Columns on domains that no merged adapter has seen, at the default scalar."""


def main_table(records: Records, only: Sequence[str] = ()) -> str:
    """Every arm (or some) with a scalar at its default and its best, floor and ceiling beside them."""
    rows = []
    unseen = bool(records[0]["unseen"])
    arms = common_arms(records)
    chosen = [a for a in arms if "best" in records[0]["arms"][a] and (not only or a in only)]
    for arm in [*REFERENCES, *chosen]:
        if arm not in arms:
            continue
        row = [arm]
        for kind in ("default", "best"):
            row += [number(100 * mean(records, arm, kind, metric), 1) for metric in ("accuracy", "worst")]
            row += [number(mean(records, arm, kind, metric), 3) for metric in ("nll", "ece", "nll_tempered")]
        scalars = {record["arms"][arm].get("scalar") for record in records} - {None}
        row.append(", ".join(f"{s:g}" for s in sorted(scalars)) or "—")
        if unseen:
            row.append(number(100 * mean(records, arm, "default", "accuracy", "unseen"), 1))
            row += [number(mean(records, arm, "default", metric, "unseen"), 3) for metric in ("nll", "ece")]
        rows.append(row)
    head = ["accuracy", "worst", "NLL", "ECE", "NLL tempered"]
    header = ["arm", *head, *(f"{name}, best" for name in head), "best scalar"]
    return markdown([*header, *(UNSEEN if unseen else [])], rows)


def pairs_table(records: Records, only: Sequence[str] = ()) -> str:
    """Kronecker gradient matching at its default minus every other arm, at its default and at its best scalar."""
    rows = []
    for arm in [a for a in common_arms(records) if "best" in records[0]["arms"][a] and "rank 8" not in a]:
        if arm == OURS or (only and arm not in only):
            continue
        for kind in ("default", "best"):
            row = [arm, kind]
            for metric, scale, digits in (
                ("accuracy", 100, 1),
                ("worst", 100, 1),
                ("nll", 1, 3),
                ("ece", 1, 3),
            ):
                row.append(interval(scale * differences(records, arm, kind, metric), digits))
            rows.append(row)
    return markdown(["ours minus", "scalar", "accuracy, points", "worst task, points", "NLL", "ECE"], rows)


def unseen_table(records: Records, only: Sequence[str] = ()) -> str:
    """Ours minus every other arm on domains that no adapter has seen, at its default and at its best scalar."""
    rows = []
    for arm in [a for a in common_arms(records) if "best" in records[0]["arms"][a] and "rank 8" not in a]:
        if arm == OURS or (only and arm not in only):
            continue
        for kind in ("default", "best"):
            found = [
                interval(scale * differences(records, arm, kind, metric, "unseen"), digits)
                for metric, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3), ("ece", 1, 3))
            ]
            rows.append([arm, kind, *found])
    return markdown(["ours minus", "scalar", *UNSEEN], rows)


def ablation_table(records: Records) -> str:
    """Curvature taken apart, at the default scalar: mean over all sets of the families."""
    names = [a for a in records[0]["arms"] if "best" not in records[0]["arms"][a] and a not in REFERENCES]
    rows = []
    for arm in ["task arithmetic (sum)", *names, OURS, "MaTS"]:
        row = [{OURS: "G (gradient matching)", "MaTS": "G and S (MaTS)"}.get(arm, arm)]
        row += [number(100 * mean(records, arm, "default", metric), 1) for metric in ("accuracy", "worst")]
        rows.append([*row, number(mean(records, arm, "default", "nll"), 3)])
    return markdown(["curvature", "accuracy", "worst", "NLL"], rows)


def rows_table(records: Records) -> str:
    """Accuracy, worst task and NLL over the rows that Grams were measured on, at the default scalar."""
    arms = [arm for arm in records[0]["arms"] if arm.endswith(" rows")]
    rows = []
    for kind in dict.fromkeys(arm.rsplit(", ", 1)[0] for arm in arms):
        cells = [
            f"{100 * mean(records, arm, 'default', 'accuracy'):.1f} / "
            f"{100 * mean(records, arm, 'default', 'worst'):.1f} / {mean(records, arm, 'default', 'nll'):.3f}"
            for arm in arms
            if arm.startswith(kind)
        ]
        rows.append([kind, *cells])
    counts = dict.fromkeys(arm.rsplit(", ", 1)[1] for arm in arms)
    return markdown(["accuracy / worst / NLL", *counts], rows)


def curve_table(records: Records, over: str = "tasks", kind: str = "default") -> str:
    """Independent domain adapters over their number, on their own domains or on unseen ones."""
    counts = sorted({r["count"] for r in records if (r["family"], r["gauge"]) == ("domains", "independent")})
    found = {c: family(records, ("domains", c, "independent", "ivon")) for c in counts}
    counts = [c for c in counts if found[c][0][over]]
    arms = list(found[counts[-1]][0]["arms"]) if counts else []
    metrics: list[tuple[str, float, int]] = [("accuracy", 100, 1)]
    metrics += [("worst", 100, 1), ("nll", 1, 3)] if over == "tasks" else [("nll", 1, 3), ("ece", 1, 3)]
    rows = []
    for arm in arms:
        cells = []
        for count in counts:
            told = [
                number(scale * mean(found[count], arm, kind, metric, over), digits)
                for metric, scale, digits in metrics
            ]
            if kind == "best":
                chosen = sorted({r["arms"].get(arm, {}).get("scalar", math.nan) for r in found[count]})
                told.append("at " + ", ".join(f"{scalar:g}" for scalar in chosen))
            cells.append(" / ".join(told))
        if any("0" in cell for cell in cells):
            rows.append([arm, *cells])
    head = "accuracy / worst / NLL" if over == "tasks" else "accuracy / NLL / ECE"
    head += " / best scalars" if kind == "best" else ""
    return markdown([head, *(f"{count} domains" for count in counts)], rows)


def cost_table(records: Records) -> str:
    """CPU seconds of a merge of five modules, median over sets, of the arms that noted it."""
    found: dict[str, list[float]] = {}
    for record in records:
        for arm, scores in record["arms"].items():
            if "merge_seconds" in scores and arm != "MaTS, rank 8":  # cut from the other
                found.setdefault(arm, []).append(scores["merge_seconds"])
    rows = [[arm, number(float(np.median(seconds)), 1)] for arm, seconds in found.items()]
    return markdown(["arm", "CPU seconds"], rows)


def conflict_table(records: Records) -> str:
    """Rank correlation of predicted and measured cost of merging one module, over modules and tasks of a set."""
    rows = []
    for key, title in FAMILIES.items():
        sets = [r["conflict"] for r in family(records, key) if "conflict" in r]
        if sets:
            for on, key in {"training rows": "measured_train", "test rows": "measured"}.items():
                cells = [
                    interval(np.array([_rank(one, name, key) for one in sets]), 2) for name in PREDICTIONS
                ]
                rows.append([title, on, *cells])
    return markdown(["sets", "measured on", *PREDICTIONS], rows)


PREDICTIONS = ("kronecker", "separable", "shape", "distance")


def _rank(rows: Records, name: str, measured: str) -> float:
    if any(name not in row or measured not in row for row in rows):
        return math.nan
    found = spearman(*(torch.tensor([row[key] for row in rows]) for key in (name, measured)))
    return math.nan if found is None else found


def block(root: Path) -> str:
    """Everything between the markers."""
    baselines, votes, previews = (load(root, part) for part in ("baselines", "votes", "preview"))
    records = joined(load(root, "merge"), load(root, "more"), load(root, "joint"), baselines)
    parts = ["No merges yet."]
    if records:
        versions = ", ".join(f"{name} {version}" for name, version in records[0]["versions"].items())
        minutes = sum(record["cpu_seconds"] for record in records) / 60
        parts = [
            f"From {len(records)} sets of adapters, {minutes:.0f} minutes of one thread for merging; {versions}."
        ]
    for key, title in FAMILIES.items():
        found = family(records, key)
        if found:
            parts += [
                f"**{title[0].upper()}{title[1:]}** ({len(found)} sets).",
                main_table(found, list(MAIN)),
            ]
            parts += ["Paired differences:", pairs_table(found, list(MAIN))]
    whole = [r for r in records if (r["family"], r["count"], r["gauge"], r["optimizer"]) in FAMILIES]
    every = [r for r in whole if "TIES" in r["arms"]]
    wide = [r for r in every if r["family"] == "mixed" and r["optimizer"] == "ivon"]
    plain = [r for r in every if r["optimizer"] == "adamw"]
    timed = [r for r in wide if "merge_seconds" in r["arms"]["TIES"]]
    apart = [r for r in every if r["family"] == "domains"]
    domains = [r for r in records if r["family"] == "domains"]
    sections: list[tuple[str, Records, Callable[[Records], str]]] = [
        (f"All methods, {len(wide)} sets of different tasks, IVON", wide, main_table),
        ("Paired differences on these", wide if len(wide) > 2 else [], pairs_table),
        (f"All methods, {len(plain)} sets of different tasks, AdamW", plain, main_table),
        (f"All methods, {len(apart)} sets of four domains, IVON", apart, main_table),
        ("Paired differences on unseen domains, same sets", apart if len(apart) > 2 else [], unseen_table),
        (
            f"Curvature taken apart, {len(wide) + len(plain)} sets of different tasks",
            wide + plain,
            ablation_table,
        ),
        (f"Curvature taken apart, {len(apart)} sets of domains", apart, ablation_table),
        *(
            (
                f"Votes by the size of the gradient while training, {len(found)} sets of {kind}, IVON",
                found,
                lambda found: votes_table(records, found),
            )
            for kind, found in (
                ("four different tasks", _of(votes, "mixed")),
                *((f"{count} domains", _of(votes, "domains", count)) for count in (2, 4, 8, 12)),
            )
        ),
        *change_sections(load(root, "change")),
        *heads_sections(load(root, "heads_tune"), load(root, "heads"), load(root, "heads_pairs")),
        *(
            (f"Grams of one pass over so many rows a task, {len(found)} sets of {kind}", found, rows_table)
            for kind, found in (
                ("different tasks", _of(baselines, "mixed")),
                ("domains", _of(baselines, "domains")),
            )
        ),
        ("What a merge of four adapters costs, one thread of a busy machine", timed, cost_table),
        ("More adapters", domains, curve_table),
        ("More adapters, unseen domains", domains, lambda found: curve_table(found, "unseen")),
        (
            "More adapters, each at its best scalar",
            domains,
            lambda found: curve_table(found, kind="best"),
        ),
        (
            "More adapters, unseen domains, each at its best scalar",
            domains,
            lambda found: curve_table(found, "unseen", "best"),
        ),
        *_pair_sections(load(root, "pairs")),
        (
            "Preview: predicted and measured increase over thirty weightings of four adapters",
            previews,
            agreement_table,
        ),
        ("Preview: what weightings are worth on test rows", previews, choice_table),
        (
            "Preview: training loss on the way from an adapter to the merge, nats",
            load(root, "rays"),
            rays_table,
        ),
        ("Preview: CPU seconds for 2,000 weightings", load(root, "preview_cost"), seconds_table),
        *lineage_sections(load(root, "lineage"), load(root, "lineage_pulled")),
        ("Predicted and measured cost of a module, rank correlation", whole, conflict_table),
        *(
            (f"Stand-ins against exact gradients, {len(found)} adapters of {kind}", found, curvature_table)
            for kind, found in (
                ("MiniLM", load(root, "curvature")),
                ("the closed world's Llama", load(root, "curvature_closed_world")),
            )
        ),
        ("Gathering while training: operations it adds", load(root, "gathering_flops"), gathering_table),
        ("Gathering while training: CPU time it adds", load(root, "gathering_time"), gathering_table),
        ("Gathering in one pass: CPU time", load(root, "gathering_pass"), pass_table),
    ]
    for title, found, make in sections:
        if found:
            parts += [f"**{title}.**", make(found)]
    return "\n\n".join(parts) + "\n"


def _pair_sections(records: Records) -> list[tuple[str, Records, Callable[[Records], str]]]:
    """Two adapters at a time, by family."""
    found = []
    for name, title in (("mixed", "different tasks"), ("domains", "domains of one task")):
        sets = sets_of(_of(records, name))
        pairs = [pair for one in sets for pair in one]
        starts = " and ".join(sorted({record["gauge"] for record in pairs}))
        told = f"Two adapters, {title}: {len(pairs)} merges of pairs, {starts} starts"
        found += [
            (told, pairs, pair_scores),
            ("Paired differences on these", pairs if len(sets) > 1 else [], pair_differences),
        ]
    return found


def _of(records: Records, name: str, count: int | None = None) -> Records:
    return [r for r in records if r["family"] == name and count in (None, r["count"])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(HERE, block, "Tables of merge_quality from its JSON files.", arguments)


if __name__ == "__main__":
    main()
