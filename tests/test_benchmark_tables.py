"""The tables of ``benchmarks/first_run`` on a small made-up tree of results whose numbers are worked out by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.first_run import cells, sentiment_tables, table
from benchmarks.readme_table import END, START, replaced, t_quantile

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "first_run"

TRAINED, UNSEEN = sentiment_tables.TRAINED, sentiment_tables.UNSEEN


def numbers(**values: float) -> dict:
    """Metrics of one row: ECE's floor is always .05."""
    metrics = {
        name: {"value": value, "low": value, "high": value, "n": 400} for name, value in values.items()
    }
    if "ece" in metrics:
        metrics["ece_15_equal_width"] = {**metrics.pop("ece"), "floor": 0.05, "floor_high": 0.08}
    return metrics


def row(model: str, predictor: str, group: str = "all", **values: float) -> dict:
    return {"model": model, "predictor": predictor, "group": group, "metrics": numbers(**values)}


def write(root: Path, name: str, rows: list[dict] | None = None, **more) -> None:
    path = root / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"output": {"rows": rows or []}, **more}))


def tempered(model: str, predictor: str, nll: float) -> list[dict]:
    values = {"accuracy": 0.7, "brier": 0.4, "ece": 0.04}
    return [
        row(model, predictor, nll=nll, **values),
        row(model, predictor + "+temperature", nll=nll - 0.1, temperature=1.5, **values),
    ]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two seeds of sentiment, one of stories; seconds and numbers in simple steps."""
    for seed in (0, 1):
        for position, domain in enumerate(TRAINED):
            adamw, ivon = f"{domain}_adamw_{seed}", f"{domain}_ivon_{seed}"
            nll = 0.5 + 0.1 * position + 0.02 * seed
            write(tmp_path, f"sentiment/eval_{adamw}", tempered(adamw, "mean", nll))
            drop = 0.02 + 0.02 * seed
            rows = [*tempered(ivon, "mean", nll - drop), *tempered(ivon, "samples", nll - 0.25)]
            write(tmp_path, f"sentiment/eval_{ivon}", rows)
            cost = {"cpu_seconds": 100, "peak_memory_bytes": 512 * 2**20}
            write(tmp_path, f"sentiment/train_{adamw}", seconds=100 + 20 * seed, **cost)
            factor = 1.21 if seed else 1.0
            write(tmp_path, f"sentiment/train_{ivon}", seconds=factor * (100 + 20 * seed), **cost)
        for method, gain in (("task_arithmetic", 0.0), ("gradient_matching", 0.01 + 0.02 * seed)):
            model = f"{method}_adamw_{seed}"
            rows = [
                row(model, predictor, domain, accuracy=(0.8 if domain in TRAINED else 0.7) + gain, nll=0.6)
                for domain in (*TRAINED, *UNSEEN)
                for predictor in ("mean", "mean+temperature")
            ]
            write(tmp_path, f"sentiment/eval_{model}", rows)
    for base, nll in (("none", 1.5), ("8bit", 1.51)):
        adamw, ivon = f"tinystories_{base}_adamw_0", f"tinystories_{base}_ivon_0"
        values = {"accuracy": 0.6, "ece": 0.06}
        write(tmp_path, f"stories/eval_{adamw}", [row(adamw, "mean", nll=nll, **values)])
        rows = [
            row(ivon, "mean", nll=nll + 0.02, **values),
            row(ivon, "samples", nll=nll + 0.03, **values),
            row("base", "mean", nll=1.75, **values),
        ]
        write(tmp_path, f"stories/eval_{ivon}", rows)
    return tmp_path


@pytest.fixture
def line(tree: Path) -> Callable[..., list[str]]:
    """Cells of the only line of a table that starts with some cells."""

    def find(make: Callable, *start: str) -> list[str]:
        lines = [
            [c.strip() for c in text.split("|")[1:-1]] for text in make(cells.Results(tree)).splitlines()
        ]
        (found,) = [x for x in lines if x[: len(start)] == list(start)]
        return found[len(start) :]

    return find


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (11, 2.2010), (100, 1.9840)]
)
def test_student_quantiles_are_those_of_the_books(df, quantile):
    assert t_quantile(df) == pytest.approx(quantile, abs=1e-3)


def test_adapters_show_mean_and_standard_error_over_seeds(line):
    # books: .50 and .52, so .51 with sd .01414 and s.e. .01; dvd is .1 higher; IVON is .02 and .04 lower.
    found = line(sentiment_tables.individual_table, "books", "AdamW")
    assert found[:3] == ["70.0 ± 0.0", "0.510 ± 0.010", "0.410 ± 0.010"]
    assert found[3:] == ["0.400 ± 0.000", "0.040 ± 0.000 (0.050)", "0 of 2", "2"]
    assert line(sentiment_tables.individual_table, "dvd", "AdamW")[1] == "0.610 ± 0.010"
    assert line(sentiment_tables.individual_table, "books", "IVON, mean")[1] == "0.480 ± 0.000"
    assert line(sentiment_tables.individual_table, "books", "IVON, draws")[1] == "0.260 ± 0.010"
    assert line(sentiment_tables.individual_table, "mean of the four", "AdamW")[1] == "0.660 ± 0.010"


def test_differences_are_paired_over_seeds_and_domains(line):
    # Four pairs of -.02 and four of -.04: sd .01069, s.e. .003780, t(7) = 2.3646, half width .00894.
    found = line(sentiment_tables.individual_differences, "IVON mean − AdamW")
    assert found[0] == "+0.0 [+0.0, +0.0]"
    assert found[1] == "−0.030 [−0.039, −0.021]"
    assert found[4:] == ["−0.030 [−0.030, −0.030]", "−0.020 / −0.040", "8"]
    found = line(sentiment_tables.individual_differences, "IVON draws − AdamW, tempered")
    assert found[1] == "−0.250 [−0.250, −0.250]"


def test_runs_at_chance_are_counted_and_left_out_where_it_says_so(tree, line):
    path = tree / "sentiment" / "eval_dvd_ivon_1.json"
    record = json.loads(path.read_text())
    for found in record["output"]["rows"]:
        found["metrics"]["accuracy"]["low"] = 0.5
    path.write_text(json.dumps(record))
    assert line(sentiment_tables.individual_table, "dvd", "IVON, draws")[-2] == "1 of 2"
    assert line(sentiment_tables.individual_table, "mean of the four", "IVON, mean")[-2] == "1 of 8"
    assert line(sentiment_tables.individual_table, "mean of the four", "AdamW")[-2] == "0 of 8"
    assert line(sentiment_tables.individual_differences, "IVON mean − AdamW")[-1] == "8"
    # four pairs of -.02 and three of -.04: mean -.02857
    found = line(sentiment_tables.individual_differences, "IVON mean − AdamW, both learnt")
    assert (found[1][:6], found[-1]) == ("−0.029", "7")
    assert line(sentiment_tables.merge_table, "IVON", "linear")[-2] == "0 / 1"


def test_merges_average_test_sets_and_are_paired_by_seed(line):
    # all: (4 x .8 + 8 x .7) / 12 = .7333
    found = line(sentiment_tables.merge_table, "AdamW", "task_arithmetic")
    assert found[:3] == ["80.0 ± 0.0", "70.0 ± 0.0", "73.3 ± 0.0"]
    assert found[-3:] == ["80.0 / 80.0", "0 / 0", "2"]
    # gains of 1 and 3 points: mean 2, s.e. 1, t(1) = 12.706
    found = line(sentiment_tables.merge_differences, "AdamW: gradient_matching − task_arithmetic")
    assert found[:3] == ["+2.0 [−10.7, +14.7]"] * 3
    assert found[-1] == "2"


def test_adapters_stand_beside_the_merges_where_they_have_a_domain(line):
    found = line(sentiment_tables.merge_table, "AdamW", "no merge: own adapter")
    assert found == ["70.0 ± 0.0", "—", "—", "0.660 ± 0.010", "—", "—", "—", "70.0 / 70.0", "0 / 0", "2"]


def test_stories_show_the_base_once_and_pair_seeds(line):
    assert line(table.stories_table, "tinystories", "8-bit", "not trained") == [
        "1.750",
        "60.00",
        "0.060 (0.050)",
        "1",
    ]
    assert line(table.stories_table, "tinystories", "float32", "IVON, draws")[0] == "1.530"
    # both bases differ by the same here: one seed is one pair, not two
    found = line(table.stories_differences, "tinystories", "IVON mean − AdamW")
    assert (found[0], found[-1]) == ("+0.0200", "1")
    found = line(table.stories_differences, "tinystories", "8-bit − float32, mean")
    assert (found[0], found[-1]) == ("+0.0100", "1")


def test_cost_ratios_are_geometric_and_paired_by_run(line):
    assert line(table.cost_table, "sentiment", "AdamW")[0] == "110.0 ± 3.8"  # sd 10.69 over 8 runs
    # logs 0 and .19062, four each: mean .09531, sd .10189, s.e. .036024, half width .08518
    found = line(table.cost_table, "sentiment", "IVON / AdamW")
    assert found == ["1.10 [1.01, 1.20]", "1.00 [1.00, 1.00]", "—", "1.00 [1.00, 1.00]", "8"]
    assert line(table.cost_table, "sentiment", "IVON")[3] == "512 ± 0"


def test_missing_files_are_dashes_and_leave_the_count(tree, line):
    (tree / "sentiment" / "eval_books_adamw_1.json").unlink()
    found = line(sentiment_tables.individual_table, "books", "AdamW")
    assert (found[1], found[-1]) == ("0.500", "1")
    assert line(sentiment_tables.individual_differences, "IVON mean − AdamW")[-1] == "7"
    assert set(line(sentiment_tables.merge_table, "IVON", "linear")) == {"—", "— / —", "0 / 0", "0"}
    assert set(line(table.stories_table, "gsm8k", "float32", "AdamW")) == {"—", "0"}
    assert set(line(table.cost_table, "stories, 8-bit", "IVON / AdamW")) == {"—", "0"}


def test_no_result_at_all_makes_tables_of_dashes(tmp_path):
    text = table.block(cells.Results(tmp_path))
    assert text.startswith("From 0 result files.")
    rows = [x for x in text.splitlines() if x.startswith("| ") and x.endswith("| 0 |")]
    assert len(rows) == 15 + 8 + 8 + 9 + 16 + 6 + 9


def test_an_undefined_number_is_not_passed_over(tree):
    path = tree / "sentiment" / "eval_books_adamw_0.json"
    record = json.loads(path.read_text())
    record["output"]["rows"][0]["metrics"]["nll"] |= {"value": None, "infinite": 1}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="nll of sentiment/books_adamw_0 .* is null"):
        table.block(cells.Results(tree))


def test_the_block_is_replaced_between_its_markers_only(tree, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table:start -->\nformer tables\n<!-- table:end -->\nafter\n")
    arguments = ["--results", str(tree), "--readme", str(readme)]
    table.main(arguments)
    first = readme.read_text()
    assert first.startswith("before\n<!-- table:start -->\nFrom ") and first.endswith(
        "<!-- table:end -->\nafter\n"
    )
    assert "former tables" not in first
    table.main(arguments)
    assert readme.read_text() == first


@pytest.mark.parametrize("text", ["", START, f"{END}{START}", f"{START}{END}" * 2])
def test_markers_that_do_not_fit_are_refused(text):
    with pytest.raises(SystemExit, match="expected one <!-- table:start -->"):
        replaced(text, "new")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is not a folder; run run.py first"):
        table.main(["--results", str(tmp_path / "none")])


@pytest.fixture
def committed() -> Path:
    if not (FOLDER / "results").is_dir():
        pytest.skip("no results are committed")
    return FOLDER / "results"


def test_the_readme_holds_the_tables_of_the_committed_results(committed):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == replaced(text, table.block(cells.Results(committed))), "run benchmarks/first_run/table.py"


def test_committed_results_name_no_folder_of_a_machine(committed):
    def strings(content):
        if isinstance(content, str):
            yield content
        for part in (
            content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
        ):
            yield from strings(part)

    for name, record in cells.Results(committed).records.items():
        assert not [text for text in strings(record) if text.startswith("/")], name
