"""What all files of the command line share: arguments, one-line errors, exit codes.

Exit codes: 0 done, 1 an error of ours (one line on stderr), 2 wrong usage, 130 interrupted.
"""

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from vlora.errors import ConfigError, VloraError

__all__ = ["ConfigPath", "Debug", "Overrides", "pairs", "plain", "say"]

Command = TypeVar("Command", bound=Callable[..., None])

ConfigPath = Annotated[Path, typer.Argument(help="YAML file; see `vlora recipes ls`.", metavar="CONFIG.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the file, e.g. optimizer.lr=1e-3.", metavar="[KEY=VALUE]..."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

_LAUNCHER_SECONDS = 5
_INTERRUPTED = "interrupted; what existed before is as it was, the same command goes on from here"


def plain(command: Command) -> Command:
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


def say(result: str) -> None:
    """Print a result, on the first process of a run only."""
    if os.environ.get("RANK", "0") == "0":
        print(result)


def numbers(given: Sequence[str] | None, option: str) -> dict[str, float] | None:
    """``NAME=NUMBER`` arguments as a mapping; None without any.

    Raises:
        ConfigError: One has no ``=``, or something else behind it.
    """
    found = {}
    for name, text in pairs(given or (), option).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise ConfigError(f"{option} takes NAME=NUMBER, got {text!r} for {name}") from None
    return found or None


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` arguments as a mapping.

    Raises:
        ConfigError: One has no ``=``.
    """
    for text in given:
        if not all(text.partition("=")):
            raise ConfigError(f"{option} takes NAME=VALUE, got {text!r}")
    return {name: value for name, _, value in (text.partition("=") for text in given)}
