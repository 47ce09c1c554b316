"""Commands on results and calibrated adapters: `predict`, `compare`, `export`, `lm-eval`.

They are registered by :mod:`vlora.recipes.cli`. As there, arguments are parsed and everything else is imported when it
is asked for.
"""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["compare", "export", "lm_eval", "predict"]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def predict(
    folder: Annotated[str, typer.Argument(help="Posterior or PEFT adapter: a folder or a hub id.")],
    data: Annotated[
        str | None, typer.Option(help="JSONL file of rows, - for standard input; with a task its folder.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to answer; may be repeated.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="A choice for --text; repeat it.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Default: the one the adapter names.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Where nothing was calibrated: its kind, or a task file (arc_easy).")
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(help="Where nothing was calibrated: samples, mean, linearised, kronecker, leading."),
    ] = None,
    fewshot: Annotated[str | None, typer.Option(help="Solved rows, for a task with examples.")] = None,
    num_samples: Annotated[int | None, typer.Option(help="Draws where nothing was calibrated.")] = None,
    covariance: Annotated[
        str | None, typer.Option(help="Of draws where nothing was calibrated: independent, leading.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Which prediction set: share that may miss.")] = None,
    method: Annotated[str, typer.Option(help="Kind of prediction set: lac or aps.")] = "lac",
    answer_all: Annotated[bool, typer.Option("--answer-all", help='Never say "don\'t know".')] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: the accelerator.")] = None,
    debug: Debug = False,
) -> None:
    """Answer rows: each with its confidence, its epistemic share, a prediction set, or "don't know".

    Predictor, sets and the threshold for "don't know" are those that `vlora calibrate` stored beside the adapter.
    --task arc_easy reads rows as that task has them, as `vlora eval` does. A task of open questions (nq_open) generates
    its answers. Writes one JSON object a row.
    """
    from vlora.errors import ConfigError
    from vlora.recipes.predict import lines_of, predict_rows, predictor_for, rows_for, rows_of_texts, summary

    if (data is None) == (not text):
        raise ConfigError("give either --data FILE.jsonl or --text")
    found = predictor_for(
        folder,
        task,
        predictor,
        alpha,
        base_model=base_model,
        num_samples=num_samples,
        covariance=covariance,
        fewshot=fewshot,
        device=device,
    )
    rows = rows_for(found, data) if data is not None else rows_of_texts(text or (), choice or (), found)
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
    predictor: Annotated[
        str | None,
        typer.Option(help="mean, samples, linearised; each +temperature; samples+draw_temperature."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help="An uncertainty to compare, EARLIER:LATER for one of either run, or all; repeatable."
        ),
    ] = None,
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
    Answers (kind: generation): McNemar for right ones, paired bootstrap for abstention scores, confidences and
    the AUROC of wrong answers, DeLong between groups. A run may also be a folder with one evaluation per task.
    """
    import json

    from vlora.recipes.compare import compare_runs, comparison_table, write_comparison

    found = compare_runs(
        runs, predictor=predictor, scores=score or (), level=level, num_bootstrap=num_bootstrap, seed=seed
    )
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
    covariance: Annotated[
        str, typer.Option(help="Of the draws: independent entries, or leading directions.")
    ] = "independent",
    as_trained: Annotated[bool, typer.Option("--as-trained", help="Leave a fitted width aside.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former export.")] = False,
    debug: Debug = False,
) -> None:
    """Write posterior draws as ordinary PEFT adapters, one folder each, as vLLM and PEFT load several adapters."""
    from vlora.recipes.export import export_folder

    print(export_folder(folder, out, num_samples, not independent, not as_trained, overwrite, covariance))


def lm_eval(
    folder: Annotated[str, typer.Argument(help="Posterior or PEFT adapter: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, with commas between.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task file of vlora's (arc_easy, mine.yaml).")] = None,
    data: Annotated[str | None, typer.Option(help="Its rows: a folder or file; default: the hub.")] = None,
    fewshot: Annotated[str | None, typer.Option(help="Solved rows, for a task with examples.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Default: the one the adapter names.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of further task files.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Default: as the task says.")] = None,
    num_samples: Annotated[int, typer.Option(help="Posterior draws; 0 is the mean.")] = 8,
    covariance: Annotated[
        str, typer.Option(help="Of the draws: independent entries, or leading directions.")
    ] = "independent",
    vote: Annotated[
        bool, typer.Option("--vote", help="Generated answers: what most draws say, not the mean.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Strings in a batch.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Documents of every task.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: the accelerator.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former output.")] = False,
    debug: Debug = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a posterior: log-likelihoods of whole strings, averaged over draws.

    Tasks that generate get the mean's greedy answer, with --vote the one that most draws give.

    --task runs one of vlora's task files in the harness, named vlora_NAME there: the prompts of `vlora eval`.
    Needs `pip install 'variational-lora[lm-eval]'`. Writes lm_eval.json (the harness's results) and draws.jsonl (what
    every draw says about every string). All options of the harness itself: python -m vlora.eval.lm_eval.
    """
    from vlora.recipes.harness import results_lines, run_harness

    found = run_harness(
        folder, tasks.split(",") if tasks else [], out, task=task, data=data, fewshot=fewshot,
        include_path=include_path, num_fewshot=num_fewshot, limit=limit,
        overwrite=overwrite, base_model=base_model, num_samples=num_samples, vote=vote,
        covariance=covariance, batch_size=batch_size, device=device,
    )  # fmt: skip
    print(results_lines(found))
    print(f"wrote {out}")
