"""Tables of the sentiment adapters and of their merges. Arrays are ``(seeds, 4 domains)`` or ``(seeds,)``."""

import numpy as np
from cells import (
    ADAMW,
    DRAWS,
    ECE,
    MEAN,
    MODELS,
    NAN,
    OPTIMIZERS,
    Array,
    Results,
    count,
    difference_cell,
    ece_cell,
    markdown,
    mean_cell,
)

TRAINED = ("books", "dvd", "electronics", "kitchen_housewares")
UNSEEN = (
    "MR", "camera_photo", "health_personal_care", "imdb", "music", "software", "sports_outdoors", "video",
)  # fmt: skip
SETS = {"trained": TRAINED, "unseen": UNSEEN, "all": TRAINED + UNSEEN}
METHODS = ("linear", "task_arithmetic", "gradient_matching")
TEMPERED = "+temperature"
MERGE_COLUMNS = (
    *((f"accuracy, {name}, %", "accuracy", "", name, 100, 1) for name in SETS),
    *((f"NLL, {name}", "nll", "", name, 1, 3) for name in SETS),
    ("NLL tempered, all", "nll", TEMPERED, "all", 1, 3),
)
"""Title, metric, what follows ``mean`` in the predictor, test sets, factor, digits."""


def own(
    results: Results, source: tuple[str, str], metric: str, *, after: str = "", field: str = "value"
) -> Array:
    """Adapters on the test set of their own domain, ``(seeds, 4)``; ``after`` is ``+temperature`` or empty."""
    optimizer, predictor = source
    names = [[f"sentiment/{d}_{optimizer}_{s}" for d in TRAINED] for s in results.seeds("sentiment")]
    return np.array(
        [[results.metric(n, predictor + after, metric, field=field) for n in row] for row in names]
    )


def individual_table(results: Results) -> str:
    """Adapters on their own domains, over seeds."""
    rows = []
    for column, domain in enumerate((*TRAINED, "mean of the four")):
        pick = slice(column, column + 1) if column < len(TRAINED) else slice(None)
        rows += [[domain, label, *individual_row(results, source, pick)] for label, source in MODELS.items()]
    header = "test set | model | accuracy, % | NLL | NLL tempered | temperature | Brier | ECE (floor) | seeds"
    return markdown(header, rows, 2)


def individual_row(results: Results, source: tuple[str, str], pick: slice) -> list[str]:
    """Numbers of one predictor, mean over the picked domains."""

    def over(metric: str, after: str = "", field: str = "value") -> Array:
        return own(results, source, metric, after=after, field=field)[:, pick].mean(axis=1)

    return [
        mean_cell(over("accuracy"), 1, 100),
        mean_cell(over("nll")),
        mean_cell(over("nll", TEMPERED)),
        mean_cell(over("temperature", TEMPERED), 2),
        mean_cell(over("brier")),
        ece_cell(over(ECE), over(ECE, field="floor")),
        count(over("nll")),
    ]


def individual_differences(results: Results) -> str:
    """Paired differences over seeds x domains."""
    rows = [
        ["IVON mean − AdamW", *difference_row(results, MEAN, ADAMW)],
        ["IVON draws − AdamW", *difference_row(results, DRAWS, ADAMW)],
        ["IVON mean − AdamW, tempered", *difference_row(results, MEAN, ADAMW, TEMPERED)],
        ["IVON draws − AdamW, tempered", *difference_row(results, DRAWS, ADAMW, TEMPERED)],
        ["IVON draws − IVON mean", *difference_row(results, DRAWS, MEAN)],
    ]
    header = "difference | accuracy, points | NLL | Brier | ECE | NLL, domain means | NLL by seed | pairs"
    return markdown(header, rows, 1)


def difference_row(results: Results, a: tuple[str, str], b: tuple[str, str], after: str = "") -> list[str]:
    """Numbers of predictor a minus predictor b."""

    def delta(metric: str) -> Array:
        return own(results, a, metric, after=after) - own(results, b, metric, after=after)

    nll = delta("nll")
    return [
        difference_cell(delta("accuracy"), 1, 100),
        *(difference_cell(delta(metric)) for metric in ("nll", "brier", ECE)),
        difference_cell(nll.mean(axis=0)),
        " / ".join(difference_cell([value]) for value in nll.mean(axis=1)),
        count(nll),
    ]


def merged(
    results: Results, method: str, optimizer: str, column: tuple[str, str, str, str, float, int]
) -> Array:
    """One column of ``MERGE_COLUMNS`` per seed, ``(seeds,)``; method ``own`` is no merge, known on ``trained`` only."""
    _, metric, after, sets, _, _ = column
    seeds = results.seeds("sentiment")
    if method == "own":
        grid = own(results, (optimizer, "mean"), metric, after=after)
        return grid.mean(axis=1) if sets == "trained" else np.full(len(seeds), NAN)
    names = [f"sentiment/{method}_{optimizer}_{s}" for s in seeds]
    grid = [[results.metric(n, "mean" + after, metric, group=d) for d in SETS[sets]] for n in names]
    return np.array(grid).mean(axis=1)


def merge_table(results: Results) -> str:
    """Merges of the four adapters beside the adapters themselves, over seeds."""
    rows = []
    for optimizer, name in OPTIMIZERS.items():
        for method in ("own", *METHODS):
            values = [merged(results, method, optimizer, column) for column in MERGE_COLUMNS]
            row = [mean_cell(v, c[5], c[4]) for v, c in zip(values, MERGE_COLUMNS, strict=True)]
            label = "no merge: own adapter" if method == "own" else method
            rows.append([name, label, *row, count(values[0])])
    return markdown(" | ".join(["optimizer", "model", *(c[0] for c in MERGE_COLUMNS), "seeds"]), rows, 2)


def merge_differences(results: Results) -> str:
    """Paired differences over seeds: against task arithmetic of the same adapters, and between optimizers."""
    pairs = [
        (f"{name}: {label} − task_arithmetic", (method, optimizer), ("task_arithmetic", optimizer))
        for optimizer, name in OPTIMIZERS.items()
        for method, label in {**dict(zip(METHODS, METHODS, strict=True)), "own": "no merge"}.items()
        if method != "task_arithmetic"
    ]
    pairs += [(f"{method}: IVON − AdamW", (method, "ivon"), (method, "adamw")) for method in METHODS]
    rows = []
    for label, a, b in pairs:
        deltas = [merged(results, *a, column) - merged(results, *b, column) for column in MERGE_COLUMNS]
        row = [difference_cell(d, c[5], c[4]) for d, c in zip(deltas, MERGE_COLUMNS, strict=True)]
        rows.append([label, *row, count(deltas[0])])
    return markdown(" | ".join(["difference", *(c[0] for c in MERGE_COLUMNS), "pairs"]), rows, 1)
