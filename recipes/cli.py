"""The ``vlora`` command. It only parses arguments; every stage is imported when it is asked for."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlora.recipes import cli_decide
from vlora.recipes.command import ConfigPath, Debug, Overrides, plain, say
from vlora.recipes.merge import merge_app

__all__ = ["app", "main"]

app = typer.Typer(
    name="vlora",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune a distribution instead of a point, merge adapters by what each is sure of, "
    "and know when the model does not know.\n\n"
    "A run is described by a YAML file; start from one of `vlora recipes ls`. "
    "Any key can be changed on the command line: "
    "`vlora train my.yaml optimizer.name=adamw training.num_train_epochs=1`.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="Configurations to start from: list, show, copy.")
app.add_typer(merge_app, name="merge")
app.add_typer(recipes_app, name="recipes")


@app.command()
@plain
def train(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fine-tune an adapter with IVON (or AdamW) and save its posterior beside it.

    Keys: base_model, task, data, peft, start, optimizer, quantization, dtype, training, output.
    `start: FOLDER` goes on from an adapter instead of a random start.
    A killed run goes on from its last checkpoint when the same command is given again.
    On several processes: accelerate launch --num_processes N -m vlora train CONFIG.yaml.
    """
    from vlora.config import load_config
    from vlora.training.config import TrainConfig
    from vlora.training.train import run_training

    say(f"wrote {run_training(load_config(TrainConfig, config, overrides or ()))}")


