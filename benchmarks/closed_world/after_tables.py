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
from benchmarks.closed_world.stages import AFTER, Stage
from benchmarks.readme_table import Records, with_half_width

__all__ = [
    "after_differences",
    "after_table",
    "extra_table",
    "features_table",
    "left_table",
    "votes_table",
]

GROUPS = ("clean", "ambiguous", "base", "unknown")


def after_table(records: Records, stage: Stage = AFTER) -> str:
    """AUROC of entropy and information after a merge, and the means of information by group."""
    lines = []
    for predictor in stage.predictors:
        drawn = not np.isnan(
            stage.values(records, predictor, "auroc", QUESTIONS[0], "mutual_information")
        ).all()
        nll = number(mean(stage.values(records, predictor, "seen", "nll")))
        for score, shown in SCORES.items():
            if score.startswith("max") or ("information" in shown and not drawn):
                continue
            areas = [stage.values(records, predictor, "auroc", question, score) for question in QUESTIONS[:4]]
            if not all(np.isnan(area).all() for area in areas):
                means = [mean(stage.values(records, predictor, "groups", g, f"mean_{score}")) for g in GROUPS]
                lines.append(
                    [
                        predictor,
                        shown,
                        stage.count(records, predictor),
                        nll,
                        *map(with_half_width, areas),
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


def after_differences(records: Records, stage: Stage = AFTER) -> str:
    """Information less the same merge's entropy, paired by world."""
    lines = []
    for predictor in stage.predictors:
        mean_of = "IVON, mean" if predictor.startswith("IVON") else "AdamW"
        cells = []
        for question in ("unknown vs ambiguous", "unknown vs seen"):
            entropy = stage.values(records, mean_of, "auroc", question, "entropy")
            based = stage.values(records, mean_of, "auroc", question, "entropy_base")
            own = stage.values(records, predictor, "auroc", question, "mutual_information")
            own_base = stage.values(records, predictor, "auroc", question, "mutual_information_base")
            cells += [interval(own - entropy), interval(own_base - based)]
        if set(cells) != {"—"}:
            lines.append([predictor, stage.count(records, predictor), *cells])
    header = [
        f"{question}: {what}"
        for question in ("unknown vs ambiguous", "unknown vs seen")
        for what in ("information − entropy", "the same, both × base")
    ]
    return markdown(["", "worlds", *header], lines)


def features_table(records: Records) -> str:
    """AUROC of distances of hidden states, before and after the merge; ± over worlds."""
    lines = []
    for source, shown in SOURCES.items():
        found = [r["scores"] for key, r in records.items() if key.startswith(f"features/{source}_")]
        for places, stage in ((("a", "b"), "alone"), (("ab",), "merged")):
            for score in found[0][places[0]]["auroc"][QUESTIONS[0]] if found else ():
                areas = [
                    np.array([mean([dig(one[p]["auroc"], question, score) for p in places]) for one in found])
                    for question in QUESTIONS
                ]
                lines.append([shown, stage, score, *map(with_half_width, areas)])
    return markdown(["adapters", "", "score", *QUESTIONS], lines)


def left_table(records: Records) -> str:
    """The share that the data left as a score for strangers, beside entropy and information; AUROC ± over worlds."""
    lines = []
    for source, shown in SOURCES.items():
        found = [r["auroc"] for key, r in records.items() if key.startswith(f"left/left_{source}_")]
        for score in ("entropy", "information", "left, own", "left, own_base") if found else ():
            areas = [np.array([dig(one, question, score) for one in found]) for question in QUESTIONS]
            name = score.replace("left, own", "share left").replace("_base", " × base")
            lines.append([shown, name, str(len(found)), *map(with_half_width, areas)])
    return markdown(["adapter A alone", "score", "worlds", *QUESTIONS], lines)


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
