"""Tables of the sentiment adapters and of their merges. Arrays are ``(seeds, 4 domains)`` or ``(seeds,)``."""

import numpy as np

from benchmarks.first_run.cells import (
    ADAMW,
    DASH,
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
    known,
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
CHANCE = 0.5
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


def at_chance(results: Results, source: tuple[str, str]) -> Array:
    """1 for adapters whose interval of the accuracy reaches down to one half, 0 for others, ``(seeds, 4)``."""
    low = own(results, source, "accuracy", field="low")
    return np.where(np.isnan(low), NAN, low <= CHANCE)


def individual_table(results: Results) -> str:
    """Adapters on their own domains, over seeds."""
    rows = []
    for column, domain in enumerate((*TRAINED, "mean of the four")):
        pick = slice(column, column + 1) if column < len(TRAINED) else slice(None)
        rows += [[domain, label, *individual_row(results, source, pick)] for label, source in MODELS.items()]
    header = "test set | model | accuracy, % | NLL | NLL tempered | Brier | ECE (floor) | at chance | seeds"
    return markdown(header, rows, 2)


def individual_row(results: Results, source: tuple[str, str], pick: slice) -> list[str]:
    """Numbers of one predictor, mean over the picked domains."""

    def over(metric: str, after: str = "", field: str = "value") -> Array:
        return own(results, source, metric, after=after, field=field)[:, pick].mean(axis=1)

    failed = known(at_chance(results, source)[:, pick])
    return [
        mean_cell(over("accuracy"), 1, 100),
        mean_cell(over("nll")),
        mean_cell(over("nll", TEMPERED)),
        mean_cell(over("brier")),
        ece_cell(over(ECE), over(ECE, field="floor")),
        f"{failed.sum():.0f} of {len(failed)}" if len(failed) else DASH,
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
        ["IVON mean − AdamW, both learnt", *difference_row(results, MEAN, ADAMW, learnt=True)],
        ["IVON draws − AdamW, both learnt", *difference_row(results, DRAWS, ADAMW, learnt=True)],
        [
            "IVON draws − AdamW, tempered, both learnt",
            *difference_row(results, DRAWS, ADAMW, TEMPERED, learnt=True),
        ],
    ]
    header = "difference | accuracy, points | NLL | Brier | ECE | NLL, domain means | NLL by seed | pairs"
    return markdown(header, rows, 1)


def difference_row(
    results: Results, a: tuple[str, str], b: tuple[str, str], after: str = "", *, learnt: bool = False
) -> list[str]:
    """Numbers of predictor a minus predictor b; ``learnt`` leaves out pairs with one at chance."""
    failed = (at_chance(results, a) + at_chance(results, b)) > 0

    def delta(metric: str) -> Array:
        difference = own(results, a, metric, after=after) - own(results, b, metric, after=after)
        return np.where(failed, NAN, difference) if learnt else difference

    nll = delta("nll")
    return [
        difference_cell(delta("accuracy"), 1, 100),
        *(difference_cell(delta(metric)) for metric in ("nll", "brier", ECE)),
        difference_cell([known(domain).mean() if len(known(domain)) else NAN for domain in nll.T]),
        " / ".join(difference_cell(known(seed).mean() if len(known(seed)) else NAN) for seed in nll),
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
        failed = at_chance(results, (optimizer, "mean")).sum(axis=1)
        for method in ("own", *METHODS):
            values = [merged(results, method, optimizer, column) for column in MERGE_COLUMNS]
            row = [mean_cell(v, c[5], c[4]) for v, c in zip(values, MERGE_COLUMNS, strict=True)]
            label = "no merge: own adapter" if method == "own" else method
            rows.append([name, label, *row, each(values[0], 1, 100), each(failed, 0), count(values[0])])
    titles = [column[0] for column in MERGE_COLUMNS]
    last = ["accuracy, trained, by seed", "adapters at chance, by seed", "seeds"]
    return markdown(" | ".join(["optimizer", "model", *titles, *last]), rows, 2)


def each(values: Array, digits: int, factor: float = 1) -> str:
    """Every value, ``a / b / c``."""
    return " / ".join(mean_cell([value], digits, factor) for value in values)


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
    titles = [column[0].replace("%", "points") for column in MERGE_COLUMNS]
    return markdown(" | ".join(["difference", *titles, "pairs"]), rows, 1)