@app.command()
@plain
def posterior(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Give a trained LoRA adapter a posterior: a Laplace approximation from squared gradients on its data.

    Keys: adapter, base_model, task, data, fisher, prior_precision, prior_scope, temperature, output.
    The adapter's weights stay as they are; anybody's PEFT adapter will do.
    """
    from vlora.config import load_config
    from vlora.laplace.config import PosteriorConfig
    from vlora.laplace.run import run_posterior

    print(f"wrote {run_posterior(load_config(PosteriorConfig, config, overrides or ()))}")


@app.command()
@plain
def curvature(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Measure the Kronecker factors of a whole model on its training data, for merging models by curvature.

    Keys: model, task, data, layers, activations (for regmean), joined, rank, max_examples, passes, batch_size, output.
    Writes curvature.safetensors beside the weights, where `vlora merge` finds it.
    """
    from vlora.config import load_config
    from vlora.recipes.curvature import CurvatureConfig, run_curvature

    print(f"wrote {run_curvature(load_config(CurvatureConfig, config, overrides or ()))}")


@app.command(name="eval")
@plain
def evaluate(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Score posteriors and adapters on a task: accuracy, calibration, uncertainty, with intervals.

    Keys: model (a folder or a list), base_model, task, data, num_samples, output.
    Writes records.jsonl, results.json and report.html.
    task may be the name of a task file (arc_easy, truthfulqa_mc1, ...) with data: a folder of its rows.
    With kind: generation it samples answers and judges their uncertainty; writes answers.jsonl too.
    """
    from vlora.eval.config import EvalConfig
    from vlora.eval.results import read_results
    from vlora.recipes.evaluate import evaluate as run
    from vlora.recipes.evaluate import load_evaluation
    from vlora.recipes.tables import results_table

    settings = load_evaluation(config, overrides or ())
    if not isinstance(settings, EvalConfig):
        from vlora.eval.generation.files import read_answer_results
        from vlora.eval.generation.run import run_generation
        from vlora.eval.generation.table import answer_table

        output = run_generation(settings)
        print(answer_table(read_answer_results(output / "results.json")))
        print(f"wrote {output / 'report.html'}")
        return
    output = run(settings)
    print(results_table(read_results(output / "results.json")))
    print(f"wrote {output / 'report.html'}")


@app.command()
@plain
def calibrate(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fit widths, the linearised prior, prediction sets and a "don't know" threshold on data.validation.

    Takes the file of `vlora eval`. Keys: as there, and calibration: {ladder, refine, prior_grid, predictor,
    threshold_share, alpha, risk, delta}. Sets and threshold are verified on data.test and every data.ood set.
    Evaluate the width with `temperature=stored`, the prior with `linearised=true` (or kronecker,
    leading), apply sets and threshold with `vlora predict`.
    With kind: generation a confidence and a threshold for generated answers; calibration: {score, confidence,
    threshold_share, risk, delta}.
    Writes calibration.json into every adapter's folder and nothing else.
    """
    from vlora.recipes.calibrate import calibrate as run
    from vlora.recipes.evaluate import load_evaluation

    results, table = run(load_evaluation(config, overrides or ()))
    print(table)
    for result in results:
        print(f"wrote {result.path}")


app.command()(plain(cli_decide.predict))
app.command()(plain(cli_decide.compare))
app.command()(plain(cli_decide.export))
app.command(name="lm-eval")(plain(cli_decide.lm_eval))


@app.command()
@plain
def inspect(
    folder: Annotated[str, typer.Argument(help="Posterior or PEFT adapter: a folder or a hub id.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a posterior folder holds: size, settings, spread, health, lineage."""
    from vlora.recipes.inspect import describe, render

    facts = describe(folder)
    print(json.dumps(facts, indent=2) if as_json else render(facts))


@app.command()
@plain
def prune(
    folder: Annotated[str, typer.Argument(help="Posterior folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    snr: Annotated[float | None, typer.Option(help="Remove what lies below this ratio.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Remove this share, lowest first.")] = None,
    keep_rank: Annotated[int | None, typer.Option(help="Rank components to keep per module.")] = None,
    entries: Annotated[bool, typer.Option("--entries", help="Zero single entries instead.")] = False,
    scope: Annotated[str | None, typer.Option(help="Count by tensor/module or over the adapter.")] = None,
    gauge: Annotated[str, typer.Option(help="Where the prior acts: balanced or stored.")] = "balanced",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former adapter.")] = False,
    debug: Debug = False,
) -> None:
    """Drop the rank components (or entries) that the posterior cannot tell from nothing; still a PEFT adapter."""
    from vlora.recipes.prune import prune_folder, prune_table

    pruned = prune_folder(
        folder, out, what="entries" if entries else "ranks", scope=scope, overwrite=overwrite, gauge=gauge,
        snr=snr, fraction=fraction, keep_rank=keep_rank,
    )  # fmt: skip
    print(prune_table(pruned))
    print(f"wrote {out}")


@app.command()
@plain
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Seed of the people, the facts and the training.")] = 0,
    steps: Annotated[int, typer.Option(help="Optimizer steps per adapter.")] = 240,
    debug: Debug = False,
) -> None:
    """Run the whole road on the closed world: train two adapters, merge, evaluate, write a report.

    Needs no download and takes a few minutes on two CPU cores.
    """
    from vlora.recipes.demo import run_demo

    run_demo(out, seed=seed, steps=steps)


@recipes_app.command("ls")
@plain
def recipes_ls(debug: Debug = False) -> None:
    """List the configurations that ship with vlora."""
    from vlora.recipes.library import list_recipes

    for name, title in list_recipes():
        print(f"{name:44} {title}")


@recipes_app.command("show")
@plain
def recipes_show(
    name: Annotated[str, typer.Argument(help="Name as `vlora recipes ls` prints it.")],
    debug: Debug = False,
) -> None:
    """Print a configuration."""
    from vlora.recipes.library import read_recipe

    print(read_recipe(name), end="")


@recipes_app.command("copy")
@plain
def recipes_copy(
    name: Annotated[str, typer.Argument(help="Name as `vlora recipes ls` prints it.")],
    target: Annotated[Path | None, typer.Argument(help="File to write; default: NAME.yaml here.")] = None,
    debug: Debug = False,
) -> None:
    """Copy a configuration to edit it."""
    from vlora.recipes.library import copy_recipe

    print(f"wrote {copy_recipe(name, target)}")


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import vlora

        print(f"vlora {vlora.__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run one command and exit with its code."""
    app(args=sys.argv[1:] if arguments is None else arguments, prog_name="vlora")
