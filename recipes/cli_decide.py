"""Commands on results and calibrated adapters: `predict`, `compare`, `export`; registered by :mod:`vlora.recipes.cli`.

As there, arguments are parsed and everything else is imported when it is asked for.
"""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare", "export", "predict"]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def predict(
    folder: Annotated[str, typer.Argument(help="Posterior or PEFT adapter: a folder or a hub id.")],
    data: Annotated[str | None, typer.Option(help="JSONL file of rows, - for standard input.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to answer; may be repeated.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A choice for --text; repeat it.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Default: the one the adapter names.")] = None,
    task: Annotated[str | None, typer.Option(help="Where nothing was calibrated.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Draws where nothing was calibrated.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Which prediction set: share that may miss.")] = None,
    method: Annotated[str, typer.Option(help="Kind of prediction set: lac or aps.")] = "lac",
    answer_all: Annotated[bool, typer.Option("--answer-all", help='Never say "don\'t know".')] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: the accelerator.")] = None,
    debug: Debug = False,
) -> None:
    """Answer rows: each with its confidence, its epistemic share, a prediction set, or "don't know".

    Sets and the threshold for "don't know" are those that `vlora calibrate` stored beside the adapter.
    Writes one JSON object a row.
    """
    from vlora.errors import ConfigError
    from vlora.eval.predict import Predictor
    from vlora.recipes.predict import lines_of, predict_rows, read_rows, rows_of_texts, summary

    if (data is None) == (not text):
        raise ConfigError("give either --data FILE.jsonl or --text")
    found = Predictor.from_pretrained(
        folder, base_model=base_model, task=task, num_samples=num_samples, device=device
    )
    rows = read_rows(data) if data is not None else rows_of_texts(text or (), choice or (), found)
    predictions = predict_rows(found, rows, alpha=alpha, method=method, answer_all=answer_all)
    print(
        summary(predictions, out) if out is not None else lines_of(predictions),
        end="" if out is None else "\n",
    )


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Output folders of `vlora eval`, FOLDER:MODEL for one model of it.", metavar="RUN..."
        ),
    ],
    predictor: Annotated[str | None, typer.Option(help="mean, samples, mean+temperature, ...")] = None,
    level: Annotated[float, typer.Option(help="Chance of any false claim.")] = 0.05,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples of the items.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the resampling.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a report to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Is the difference real? Paired tests of two or more evaluations of the same items.

    McNemar for accuracy, paired bootstrap over items and draws for NLL, Brier, ECE, AUROC, AURC and AUGRC, DeLong for
    the detection of unknown items, Holm's correction over all of them, and how many items or draws would be needed.
    A run may also be a folder with one evaluation per task.
    """
    import json

    from vlora.recipes.compare import compare_runs, comparison_table, write_comparison

    found = compare_runs(runs, predictor=predictor, level=level, num_bootstrap=num_bootstrap, seed=seed)
    print(json.dumps(found, indent=1, allow_nan=False) if as_json else comparison_table(found))
    if html is not None:
        written = write_comparison(found, html)
        if not as_json:
            print(f"wrote {written}")


def export(
    folder: Annotated[str, typer.Argument(help="Posterior folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    num_samples: Annotated[int, typer.Option(help="Draws, one adapter each.")] = 8,
    independent: Annotated[bool, typer.Option("--independent", help="No mirrored pairs.")] = False,
    as_trained: Annotated[bool, typer.Option("--as-trained", help="Leave a fitted width aside.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former export.")] = False,
    debug: Debug = False,
) -> None:
    """Write posterior draws as ordinary PEFT adapters, one folder each, as vLLM and PEFT load several adapters."""
    from vlora.recipes.export import export_folder

    print(export_folder(folder, out, num_samples, not independent, not as_trained, overwrite))
