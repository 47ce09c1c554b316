"""The tables of this benchmark, made from its JSON files and from nothing else.

    python -m benchmarks.merge_text.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
A difference is paired: same adapters, same test rows. Its interval is mean ± t(.975, n - 1) s.e. over the n sets of
adapters (seeds), which share texts and rows, so it speaks for new adapters of these texts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.merge_text.prior import ISOTROPIC, KEPT, OF_STORIES, TAUS, WEIGHTS
from benchmarks.merge_text.texts import STORIES, TEXTS
from benchmarks.posterior_quality.table import load
from benchmarks.readme_table import interval, markdown, write_tables

HERE = Path(__file__).parent
OURS = "gradient matching, Kronecker"
MORE = (OURS, "gradient matching, votes by change", "MaTS", "MaTS, votes by change")
Records = list[dict[str, Any]]
Scores = dict[str, float]


def average(scores: Scores) -> float:
    """Mean NLL over the merged texts."""
    return float(np.mean([scores[text] for text in TEXTS]))


def lost(scores: Scores, record: dict[str, Any]) -> float:
    """Most that a text loses against its own adapter."""
    return max(scores[text] - record["single"][text][text] for text in TEXTS)


def single(record: dict[str, Any]) -> Scores:
    """Every text under its own adapter; stories: mean over the adapters."""
    own = {text: record["single"][text][text] for text in TEXTS}
    return {**own, STORIES: float(np.mean([record["single"][text][STORIES] for text in TEXTS]))}


def main_table(records: Records) -> str:
    """NLL per token of every arm at its default and at its best scalar, floor and ceiling beside it."""
    rows = []
    references: list[tuple[str, Callable[[dict[str, Any]], Scores]]] = [
        ("no adapter", lambda record: record["no adapter"]),
        ("single adapters", single),
        ("joint training", lambda record: record["joint training"]),
    ]
    for name, get in references:
        rows.append([name, *_cells([get(r) for r in records], records), "—", "—", "—", "—"])
    for arm in records[0]["arms"]:
        defaults, best = ([r["arms"][arm][kind] for r in records] for kind in ("default", "best"))
        scalars = sorted({r["arms"][arm]["scalar"] for r in records})
        more = _cells(best, records)
        rows.append(
            [
                arm,
                *_cells(defaults, records),
                more[-3],
                more[-2],
                more[-1],
                ", ".join(f"{s:g}" for s in scalars),
            ]
        )
    names = [*TEXTS, "mean", "most lost", STORIES]
    return markdown(["arm", *names, *(f"{n}, best" for n in names[-3:]), "best scalar"], rows)


def pairs_table(records: Records) -> str:
    """Kronecker gradient matching at its default minus every other arm."""
    rows = []
    for arm in [name for name in records[0]["arms"] if name != OURS and "rank 8" not in name]:
        for kind in ("default", "best"):
            row = [arm, kind]
            measures: list[Callable[[Scores, dict[str, Any]], float]] = [
                lambda scores, record: average(scores),
                lost,
                lambda scores, record: scores[STORIES],
            ]
            for measure in measures:
                pairs = [
                    measure(r["arms"][OURS]["default"], r) - measure(r["arms"][arm][kind], r) for r in records
                ]
                row.append(interval(np.array(pairs), 3))
            rows.append(row)
    return markdown(["ours minus", "scalar", "mean NLL", "most lost", "NLL of stories"], rows)


def more_table(records: Records) -> str:
    """What curvature can be besides: other votes, the output side too; at their defaults, from sets merged again."""
    rows = []
    for arm in MORE:
        found = [record["arms"][arm]["default"] for record in records]
        rows.append([arm, *_cells(found, records)])
    return markdown(["arm", *TEXTS, "mean", "most lost", STORIES], rows)


def mixture_table(records: Records) -> str:
    """Several seeds per text: averaged, at the mode of mixtures, or one seed."""
    rows = []
    for record in records:
        for name, arm in record["arms"].items():
            used = sum(weight > 0.01 for weight in arm["weights"].values())
            predicted = f"{np.mean(list(arm['predicted'].values())):.3f}" if "predicted" in arm else "—"
            label = name if name.startswith("seed") or name == "average" else f"mixture, {name}"
            measured = [f"{average(arm['test']):.3f}", f"{arm['test'][STORIES]:.3f}"]
            rows.append([", ".join(map(str, record["seeds"])), label, str(used), predicted, *measured])
    header = ["seeds", "merge", "adapters used", "predicted increase", "mean NLL", "NLL of stories"]
    return markdown(header, rows)


def joined_table(records: Records) -> str:
    """Tokens joined or apart, and the differences to our merge with tokens joined; the last two columns."""
    ours, rows = "gradient matching, tokens joined", []
    for arm in records[0]["arms"]:
        scores = [record["arms"][arm]["default"] for record in records]
        best = [record["arms"][ours]["default"] for record in records]
        gaps = [
            np.array([measure(one) - measure(other) for one, other in zip(best, scores, strict=True)])
            for measure in (average, lambda scores: scores[STORIES])
        ]
        cells = ["—", "—"] if arm == ours else [interval(gap, 4) for gap in gaps]
        rows.append([arm, *_cells(scores, records), *cells])
    header = ["arm", *TEXTS, "mean", "most lost", STORIES]
    return markdown([*header, "mean, joined minus it", f"{STORIES}, joined minus it"], rows)


def prior_table(records: Records) -> str:
    """Merges held by either prior, and the difference between the two at the same tau."""
    rows = [
        [name, *_cells([get(r) for r in records], records), "—", "—"]
        for name, get in (("no adapter", lambda record: record["no adapter"]), ("single adapters", single))
    ]
    pairs = [(ISOTROPIC.format(tau), OF_STORIES.format(tau)) for tau in TAUS]
    pairs += [(ISOTROPIC.format(TAUS[0]), KEPT.format(weight)) for weight in WEIGHTS]
    for number, (isotropic, name) in enumerate(pairs):
        plain, stories = ([record["arms"][arm]["default"] for record in records] for arm in (isotropic, name))
        if number < len(TAUS):
            rows.append([isotropic, *_cells(plain, records), "—", "—"])
        gaps = [
            np.array([measure(one) - measure(other) for one, other in zip(stories, plain, strict=True)])
            for measure in (average, lambda scores: scores[STORIES])
        ]
        rows.append([name, *_cells(stories, records), *(interval(gap, 3) for gap in gaps)])
    header = ["gradient matching", *TEXTS, "mean", "most lost", STORIES]
    return markdown([*header, "mean, minus isotropic", f"{STORIES}, minus isotropic"], rows)


def block(root: Path) -> str:
    """Everything between the markers."""
    merges, mixtures, trains = (load(root, part) for part in ("merge", "mixture", "train"))
    parts = ["No merges yet."]
    if merges:
        versions = ", ".join(f"{name} {version}" for name, version in merges[0]["versions"].items())
        minutes = sum(r["cpu_seconds"] for r in (*merges, *mixtures, *trains)) / 60
        parts = [
            f"{len(merges)} sets of adapters, {minutes:.0f} minutes of one thread in all; {versions}.",
            "NLL per token, lower is better. *Most lost*: the largest loss of a text against its own adapter.",
            main_table(merges),
            "Paired differences:",
            pairs_table(merges),
        ]
    if more := load(root, "more"):
        parts += [f"**Other curvature**, {len(more)} set of adapters trained again.", more_table(more)]
    if joins := load(root, "joined"):
        told = (
            f"**A text's tokens joined in the Grams or apart**, {len(joins)} sets of adapters trained again."
        )
        parts += [told, joined_table(joins)]
    if priors := load(root, "prior"):
        parts += [
            f"**Curvature of the base's own text, {STORIES}**, {len(priors)} sets of adapters trained again.",
            prior_table(priors),
        ]
    if mixtures:
        parts += ["**Several seeds per text.**", mixture_table(mixtures)]
    return "\n\n".join(parts) + "\n"


def _cells(scores: Sequence[Scores], records: Records) -> list[str]:
    """The texts, their mean, the most lost, and stories; means over the sets."""
    values = [np.mean([s[text] for s in scores]) for text in TEXTS]
    values += [np.mean([average(s) for s in scores])]
    values += [np.mean([lost(s, r) for s, r in zip(scores, records, strict=True)])]
    return [f"{v:.3f}" for v in (*values, np.mean([s[STORIES] for s in scores]))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(HERE, block, "Tables of merge_text from its JSON files.", arguments)


if __name__ == "__main__":
    main()
