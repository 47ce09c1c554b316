"""The tables of the first run, made from its JSON files and from nothing else.

    python -m benchmarks.first_run.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
Every row states from how many runs it is; one without any file shows dashes. How numbers are formed: ``cells.py``.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.first_run.cells import (
    ADAMW,
    DRAWS,
    ECE,
    MEAN,
    MODELS,
    OPTIMIZERS,
    Array,
    Results,
    count,
    difference_cell,
    ece_cell,
    known,
    markdown,
    mean_cell,
    ratio_cell,
)
from benchmarks.first_run.sentiment_tables import (
    TRAINED,
    individual_differences,
    individual_table,
    merge_differences,
    merge_table,
)
from benchmarks.readme_table import write_tables

HERE = Path(__file__).parent
TEXTS = ("tinystories", "gsm8k")
UNTRAINED = "not trained"
BASES = {"none": "float32", "8bit": "8-bit"}
COSTS = {
    "wall, s": ("seconds", 1.0, 1), "CPU, s": ("cpu_seconds", 1.0, 1), "training loop, s": ("train_seconds", 1.0, 1),
    "peak memory, MiB": ("peak_memory_bytes", 2.0**-20, 0),
}  # fmt: skip


def story(
    results: Results, text: str, base: str, source: tuple[str, str], metric: str, field: str = "value", model: str = ""
) -> Array:  # fmt: skip
    """One number per seed of a stories260K run, ``(seeds,)``."""
    names = [f"stories/{text}_{base}_{source[0]}_{s}" for s in results.seeds("stories")]
    return np.array([results.metric(n, source[1], metric, field=field, model=model) for n in names])


def stories_table(results: Results) -> str:
    """stories260K before and after training."""
    rows = []
    for text in TEXTS:
        for base, name in BASES.items():
            rows.append([text, name, "not trained", *stories_row(results, text, base, MEAN, "base")])
            for label, source in MODELS.items():
                rows.append([text, name, label, *stories_row(results, text, base, source)])
    return markdown("text | base | model | NLL per token | token accuracy, % | ECE (floor) | seeds", rows, 3)


def stories_row(
    results: Results, text: str, base: str, source: tuple[str, str], model: str = ""
) -> list[str]:
    """Numbers of one predictor; the model ``base`` does not depend on the seed, so its first evaluation is shown."""

    def over(metric: str, field: str = "value") -> Array:
        return known(story(results, text, base, source, metric, field, model))[: 1 if model else None]

    accuracy, ece = mean_cell(over("accuracy"), 2, 100), ece_cell(over(ECE), over(ECE, "floor"))
    return [mean_cell(over("nll")), accuracy, ece, count(over("nll"))]


def stories_differences(results: Results) -> str:
    """Paired differences over seeds: of optimizers, mean over the bases, and of bases, mean over the optimizers.

    The two bases give nearly the same run twice, so counting them as two pairs would make the intervals too narrow.
    """
    pairs = [("IVON mean − AdamW", [(b, MEAN, b, ADAMW) for b in BASES])]
    pairs += [("IVON draws − AdamW", [(b, DRAWS, b, ADAMW) for b in BASES])]
    pairs += [("8-bit − float32, mean", [("8bit", o, "none", o) for o in (ADAMW, MEAN)])]
    rows = []
    for text in TEXTS:
        for label, terms in pairs:
            nll, accuracy, ece = (
                np.mean(
                    [story(results, text, b, o, m) - story(results, text, c, p, m) for b, o, c, p in terms],
                    axis=0,
                )
                for m in ("nll", "accuracy", ECE)
            )
            row = [difference_cell(nll, 4), difference_cell(accuracy, 2, 100), difference_cell(ece, 4)]
            rows.append([text, label, *row, count(nll)])
    return markdown("text | difference | NLL per token | token accuracy, points | ECE | pairs", rows, 2)


def cost_table(results: Results) -> str:
    """Training runs: mean ± s.e. over runs, and IVON over AdamW paired by run."""
    parts = {"sentiment": [f"sentiment/{d}_{{}}_{s}" for s in results.seeds("sentiment") for d in TRAINED]}
    for base, name in BASES.items():
        seeds = results.seeds("stories")
        parts[f"stories, {name}"] = [f"stories/{t}_{base}_{{}}_{s}" for s in seeds for t in TEXTS]
    rows = []
    for part, names in parts.items():
        costs = {
            o: [[results.cost(n.format(o), c[0]) for n in names] for c in COSTS.values()] for o in OPTIMIZERS
        }
        for optimizer, label in OPTIMIZERS.items():
            row = [mean_cell(v, c[2], c[1]) for v, c in zip(costs[optimizer], COSTS.values(), strict=True)]
            rows.append([part, label, *row, count(costs[optimizer][0])])
        ratios = [np.array(a) / np.array(b) for a, b in zip(costs["ivon"], costs["adamw"], strict=True)]
        rows.append([part, "IVON / AdamW", *map(ratio_cell, ratios), count(ratios[0])])
    return markdown(" | ".join(["training runs", "", *COSTS, "runs"]), rows, 2)


def provenance(results: Results) -> str:
    """What the tables were made from."""
    found: dict[str, set[str]] = {"versions": set(), "hardware": set()}
    for record in results.records.values():
        for key, texts in found.items():
            texts.add(", ".join(f"{name} {value}" for name, value in record.get(key, {}).items()))
    said = [f"; {key}: {' or: '.join(sorted(texts - {''}))}" for key, texts in found.items() if texts - {""}]
    return f"From {len(results.records)} result files{''.join(said)}.\n"


def block(results: Results) -> str:
    """All tables with what must be known to read them."""
    return f"""{provenance(results)}
