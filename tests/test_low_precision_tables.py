"""The tables of ``benchmarks/low_precision`` on made-up records whose numbers are worked out by hand."""

import json
from pathlib import Path

from benchmarks.low_precision import table
from benchmarks.readme_table import END, START, read_results

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "low_precision"


def record(root, name, accuracy, nll, state=12.0, seconds=10.0, spearman=1.0):
    metrics = {"accuracy": accuracy, "nll": nll, "ece_15_equal_width": 0.05}
    row = {"metrics": {key: {"value": value} for key, value in metrics.items()}}
    path = root / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "rows": [{**row, "predictor": predictor} for predictor in ("mean", "samples")],
        "optimizer_state_bytes": state * 100,
        "parameters_trained": 100,
        "train_cpu_seconds": seconds,
        "h": {"spearman": spearman},
        "h_same_gradients": {"spearman": spearman},
        "versions": {"torch": "2"},
    }
    path.write_text(json.dumps(content))


def line(text, *starts):
    return next(row for row in text.splitlines() if row.startswith("| " + " | ".join(starts)))


def test_differences_are_paired_by_task_and_seed(tmp_path):
    for seed, (accuracy, nll) in enumerate([(0.80, 0.50), (0.70, 0.60)]):
        record(tmp_path, f"tasks/sst2_float32_{seed}", accuracy, nll)
        record(
            tmp_path, f"tasks/sst2_8bit_states_{seed}", accuracy + 0.01 * seed, nll + 0.002, 6.0, 20.0, 0.99
        )
    record(tmp_path, "tasks/trec_8bit_states_0", 0.9, 0.1)  # no float32 beside it
    records = read_results(tmp_path)
    text = table.differences(records, "tasks", table.TASKS)
    # accuracy: mean of 0 and 1 point, sd .7071, s.e. .5, t(1) = 12.706
    assert "+0.50 [−5.85, +6.85] | +0.0020 [+0.0020, +0.0020]" in line(text, "8-bit states", "mean")
    assert line(text, "8-bit states", "mean").endswith("| 2 |")
    assert line(text, "bf16 base", "mean") == "| bf16 base | mean | — | — | — | 0 |"
    costs = table.costs(records)
    assert line(costs, "8-bit states") == "| 8-bit states | 6.00 | — | 2.00 | — | 0.9900 | — | — | — |"


def test_a_quantised_base_is_shown_without_training_and_as_reference(tmp_path):
    for form, nll in (("float32", 2.0), ("4bit_base", 2.1)):
        record(tmp_path, f"bases/gsm8k_{form}_0", 0.3, nll)
        record(tmp_path, f"stories/gsm8k_{form}_0", 0.4, nll - 0.5)
    record(tmp_path, "stories/gsm8k_4bit_base_8bit_states_bf16_adapter_sr_0", 0.4, 1.601)
    records = read_results(tmp_path)
    text = table.differences(records, "stories", ["gsm8k"])
    assert (
        line(text, "4-bit base", "not trained")
        == "| 4-bit base | not trained | +0.00 | +0.1000 | +0.0000 | 1 |"
    )
    assert "+0.0010" in next(
        row for row in table.on_coarse_bases(records).splitlines() if "stochastic" in row and "stories" in row
    )


def test_an_adapter_trained_in_float32_shows_what_the_base_alone_loses(tmp_path):
    record(tmp_path, "tasks/sst2_float32_0", 0.80, 0.50)
    record(tmp_path, "tasks/sst2_4bit_base_0", 0.78, 0.54)
    record(tmp_path, "swapped/sst2_4bit_base_0", 0.79, 0.53)
    record(tmp_path, "swapped/trec_4bit_base_0", 0.79, 0.53)  # no float32 beside it
    text = table.differences(read_results(tmp_path), "tasks", table.TASKS)
    row = line(text, "4-bit base", "trained in float32")
    assert row == "| 4-bit base | trained in float32 | −1.00 | +0.0300 | +0.0000 | 1 |"
    assert line(text, "4-bit base", "mean").startswith("| 4-bit base | mean | −2.00 | +0.0400")


def test_memory_is_told_with_and_without_the_libraries(tmp_path):
    place = tmp_path / "memory" / "sst2_bf16_base_0.json"
    place.parent.mkdir()
    place.write_text(json.dumps({"model_bytes": 45.8e6, "peak_rss_bytes": 722e6, "start_rss_bytes": 544e6}))
    text = table.memory(read_results(tmp_path))
    assert line(text, "bf16 base ") == "| bf16 base | 45.8 | 178 | 722 |"
    assert line(text, "fp16 base") == "| fp16 base | — | — | — |"


def test_the_readme_has_the_tables_of_the_results():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    shown = text.split(START)[1].split(END)[0].strip()
    assert shown == table.block(read_results(FOLDER / "results")).strip()
