"""Tables of what is said before and after merging, from the records of ``run merge``.

A unit is a pair of domains: the mean over its two domains and over seeds. The domains of a pair share the merged model
and the foreign rows, so they are no units by themselves.
"""

from typing import Any

import numpy as np

from benchmarks.classification_uq.scores import RISKS
from benchmarks.classification_uq.silence import silence
from benchmarks.readme_table import interval, markdown, with_half_width

__all__ = ["by_pair", "merge_parts"]

OWN, GRADIENT = "own adapter", "gradient matching, Kronecker"
NAMES = {
    "adamw": "AdamW", "adamw_tempered": "AdamW + temperature", "dropout": "MC dropout, 8",
    "laplace": "diagonal Laplace, 8", "laplace_linearised": "Laplace, linearised",
    "laplace_kronecker": "Laplace, linearised, Kronecker", "laplace_left": "Laplace",
    "ivon": "IVON auto, mean", "ivon_tempered": "IVON auto, mean + temperature", "draws": "IVON auto, 8 draws",
    "ivon_linearised": "IVON auto, linearised", "ivon_kronecker": "IVON auto, linearised, Kronecker",
    "ivon_left": "IVON auto",
    "ensemble": "ensemble of 4 AdamW (4 × the cost)", "distance": "AdamW, pooled state",
}  # fmt: skip
SCORES = {
    "max_probability": "max probability", "entropy": "entropy", "expected_entropy": "expected entropy",
    "information": "information", "leverage": "leverage", "ivon_left": "share left",
    "laplace_left": "share left", "distance": "Mahalanobis distance",
}  # fmt: skip
COLUMNS = (
    "ambiguous over clean", "near over ambiguous", "far over ambiguous", "near over own", "far over own",
)  # fmt: skip
ENTROPY, BEST = ("adamw", "entropy"), ("ivon_kronecker", "information")
SHARE, DISTANCE = ("ivon_left", "ivon_left"), ("distance", "distance")
ENSEMBLE = (("ensemble", "entropy"), ("ensemble", "information"))
AFTER_LESS_BEFORE = (
    ENTROPY, ("laplace_kronecker", "information"), BEST, ("ivon_kronecker", "expected_entropy"), SHARE, ENSEMBLE[1],
    DISTANCE,
)  # fmt: skip
LESS_OTHERS = (
    (BEST, ("ivon", "entropy")), (BEST, ENTROPY), (BEST, ("dropout", "information")),
    (BEST, ("laplace", "information")), (BEST, ("draws", "information")), *((BEST, one) for one in ENSEMBLE),
    (BEST, DISTANCE), (("laplace_kronecker", "information"), ENTROPY), (SHARE, ENTROPY), (SHARE, BEST),
    (SHARE, ENSEMBLE[1]), (SHARE, DISTANCE), (("laplace_left", "laplace_left"), DISTANCE),
)  # fmt: skip
"""After gradient matching: a score less another."""
ABSTENTION = {
    "error of answers": "risk test", "answered": "answered test", "ambiguous answered": "answered ambiguous",
    "near answered": "answered near", "far answered": "answered far",
}  # fmt: skip
Records = list[dict[str, Any]]


def by_pair(records: Records, place: str, predictor: str, *path: str) -> np.ndarray:
    """Mean over the domains and seeds of every pair, ``(pairs,)``; NaN where there is nothing."""
    found: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        for domain in record["pair"]:
            value: Any = record["scores"][domain][place].get(predictor, {})
            for key in path:
                value = value.get(key, {})
            known = np.nan if isinstance(value, dict) else float(value)
            found.setdefault(tuple(record["pair"]), []).append(known)
    return np.array([np.mean(values) for values in found.values()])


def merge_parts(records: Records) -> list[str]:
    """Titles and tables."""
    seeds = sorted({record["seed"] for record in records})
    pairs = {tuple(record["pair"]) for record in records}
    parts = [
        f"**Before and after merging**: {len(pairs)} pairs of domains, seeds {', '.join(map(str, seeds))}; ± and "
        "intervals are over pairs. Which rows a score puts above which, AUROC.",
        separation_table(records),
        "**After merging: probabilities** of the test mix and of its two sorts of rows; answers above .9, % of rows.",
        quality_table(records),
        "**After gradient matching minus before**, paired by pair.", after_less_before(records),
        "**After gradient matching, one score minus another**, paired by pair.", less_others(records),
    ]  # fmt: skip
    for risk in RISKS:
        title = f"**Before and after merging: silence at {100 * risk:.0f} % risk**"
        lines = silence_lines(records, risk)
        if all(line[2].startswith("0 of") for line in lines):
            parts.append(f"{title}: no rule has a threshold in any run.")
            continue
        header = ["", "rule", "with a threshold", "of them over the limit", *ABSTENTION]
        parts += [f"{title}, %.", markdown(header, lines)]
    return parts


