"""Tables of what a merged model knows it does not know, and of the distance of hidden states."""

import numpy as np

from benchmarks.closed_world.cells import (
    QUESTIONS,
    SCORES,
    SOURCES,
    dig,
    interval,
    markdown,
    mean,
    number,
)
from benchmarks.closed_world.stages import AFTER
from benchmarks.readme_table import Records

__all__ = [
    "after_differences",
    "after_table",
    "extra_table",
    "features_table",
    "votes_table",
]

GROUPS = ("clean", "ambiguous", "base", "unknown")
COMPARED = (
    "AdamW, MC dropout, 8", "AdamW, ensemble of 4 merges", "AdamW, Laplace, linearised", "AdamW, Laplace, Kronecker",
    "AdamW, Laplace, full", "AdamW, Laplace, full, 1024 directions", "IVON, linearised", "IVON, Kronecker",
    "IVON, full", "IVON, full, 1024 directions",
)  # fmt: skip


def after_table(records: Records) -> str:
    """AUROC of entropy and information after a merge, and the means of information by group."""
    lines = []
    for predictor in AFTER.predictors:
        drawn = not np.isnan(
            AFTER.values(records, predictor, "auroc", QUESTIONS[0], "mutual_information")
        ).all()
        nll = number(mean(AFTER.values(records, predictor, "seen", "nll")))
        for score, shown in SCORES.items():
            if score.startswith("max") or ("information" in shown and not drawn):
                continue
            areas = [
                mean(AFTER.values(records, predictor, "auroc", question, score)) for question in QUESTIONS[:4]
            ]
            if not np.isnan(areas).all():
                means = [mean(AFTER.values(records, predictor, "groups", g, f"mean_{score}")) for g in GROUPS]
                lines.append(
                    [
                        predictor,
                        shown,
                        AFTER.count(records, predictor),
                        nll,
                        *(number(v) for v in areas),
                        *(number(v) for v in means),
                    ]
                )
    header = [
        "after the merge",
        "score",
        "worlds",
        "NLL seen",
        *QUESTIONS[:4],
        *(f"mean on {group}" for group in GROUPS),
    ]
    return markdown(header, lines)


def after_differences(records: Records) -> str:
    """Information less the same merge's entropy, paired by world."""
    lines = []
    for predictor in COMPARED:
        mean_of = "IVON, mean" if predictor.startswith("IVON") else "AdamW"
        cells = []
        for question in ("unknown vs ambiguous", "unknown vs seen"):
            entropy = AFTER.values(records, mean_of, "auroc", question, "entropy")
            based = AFTER.values(records, mean_of, "auroc", question, "entropy_base")
            own = AFTER.values(records, predictor, "auroc", question, "mutual_information")
            own_base = AFTER.values(records, predictor, "auroc", question, "mutual_information_base")
            cells += [interval(own - entropy), interval(own_base - based)]
        lines.append([predictor, AFTER.count(records, predictor), *cells])
    header = [
        f"{question}: {what}"
        for question in ("unknown vs ambiguous", "unknown vs seen")
        for what in ("information − entropy", "the same, both × base")
    ]
    return markdown(["", "worlds", *header], lines)


def features_table(records: Records) -> str:
    """AUROC of distances of hidden states, before and after the merge."""
    lines = []
    for source, shown in SOURCES.items():
        found = [r["scores"] for key, r in records.items() if key.startswith(f"features/{source}_")]
        for places, stage in ((("a", "b"), "alone"), (("ab",), "merged")):
            own = [one[place]["auroc"] for one in found for place in places]
            for score in dict.fromkeys(name for one in own for name in one[QUESTIONS[0]]):
                areas = [number(mean([dig(one, question, score) for one in own])) for question in QUESTIONS]
                lines.append([shown, stage, score, *areas])
    return markdown(["adapters", "", "score", *QUESTIONS], lines)


def votes_table(records: Records) -> str:
    """Information with Grams of either votes, AUROC, mean over the worlds that were looked at."""
    asked = ("unknown vs ambiguous", "unknown vs seen", "elsewhere vs seen")
    lines = []
    for source, shown in SOURCES.items():
        found = [r["found"] for key, r in records.items() if key.startswith(f"extra/votes_{source}_")]
        for name in found[0] if found else ():
            score = "entropy" if name == "mean" else "mutual_information"
            areas = [number(mean([dig(one[name], question, score) for one in found])) for question in asked]
            lines.append([shown, "entropy of the mean" if name == "mean" else name, str(len(found)), *areas])
    return markdown(["adapter A alone", "covariance", "worlds", *asked], lines)


def extra_table(records: Records) -> str:
    """The full matrix with other directions and tails, AUROC of information on the tuning world."""
    lines = []
    asked = ("unknown vs ambiguous", "unknown vs seen", "elsewhere vs ambiguous", "elsewhere vs seen")
    for adapters, shown in (("a", "A alone"), ("ab", "merged")):
        for record in (r for key, r in records.items() if key.startswith(f"extra/directions_{adapters}_")):
            for name, numbers in record["found"].items():
                score = "entropy" if name == "mean" else "mutual_information"
                areas = [number(dig(numbers, question, score)) for question in asked]
                lines.append(
                    [shown, "entropy of the mean" if name == "mean" else name, number(numbers["nll"]), *areas]
                )
    return markdown(["", "covariance", "NLL, rows for fits", *asked], lines)
