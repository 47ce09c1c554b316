"""The ``vlora`` command. It only parses arguments; every stage is imported when it is asked for.

Exit codes: 0 done, 1 an error of ours (one line on stderr), 2 wrong usage, 130 interrupted.
"""

import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from vlora.errors import VloraError
from vlora.recipes import cli_decide

__all__ = ["app", "main"]

Command = TypeVar("Command", bound=Callable[..., None])


def _plain(command: Command) -> Command:
    """Turn our errors and Ctrl-C into one line and an exit code; ``--debug`` shows the traceback."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **kwargs: Any) -> None:
        logging.basicConfig(format="%(message)s", level=logging.WARNING)  # to stderr; stdout is for results
        first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
        logging.getLogger("vlora").setLevel(logging.INFO if first else logging.ERROR)
        try:
            command(*args, debug=debug, **kwargs)
        except (VloraError, KeyboardInterrupt) as error:
            if debug:
                raise
            if not first:  # the first process says it too, and its launcher then ends this one
                time.sleep(_LAUNCHER_SECONDS)
            interrupted = isinstance(error, KeyboardInterrupt)
            print(
                f"vlora: {_INTERRUPTED if interrupted else 'error: ' + ' '.join(str(error).split())}",
                file=sys.stderr,
            )
            raise typer.Exit(130 if interrupted else 1) from None

    return cast(Command, run)


_LAUNCHER_SECONDS = 5
_INTERRUPTED = "interrupted; what existed before is as it was, the same command goes on from here"

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
app.add_typer(recipes_app, name="recipes")

ConfigPath = Annotated[Path, typer.Argument(help="YAML file; see `vlora recipes ls`.", metavar="CONFIG.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the file, e.g. optimizer.lr=1e-3.", metavar="[KEY=VALUE]..."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _say(result: str) -> None:
    """Print a result, on the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        print(result)


@app.command()
@_plain
def train(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fine-tune an adapter with IVON (or AdamW) and save its posterior beside it.

    Keys: base_model, task, data, peft, optimizer, quantization, dtype, training, output.
    A killed run goes on from its last checkpoint when the same command is given again.
    On several processes: accelerate launch --num_processes N -m vlora train CONFIG.yaml.
    """
    from vlora.config import load_config
    from vlora.training.config import TrainConfig
    from vlora.training.train import run_training

    _say(f"wrote {run_training(load_config(TrainConfig, config, overrides or ()))}")


@app.command()
@_plain
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
@_plain
def merge(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Merge adapters into one, by what each is sure of (gradient_matching) or by one of the other methods.

    Keys: method, base_model, adapters: [{path, weight, module_weights: {regex: weight}}], output, overwrite,
    rank: keep | lossless | a number | a share of energy such as 0.95.

    Methods and their own keys:

    \b
    linear             weighted mean
    slerp              along the arc between two adapters
    task_arithmetic    weighted sum: scale
    ties               large entries that agree in sign: density, scale, normalise, space
    dare_linear        random entries, summed: density, scale, seed, space
    dare_ties          random entries that agree: density, scale, normalise, seed, space
    della              as dare_ties, large ones first: density, epsilon, scale, normalise, seed, space
    tsv                orthogonal singular vectors: scale, task_rank
    iso_c              equal singular values: scale
    fisher             average weighted by h: normalise
    regmean            least squares on activations: shrink
    gradient_matching  weighted by curvature (the default): tau, scale, curvature

    space: full | knots | core. curvature: auto | sites | kronecker | separable | isotropic.
    """  # noqa: D301 (click wants the backspace itself)
    from vlora.config import load_config
    from vlora.merge.config import MergeConfig
    from vlora.merge.run import run_merge

    print(f"wrote {run_merge(load_config(MergeConfig, config, overrides or ()))}")


@app.command(name="eval")
@_plain
def evaluate(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Score posteriors and adapters on a task: accuracy, calibration, uncertainty, with intervals.

    Keys: model (a folder or a list), base_model, task, data, num_samples, output.
    Writes records.jsonl, results.json and report.html.
    """
    from vlora.config import load_config
    from vlora.eval.config import EvalConfig
    from vlora.eval.results import read_results
    from vlora.recipes.evaluate import evaluate as run
    from vlora.recipes.tables import results_table

    output = run(load_config(EvalConfig, config, overrides or ()))
    print(results_table(read_results(output / "results.json")))
    print(f"wrote {output / 'report.html'}")


@app.command()
@_plain
def calibrate(config: ConfigPath, overrides: Overrides = None, debug: Debug = False) -> None:
    """Fit the width of posteriors, prediction sets and a "don't know" threshold on data.validation.

    Takes the file of `vlora eval`. Keys: as there, and calibration: {ladder, refine, threshold_share, alpha,
    risk, delta}. Sets and threshold are verified on data.test and every data.ood set. Evaluate the width with
    `temperature=stored`, apply sets and threshold with `vlora predict`.
    Writes calibration.json into every adapter's folder and nothing else.
    """
    from vlora.config import load_config
    from vlora.eval.config import EvalConfig
    from vlora.recipes.calibrate import calibration_table, run_calibration

    results = run_calibration(load_config(EvalConfig, config, overrides or ()))
    print(calibration_table(results))
    for result in results:
        print(f"wrote {result.path}")


app.command()(_plain(cli_decide.predict))
app.command()(_plain(cli_decide.compare))
app.command()(_plain(cli_decide.export))
app.command(name="lm-eval")(_plain(cli_decide.lm_eval))


@app.command()
@_plain
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
@_plain
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
@_plain
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
@_plain
def recipes_ls(debug: Debug = False) -> None:
    """List the configurations that ship with vlora."""
    from vlora.recipes.library import list_recipes

    for name, title in list_recipes():
        print(f"{name:44} {title}")


@recipes_app.command("show")
@_plain
def recipes_show(
    name: Annotated[str, typer.Argument(help="Name as `vlora recipes ls` prints it.")],
    debug: Debug = False,
) -> None:
    """Print a configuration."""
    from vlora.recipes.library import read_recipe

    print(read_recipe(name), end="")


@recipes_app.command("copy")
@_plain
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
