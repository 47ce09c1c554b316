"""Commands on results and calibrated adapters: ``vlora predict``, registered by :mod:`vlora.recipes.cli`.

As there, arguments are parsed and everything else is imported when it is asked for.
"""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["predict"]

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
