"""``vlora merge``: the command and its subcommands. It only parses arguments, like :mod:`vlora.recipes.cli`.

``vlora merge CONFIG.yaml [key=value]`` merges; ``vlora merge NAME ...`` is a subcommand where NAME is one of them. A
file of such a name is meant by ``./NAME``.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlora.errors import ConfigError
from vlora.recipes.command import ConfigPath, Debug, Overrides, numbers, pairs, plain

__all__ = ["merge_app"]

_MERGE = "run"


class _MergeGroup(TyperGroup):
    """A group whose arguments are those of ``run`` unless they start with the name of a subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command in front where none is given."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_MERGE, *args]
        return super().parse_args(ctx, args)


merge_app = typer.Typer(
    cls=_MergeGroup,
    no_args_is_help=True,
    subcommand_metavar="CONFIG.yaml [KEY=VALUE]... | COMMAND [ARGS]...",
    help="""Merge adapters into one, by what each is sure of (gradient_matching) or by one of the other methods.

    Keys: method, base_model, adapters: [{path, weight, module_weights: {regex: weight}}], output, overwrite,
    rank: auto (lossless where the method has exact factors, else the inputs' largest) | keep | lossless | a number |
    a share of energy such as 0.95, module_options: {option: {regex: value}}.
    A list instead of a weight or value is a gradient from the first layer to the last.

    Into a model: `into: model` adds the adapters to base_model, and `models: [{path, weight, module_weights}]` merges
    whole models by any method, in bounded memory (regmean, mats and gradient_matching with the files of
    `vlora curvature`). Keys: curvature or fisher per model, dtype, max_shard_size, threads, block_megabytes,
    tokenizer: base | union | a folder, hash_inputs, allow_config_differences: [key of config.json], verify.

    A mergekit file is read too: vlora merge mergekit.yaml output=FOLDER.

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
    mats               K-FAC of both sides by conjugate gradients: tau, scale, damping, steps
    gradient_matching  by curvature (default): tau, prior, keep, keep_weight, scale, curvature, negative, ancestor

    space: full | knots | core. curvature: auto | sites | kronecker | separable | isotropic.
    negative: negate | remove. prior: a file or folder with the prior's precision per module.
    keep: curvature of the base on what it is to go on serving well (vlora curvature), with keep_weight (1).
    ancestor: the posterior folder that all adapters went on from (`start` of `vlora train`).
    """,
)


@merge_app.command(name=_MERGE)
@plain
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan only.")] = False,
    debug: Debug = False,
) -> None:
    """Merge what CONFIG.yaml says; the word `run` may be left out."""
    from vlora.merge.checkpoints import ModelMergeConfig, run_model_merge
    from vlora.merge.run import run_merge
    from vlora.recipes.merge_config import load_merge
    from vlora.recipes.merge_model_page import model_merge_page
    from vlora.recipes.merge_pages import merge_page

    _refuse_misspelt(config)
    if dry_run:
        _show_plan(config, overrides or (), False)
        return
    settings = load_merge(config, overrides or ())
    if isinstance(settings, ModelMergeConfig):
        print(f"wrote {run_model_merge(settings, model_merge_page)}")
    else:
        print(f"wrote {run_merge(settings, merge_page)}")


def _refuse_misspelt(config: Path) -> None:
    """A word that is no file, but nearly a command, was meant as one."""
    names = [str(command.name) for command in merge_app.registered_commands]
    near = difflib.get_close_matches(str(config), names, n=1, cutoff=0.7)
    if near and str(config) not in names and not config.exists():
        raise ConfigError(f"no file {config} here; did you mean the command `vlora merge {near[0]}`?")


@merge_app.command(name="plan")
@plain
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    debug: Debug = False,
) -> None:
    """Say what a merge would read, write and need, from file headers alone; nothing is written.

    Shapes, ranks, bytes, memory, an estimate of the time, what is missing or does not fit, and what the method
    needs and the inputs lack. Exit code 1 if it could not be carried out.
    """
    _show_plan(config, overrides or (), as_json)