def places(records: Records) -> list[str]:
    """Adapters and merges."""
    return list(records[0]["scores"][records[0]["pair"][0]])


def separation_table(records: Records) -> str:
    """Every score that a place has."""
    rows = []
    for place in places(records):
        for predictor, name in NAMES.items():
            for score, text in SCORES.items():
                found = [by_pair(records, place, predictor, "separation", score, c) for c in COLUMNS]
                spared = "tempered" in predictor or (score == "max_probability" and predictor != "adamw")
                if not (np.isnan(found).all() or spared):
                    rows.append([place, name, text, *map(with_half_width, found)])
    return markdown(["", "predictor", "score", *COLUMNS], rows)


def quality_table(records: Records) -> str:
    """Probabilities; ``clean`` and ``ambiguous`` rows apart."""
    rows = []
    for place in places(records):
        for predictor, name in NAMES.items():
            found = [by_pair(records, place, predictor, "quality", k) for k in ("nll", "ece", "aurc")]
            if np.isnan(found).all():
                continue
            accuracy = by_pair(records, place, predictor, "quality", "accuracy")
            apart = [
                by_pair(records, place, predictor, "quality of", rows_, k)
                for rows_ in ("clean", "ambiguous")
                for k in ("nll", "ece")
            ]
            sure = [by_pair(records, place, predictor, "confident", s) for s in ("clean", "near", "far")]
            cells = [with_half_width(accuracy, 1, 100.0), *map(with_half_width, [*found, *apart])]
            rows.append([place, name, *cells, *(with_half_width(one, 1, 100.0) for one in sure)])
    header = ["accuracy, %", "NLL", "ECE", "AURC", "clean: NLL", "ECE", "ambiguous: NLL", "ECE"]
    sure = [f"above .9, {rows_}" for rows_ in ("clean", "near", "far")]
    return markdown(["", "predictor", *header, *sure], rows)


def after_less_before(records: Records) -> str:
    """What the merge does to scores, and to probabilities."""
    rows = []
    for predictor, score in AFTER_LESS_BEFORE:
        after, before = (
            [by_pair(records, place, predictor, "separation", score, c) for c in COLUMNS]
            + [by_pair(records, place, predictor, "quality", k) for k in ("nll", "ece", "aurc")]
            for place in (GRADIENT, OWN)
        )
        cells = [interval(a - b, 3) for a, b in zip(after, before, strict=True)]
        rows.append([NAMES[predictor], SCORES[score], *cells])
    return markdown(["predictor", "score", *COLUMNS, "NLL", "ECE", "AURC"], rows)


def less_others(records: Records) -> str:
    """Scores of the merged model against each other."""
    rows = []
    for pair in LESS_OTHERS:
        ours, other = (
            [by_pair(records, GRADIENT, p, "separation", s, column) for column in COLUMNS] for p, s in pair
        )
        texts = [f"{NAMES[p]}: {SCORES[s]}" for p, s in pair]
        rows.append([*texts, *(interval(a - b, 3) for a, b in zip(ours, other, strict=True))])
    return markdown(["", "minus", *COLUMNS], rows)


def silence_lines(records: Records, risk: float) -> list[list[str]]:
    """Lines of thresholds at one risk, of a place's predictors and their gates."""
    lines = []
    for place in (OWN, GRADIENT):
        for predictor, name in NAMES.items():
            first = records[0]["scores"][records[0]["pair"][0]][place].get(predictor, {})
            for kind in (key for key in first if key == "abstention" or key.startswith("gated")):
                text = name if kind == "abstention" else f"{name}, {kind}"
                runs = [
                    ("+".join(r["pair"]), r["scores"][domain][place][predictor][kind][str(risk)])
                    for r in records
                    for domain in r["pair"]
                ]
                lines.append([place, text, *silence(runs, risk, list(ABSTENTION.values()))])
    return lines
