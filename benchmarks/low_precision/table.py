"""The tables of the number formats, made from the JSON files of ``run.py`` and from nothing else.

    python -m benchmarks.low_precision.table [--results DIR] [--print]

rewrites the block between the two markers in ``README.md``; ``--print`` shows the block and leaves the file alone.
What has no file is a dash. Over pairs: mean difference with the 95 % interval mean ± t(.975, n - 1) sd / sqrt(n).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.low_precision.formats import ADAMW, FORMATS, MOMENTUM, NAMES, TASKS
from benchmarks.readme_table import Records, read_results, t_quantile, write_tables

HERE = Path(__file__).parent
DASH = "—"
PREDICTORS = {"mean": "mean", "samples": "draws"}
METRICS = {
    "accuracy": ("accuracy, points", 100.0, 2),
    "nll": ("NLL", 1.0, 4),
    "ece_15_equal_width": ("ECE", 1.0, 4),
}


def seeds(records: Records) -> list[int]:
    """Seeds that any record has."""
    return sorted({int(name.rsplit("_", 1)[1]) for name in records})


def metric(record: dict[str, Any], predictor: str, name: str) -> float:
    """One number of an evaluation."""
    row = next(row for row in record["rows"] if row["predictor"] == predictor)
    return float(row["metrics"][name]["value"])


def units(records: Records, part: str, data: str, form: str) -> dict[int, dict[str, Any]]:
    """Records of one task in one format, by seed."""
    found = {seed: records.get(f"{part}/{data}_{form}_{seed}") for seed in seeds(records)}
    return {seed: record for seed, record in found.items() if record is not None}


def levels(records: Records) -> str:
    """Accuracy and NLL of every format at the mean, averaged over seeds."""
    places = [("tasks", task) for task in TASKS] + [("stories", "gsm8k")]
    rows = []
    for form in [*FORMATS, *ADAMW]:
        cells = []
        for part, data in places:
            runs = list(units(records, part, data, form).values())
            cells += [average([metric(r, "mean", m) for r in runs], *shape) for m, shape in
                      (("accuracy", (100.0, 1)), ("nll", (1.0, 3)))]  # fmt: skip
        rows.append([NAMES[form], *cells])
    heads = [f"{data}, {what}" for _, data in places for what in ("acc. %", "NLL")]
    return markdown(["format", *heads], rows, 1)


def differences(records: Records, part: str, data: Sequence[str]) -> str:
    """Format minus float32 on the same task and seed."""
    rows = []
    for form in list(FORMATS)[1:]:
        found = {
            "not trained": (paired(records, "bases", data, form), "mean"),
            "trained in float32": (on_other_bases(records, part, data, form), "mean"),
        }
        found = {label: some for label, some in found.items() if some[0]}
        found |= {label: (paired(records, part, data, form), name) for name, label in PREDICTORS.items()}
        rows += [[NAMES[form], label, *_cells(*some)] for label, some in found.items()]
    return markdown(["format", "", *(head for head, *_ in METRICS.values()), "pairs"], rows, 2)


def _cells(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], predictor: str) -> list[str]:
    """Differences in every metric, and the number of pairs."""
    values = (interval(gaps(pairs, predictor, name) * f, digits) for name, (_, f, digits) in METRICS.items())
    return [*values, str(len(pairs))]


def on_coarse_bases(records: Records) -> str:
    """What adapters, states and computing in fewer bits add to a coarse base."""
    rows = []
    for form, base in (
        ("bf16_base_bf16_adapter", "bf16_base"),
        ("bf16_base_bf16_adapter_8bit_states", "bf16_base"),
        ("8bit_base_bf16_adapter", "8bit_base"),
        ("8bit_base_8bit_states", "8bit_base"),
        ("8bit_base_bf16_adapter_8bit_states", "8bit_base"),
        ("4bit_base_bf16_adapter", "4bit_base"),
        ("4bit_base_bf16_compute", "4bit_base"),
        ("4bit_base_8bit_states_bf16_adapter_sr", "4bit_base"),
    ):
        for part, data in (("tasks", TASKS), ("stories", ("gsm8k",))):
            cells = _cells(paired(records, part, data, form, base), "mean")
            rows.append([f"{NAMES[form]} − {NAMES[base]}", part, *cells])
    return markdown(["difference", "", *(head for head, *_ in METRICS.values()), "pairs"], rows, 2)


def with_adamw(records: Records) -> str:
    """What the 4-bit base costs under AdamW and under IVON, each against its own float32 run."""
    rows = []
    for part, data in (("tasks", TASKS), ("stories", ("gsm8k",))):
        for form, base in (("adamw_4bit_base", "adamw"), ("4bit_base", "float32")):
            cells = _cells(paired(records, part, data, form, base), "mean")
            rows.append([f"{NAMES[form]} − {NAMES[base]}", part, *cells])
    return markdown(["difference", "", *(head for head, *_ in METRICS.values()), "pairs"], rows, 2)


def gaps(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], predictor: str, name: str) -> np.ndarray:
    """Format minus float32 in one metric, for each pair."""
    return np.array([metric(a, predictor, name) - metric(b, predictor, name) for a, b in pairs])


def costs(records: Records) -> str:
    """State memory per trained parameter, processor time against float32, and how far h agrees with it."""
    places = {"tasks": TASKS, "stories": ("gsm8k",), "tracking": ("sst2",)}

    def over(form: str, part: str, value: Callable[[dict[str, Any], dict[str, Any]], float]) -> list[float]:
        return [value(*pair) for pair in paired(records, part, places[part], form)]

    rows = []
    for form in [*FORMATS, *MOMENTUM]:
        row = [NAMES[form]]
        for part in ("tasks", "stories"):
            state = over(form, part, lambda a, _: a["optimizer_state_bytes"] / a["parameters_trained"])
            row.append(average(state, 1.0, 2))
        for part in ("tasks", "stories"):
            ratios = over(form, part, lambda a, b: math.log(a["train_cpu_seconds"] / b["train_cpu_seconds"]))
            row.append(f"{math.exp(float(np.mean(ratios))):.2f}" if ratios else DASH)
        row += [average(over(form, part, lambda a, _: a["h"]["spearman"]), 1.0, 4) for part in places]
        own = over(form, "tracking", lambda a, _: a["h_same_gradients"]["spearman"])
        row.append(average(own, 1.0, 4))
        rows.append(row)
    heads = ["state, MiniLM", "state, stories", "CPU time, MiniLM", "CPU time, stories", "h, MiniLM", "h, stories",
             "h, 2,000 steps", "h, same gradients"]  # fmt: skip
    return markdown(["format", *heads], rows, 1)


def memory(records: Records) -> str:
    """Megabytes of the model, and the peak of a training process, on MiniLM."""
    rows = []
    for form in FORMATS:
        found = list(units(records, "memory", "sst2", form).values())
        row = [average([r["model_bytes"] / 1e6 for r in found], 1.0, 1)]
        row += [average([(r["peak_rss_bytes"] - r["start_rss_bytes"]) / 1e6 for r in found], 1.0, 0)]
        row += [average([r["peak_rss_bytes"] / 1e6 for r in found], 1.0, 0)]
        rows.append([NAMES[form], *row])
    return markdown(["format", "model, MB", "peak above the libraries, MB", "peak RSS, MB"], rows, 1)


def paired(
    records: Records, part: str, data: Sequence[str], form: str, reference: str = "float32"
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of a format, each with that of the reference format for the same task and seed."""
    pairs = []
    for task in data:
        others = units(records, part, task, reference)
        found = units(records, part, task, form)
        pairs += [(record, others[seed]) for seed, record in found.items() if seed in others]
    return pairs