def _show_plan(config: Path, overrides: Sequence[str], as_json: bool) -> None:
    from vlora.merge.checkpoints import ModelMergeConfig, make_plan
    from vlora.merge.checkpoints.plan_text import render
    from vlora.merge.plan import make_adapter_plan
    from vlora.merge.plan.text import render_adapters
    from vlora.recipes.merge_config import load_merge

    settings = load_merge(config, overrides, writes=False)
    if isinstance(settings, ModelMergeConfig):
        found = make_plan(settings, dry=True)
        text = render(found)
    else:
        found = make_adapter_plan(settings)
        text = render_adapters(found)
    print(json.dumps(found.to_json(), indent=2) if as_json else text)
    if found.problems:
        raise typer.Exit(1)


@merge_app.command(name="remove")
@plain
def remove(
    merged: Annotated[
        str, typer.Argument(help="Merged adapter that `vlora merge` wrote; a merged model has no ledger.")
    ],
    contributor: Annotated[list[str], typer.Option(help="Name of an input to take out; may be repeated.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of an input that has moved; may be repeated.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former adapter.")] = False,
    debug: Debug = False,
) -> None:
    """Take a contributor out of a merge: the others are merged again from the ledger, to the last bit."""
    from vlora.merge.unmerge.run import remove_contributors
    from vlora.recipes.merge_pages import merge_page

    moved = pairs(source or (), "--source")
    done = remove_contributors(
        merged, contributor, output, sources=moved, overwrite=overwrite, page=merge_page
    )
    print(f"took out {', '.join(done.removed)}, left {', '.join(done.left)}: {done.way}")
    if done.reproduced is not None:
        print(f"the ledger gives the merge itself again bit for bit: {'yes' if done.reproduced else 'no'}")
    print(
        "residual: none, exact"
        if done.way == "merged again"
        else f"residual: about {done.residual:.2g} (relative)"
    )
    print(f"wrote {done.output}")


@merge_app.command(name="preview")
@plain
def preview(
    config: ConfigPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Path of the page and the JSON, without ending.")] = Path(
        "merge_preview"
    ),
    count: Annotated[int, typer.Option(help="How many weightings.")] = 4096,
    low: Annotated[float, typer.Option(help="Smallest weight.")] = 0.0,
    high: Annotated[float, typer.Option(help="Largest weight.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Seed of the weightings.")] = 0,
    mixture: Annotated[
        float | None,
        typer.Option(help="Temperature of mixtures of a group's adapters; averaged if not given."),
    ] = None,
    variance: Annotated[
        bool, typer.Option(help="Standard deviations too; most of the time under gradient_matching.")
    ] = True,
    worth: Annotated[
        list[str] | None,
        typer.Option(help="TASK=NATS that a task's adapter is worth on its own rows; for all tasks or none."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Predict the loss of every task for thousands of weightings, without merging; name the best.

    Losses are relative: 0 is as good as the task's own adapter, 1 as bad as no adapter, and the loss grows
    with the distance from the adapter in its curvature. Give `--worth TASK=NATS` for every task, the loss
    without its adapter less the loss with it, to have nats and an average by them. Adapters with one `group`
    are seeds of one task: averaged, or with `--mixture 0.01` components of a mixture, whose mode gives every
    adapter a weight of its own.
    """
    from vlora.recipes.merge_config import load_adapter_merge
    from vlora.recipes.merge_preview import preview_table, run_preview

    merge = load_adapter_merge(config, overrides or ())
    settings = {
        "count": count,
        "low": low,
        "high": high,
        "seed": seed,
        "mixture": mixture,
        "variance": variance,
        "worth": numbers(worth, "--worth"),
    }
    print(preview_table(run_preview(merge, out, **settings)))
    print(f"wrote {out}.html and {out}.json")


@merge_app.command(name="compare")
@plain
def compare(
    folders: Annotated[
        list[str], typer.Argument(help="Merged or adapter folders, two or more.", metavar="A B [C]...")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    modules: Annotated[bool, typer.Option("--modules", help="List every module.")] = False,
    debug: Debug = False,
) -> None:
    """Set merges or adapters side by side: methods, weights, and how far apart their updates are, per module."""
    from vlora.merge.report.compare import compare as compare_folders
    from vlora.recipes.merge_compare import comparison_text

    facts = compare_folders(folders)
    print(json.dumps(facts, indent=2) if as_json else comparison_text(facts, every_module=modules))
