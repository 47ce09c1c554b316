"""Adapters of a merge as they are opened: Grams stay in their file, and the commit of a hub id is noted."""

from vlora.posterior import Posterior
from vlora.posterior.folder import read
from vlora.posterior.hub import commit_of, resolve

__all__ = ["open_adapter"]


def open_adapter(source: str, revision: str | None = None) -> tuple[Posterior, str | None]:
    """Read a posterior or PEFT adapter folder, or a hub id.

    The Grams of all adapters together would be the most of a merge's memory, and one module is looked at at a time, so
    they are read from the file when they are asked for.

    Returns:
        The posterior, and the commit that a hub id stood for; the revision as given where there is none.

    Raises:
        PosteriorFormatError: Damaged, mismatched, foreign or newer content, in one line.
    """
    folder = resolve(source, revision)
    return Posterior(**read(folder, stored=True)), commit_of(folder) or revision
