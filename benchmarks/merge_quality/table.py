"""The tables of this benchmark, made from its JSON files and from nothing else.

    python -m benchmarks.merge_quality.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
A difference is paired: same adapters, same test rows. Its interval is mean ± t(.975, n - 1) s.e. over the n sets of
adapters (seeds) of a family; sets share their test rows and their tasks, so it speaks for new adapters of these tasks.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.merge_quality.arms import MAIN
from benchmarks.merge_quality.curvature_tables import (
    curvature_table,
    gathering_table,
    pass_table,
    with_all_stand_ins,
)
from benchmarks.merge_quality.curve_tables import Section, curve_sections
from benchmarks.merge_quality.damped_tables import damped_sections
from benchmarks.merge_quality.early_tables import early_sections, length_sections
from benchmarks.merge_quality.heads_tables import change_sections, heads_sections
from benchmarks.merge_quality.joined_tables import joined_sections
from benchmarks.merge_quality.lineage_tables import lineage_sections
from benchmarks.merge_quality.pairs_tables import pair_differences, pair_scores, sets_of
from benchmarks.merge_quality.preview_tables import agreement_table, choice_table, rays_table, seconds_table
from benchmarks.merge_quality.records import FAMILIES, Records, family, joined
from benchmarks.merge_quality.set_tables import (
    ablation_table,
    cost_table,
    main_table,
    pairs_table,
    rows_table,
    unseen_table,
)
from benchmarks.merge_quality.votes_tables import votes_table
from benchmarks.merge_quality.wide_tables import wide_sections
from benchmarks.posterior_quality.table import load
from benchmarks.readme_table import interval, markdown, write_tables
from vlora.posterior.ranks import spearman

HERE = Path(__file__).parent


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
    every = [r for r in whole if r["count"] == 4 and "TIES" in r["arms"]]
    larger = [r for r in whole if r["count"] > 4 and "TIES" in r["arms"]]
    wide = [r for r in every if r["family"] == "mixed" and r["optimizer"] == "ivon"]
    plain = [r for r in every if r["optimizer"] == "adamw"]
    timed = [r for r in wide if "merge_seconds" in r["arms"]["TIES"]]
    apart = [r for r in every if r["family"] == "domains"]
    sections: list[Section] = [
        (f"All methods, {len(wide)} sets of four different tasks, IVON", wide, main_table),
        ("Paired differences on these", wide if len(wide) > 2 else [], pairs_table),
        (f"All methods, {len(plain)} sets of four different tasks, AdamW", plain, main_table),
        *(
            section
            for count in (8, 12)
            for section in _larger([r for r in larger if r["count"] == count], count)
        ),
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
        *joined_sections(load(root, "joined")),
        *damped_sections(load(root, "damped_tune"), load(root, "damped")),
        *heads_sections(load(root, "heads_tune"), load(root, "heads"), load(root, "heads_pairs")),
        *(
            (f"Grams of one pass over so many rows a task, {len(found)} sets of {kind}", found, rows_table)
            for kind, found in (
                ("different tasks", _of(baselines, "mixed")),
                ("domains", _of(baselines, "domains")),
            )
        ),
        ("What a merge of four adapters costs, one thread of a busy machine", timed, cost_table),
        *curve_sections(records),
        *wide_sections(load(root, "wide")),
        *early_sections(load(root, "early_mats_tune"), load(root, "early_mats")),
        *length_sections(load(root, "length")),
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
                ("MiniLM, with more stand-ins", with_all_stand_ins(load(root, "curvature"))),
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


def _larger(records: Records, count: int) -> list[Section]:
    """All methods on more than four different tasks."""
    return [
        (f"All methods, {len(records)} sets of {count} different tasks, IVON", records, main_table),
        ("Paired differences on these", records if len(records) > 1 else [], pairs_table),
    ]


def _pair_sections(records: Records) -> list[Section]:
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
