"""The configurations that ship with vlora, listed, shown and copied."""

import difflib
from importlib import resources
from pathlib import Path

from vlora.errors import ConfigError, OutputExistsError
from vlora.files import atomic_write

__all__ = ["copy_recipe", "list_recipes", "read_recipe"]


def list_recipes() -> list[tuple[str, str]]:
    """Names of the shipped configurations with the title from each file's first line, in name order."""
    folder = resources.files("vlora.recipes") / "configs"
    names = sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )
    return [(name, read_recipe(name).splitlines()[0].lstrip("# ")) for name in names]


def read_recipe(name: str) -> str:
    """Text of one configuration.

    Raises:
        ConfigError: There is none of this name.
    """
    name = name.removesuffix(".yaml")
    file = resources.files("vlora.recipes") / "configs" / f"{name}.yaml"
    if "/" in name or not file.is_file():
        known = [
            entry.name.removesuffix(".yaml")
            for entry in (resources.files("vlora.recipes") / "configs").iterdir()
        ]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see `vlora recipes ls`"
        raise ConfigError(f"no recipe {name!r}; {hint}")
    return file.read_text(encoding="utf-8")


def copy_recipe(name: str, target: Path | None = None) -> Path:
    """Write one configuration to a file that does not exist yet.

    Raises:
        OutputExistsError: The target exists.
    """
    text = read_recipe(name)
    path = target or Path(f"{name.removesuffix('.yaml')}.yaml")
    if path.is_dir():
        path = path / f"{name.removesuffix('.yaml')}.yaml"
    if path.exists():
        raise OutputExistsError(f"{path} exists; give another name to copy to")
    return atomic_write(path, text)