def on_other_bases(
    records: Records, part: str, data: Sequence[str], form: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Evaluations of float32-trained adapters on the base of a format, each with that on the float32 base."""
    pairs = []
    for task in data:
        trained = units(records, part, task, "float32")
        found = units(records, "swapped", task, form)
        pairs += [(record, trained[seed]) for seed, record in found.items() if seed in trained]
    return pairs


def average(values: Sequence[float], factor: float, digits: int) -> str:
    """Mean of the values that there are."""
    return f"{factor * float(np.mean(values)):.{digits}f}" if len(values) else DASH


def interval(values: np.ndarray, digits: int) -> str:
    """Mean with sign, and its interval if there are two values or more."""
    if not len(values):
        return DASH
    mean, text = float(values.mean()), f"{values.mean():+.{digits}f}"
    if len(values) > 1:
        half = t_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
        text += f" [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return text.replace("-", "−")


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], labels: int) -> str:
    """Table with ``labels`` columns to the left and numbers to the right."""
    rule = ["---"] * labels + ["---:"] * (len(heads) - labels)
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows)) + "\n"


def block(records: Records) -> str:
    """All tables with what must be known to read them."""
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in records.values()})
    return f"""From {len(records)} result files; versions: {" or: ".join(versions) or "none"}.

### Against float32, MiniLM

Format minus float32, paired by task and seed; 95 % t-intervals over the pairs. *Trained in float32*: the adapter of the
float32 run on this base, so what the base loses by itself; *mean* and *draws*: trained in the format.

{differences(records, "tasks", TASKS)}
### Against float32, stories260K on GSM8K text

Per token, paired by seed. *Not trained*: the base alone, without an adapter; the others as above.

{differences(records, "stories", ["gsm8k"])}
### Against the same base with the rest in float32

At the mean.

{on_coarse_bases(records)}
### AdamW on the 4-bit base

At the same learning rate, the default of both; IVON at its mean.

{with_adamw(records)}
### Levels at the mean

{levels(records)}
### State, time, and agreement of h

*State*: bytes that IVON keeps for each trained parameter. *CPU time*: of a training run from loading to saving, over
that of float32 with the same seed (geometric mean). *h*: Spearman rank correlation with h of the float32 run
of the same seed, over all entries.

{costs(records)}
### Memory of a training process, MiniLM

*Model*: all parameters and buffers, adapter and head included. *Peak RSS*: largest resident memory of a process that
loads the model, trains 5 steps of batch 16 on one thread and saves; *above the libraries*: without what Python, torch
and transformers held before. One run each.

{memory(records)}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables and put them into the README."""
    write_tables(
        HERE,
        lambda folder: block(read_results(folder)),
        "Tables of the number formats from their JSON files.",
        arguments,
    )


if __name__ == "__main__":
    main()