### 1. One adapter, its own domain

Mean over seeds ± standard error over seeds; the last rows are of the mean over the four domains. *Tempered*: with the
temperature that fits the validation rows best. *Floor*: the ECE that a perfectly calibrated model with these
confidences would show on as many rows. *At chance*: runs whose 95 % interval of the accuracy (bootstrap over the test
rows) reaches down to 50 %: they have learnt nothing. They are in all means, and can make most of a standard error.

{individual_table(results)}
Paired by domain and seed: mean difference with a 95 % t-interval over seeds x domains (12 pairs when complete).
Pairs of one domain share its training and test rows and so are not independent; the interval over the four *domain
means* (3 degrees of freedom) takes that into account. *Both learnt* leaves out pairs in which either run is at chance:
it compares what the optimizers reach when they work, and says nothing of how often they do.

{individual_differences(results)}
### 2. The merge of the four

At the mean, over seeds ± standard error. *Trained*: mean over the test sets of the four domains trained on; *unseen*:
over the other eight; *all*: over the twelve. *No merge*: each of the four adapters on its own domain. The last columns
show every seed: the accuracy, and how many of the four adapters that were merged are at chance (section 1).

{merge_table(results)}
Paired by seed: mean difference with a 95 % t-interval over seeds (3 pairs when complete, 2 degrees of freedom).

{merge_differences(results)}
### 3. stories260K

Per token, over seeds ± standard error; *not trained* is the base model alone, one evaluation.

{stories_table(results)}
Paired by seed, with a 95 % t-interval over seeds (3 pairs when complete, 2 degrees of freedom): differences of the
optimizers are means over the two bases, those of the bases means over the two optimizers.

{stories_differences(results)}
### 4. Cost of a training run

Mean over runs ± standard error, and the geometric mean of the ratios of paired runs with a 95 % t-interval. *Wall*,
*CPU* and *memory* are of the whole process, measured from outside: start, loading, tokenising, training,
the pass for the Kronecker factors (sentiment only, the same for both) and saving. Their ratio is
what a run costs, not what the optimizer costs; the *training loop* is closer to that. Wall seconds and the loop's
hold the time that other programs took: where they exceed CPU seconds by much, compare CPU seconds.

{cost_table(results)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(
        HERE, lambda folder: block(Results(folder)), "Tables of the first run from its JSON files.", arguments
    )


if __name__ == "__main__":
    main()
