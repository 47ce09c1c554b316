"""The ledger of a merge: what went in, so that it can be taken out again exactly.

A site (natural parameters, :mod:`vlora.merge.methods.sites`) is a function of an adapter's mean, h, N and delta, and so
is what any other method takes from it. The ledger therefore keeps the inputs, not rounded sums: un-merging adds up the
sites of those who stay, in the same order and by the same program, which gives the bits of a merge without the one who
left. Subtracting floats would not.

    reference   hashes of the inputs and where they lie (the default; a few kB)
    full        a copy of every input inside the merged folder, under ``ledger/``
    none        nothing; removal is then a subtraction, with its residual reported

``merge_ledger.json`` holds the format, the kind, the resolved configuration, the hash of the merged mean, and per
contributor its name, place, revision and hashes; in a merge of one lineage the same of the ancestor.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlora.config import load_config, to_plain
from vlora.errors import IncompatibleAdaptersError, PosteriorFormatError
from vlora.merge.config import MergeConfig
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256

__all__ = [
    "ANCESTOR",
    "ANCESTOR_FOLDER",
    "FILE",
    "Contributor",
    "Ledger",
    "describe_ledger",
    "input_hashes",
    "read_ledger",
    "save_inputs",
]

FILE = "merge_ledger.json"
FOLDER = "ledger"
ANCESTOR = "ancestor"
"""Name of the ancestor, as of a contributor."""
ANCESTOR_FOLDER = f"{FOLDER}/{ANCESTOR}"
FORMAT = 1


@dataclass(frozen=True)
class Contributor:
    """One input of a merge as the ledger remembers it."""

    name: str
    path: str
    """As the configuration said it."""
    folder: str | None
    """Relative to the merged folder; None for a hub id."""
    revision: str | None
    hashes: Mapping[str, str]

    def load(self, merged: Path, given: str | None = None) -> Posterior:
        """Read the input and check that it is the one that was merged.

        Args:
            merged: The merged folder.
            given: Where the input lies now, if not where it was.

        Raises:
            IncompatibleAdaptersError: It is not there any more, or it was changed since.
        """
        places = [given] if given else [str(merged / self.folder)] if self.folder else []
        places += [] if given else [self.path]
        found = None
        for place in places:
            if found is None:
                found = self._read(place)
        if found is None:
            raise IncompatibleAdaptersError(
                f"{self.name!r} is not at {' or '.join(places)} any more; say where it is: --source {self.name}=FOLDER"
            )
        now = input_hashes(found)
        changed = [what for what, digest in self.hashes.items() if now.get(what) != digest]
        if changed:
            raise IncompatibleAdaptersError(
                f"{self.name!r} is not what was merged: its {changed[0]} has another hash; give the adapter as it was: "
                f"--source {self.name}=FOLDER"
            )
        return found

    def _read(self, place: str) -> Posterior | None:
        try:
            return Posterior.from_pretrained(place, revision=self.revision)
        except PosteriorFormatError:
            if Path(place).is_dir():
                raise
            return None


@dataclass(frozen=True)
class Ledger:
    """What :data:`FILE` says."""

    kind: str
    config: MergeConfig
    result: str
    """Hash of the merged mean."""
    contributors: Sequence[Contributor]
    ancestor: Contributor | None = None
    """What all contributors went on from, in a merge of one lineage."""


def describe_ledger(
    config: MergeConfig,
    names: Sequence[str],
    inputs: Sequence[Posterior],
    merged: Posterior,
    output: Path,
    ancestor: Posterior | None = None,
) -> str:
    """Text of :data:`FILE`.

    Args:
        config: The resolved configuration.
        names: One per adapter, distinct.
        inputs: The adapters.
        merged: What came out.
        output: The merged folder; local inputs are noted relative to it.
        ancestor: What they went on from, where the configuration names it.
    """
    rows = zip(names, config.adapters, inputs, strict=True)
    contributors = [
        {
            "name": name,
            "path": source.path,
            "folder": inner_folder(i, name) if config.ledger == "full" else _relative(source.path, output),
            "revision": source.revision,
            "hashes": input_hashes(posterior),
        }
        for i, (name, source, posterior) in enumerate(rows)
    ]
    content = {
        "format": FORMAT,
        "kind": config.ledger,
        "config": to_plain(config),
        "result": tensors_sha256(merged.mean),
        "contributors": contributors,
    }
    if ancestor is not None and config.ancestor:
        place = ANCESTOR_FOLDER if config.ledger == "full" else _relative(config.ancestor, output)
        content["ancestor"] = {
            "name": ANCESTOR, "path": config.ancestor, "folder": place, "revision": None,
            "hashes": input_hashes(ancestor),
        }  # fmt: skip
    return json.dumps(content, indent=2) + "\n"


def save_inputs(names: Sequence[str], inputs: Sequence[Posterior], folder: Path) -> None:
    """Copy every input under the merged folder, each a posterior folder of its own."""
    for i, (name, posterior) in enumerate(zip(names, inputs, strict=True)):
        posterior.save_pretrained(folder / inner_folder(i, name))


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a merged folder, or None where it has none.

    Raises:
        PosteriorFormatError: It is damaged or of a newer format.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise PosteriorFormatError(
                f"{path} has format {content['format']}, this vlora reads {FORMAT}; install a newer variational-lora"
            )
        contributors = [Contributor(**entry) for entry in content["contributors"]]
        config = load_config(MergeConfig, content["config"])
        ancestor = Contributor(**content["ancestor"]) if content.get("ancestor") else None
        return Ledger(content["kind"], config, content["result"], contributors, ancestor)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PosteriorFormatError):
            raise
        raise PosteriorFormatError(f"{path} is damaged ({error}); copy the folder again") from None


def inner_folder(index: int, name: str) -> str:
    """Place of a copied input in the merged folder; names need not be file names."""
    return f"{FOLDER}/{index}-" + re.sub(r"[^\w.-]+", "_", name)[:60]


def input_hashes(posterior: Posterior) -> dict[str, str]:
    """Content hashes of all that a merge may take from an adapter."""
    parts = {"mean": posterior.mean, "h": posterior.hess, "curvature": posterior.curvature or {}}
    return {what: tensors_sha256(tensors) for what, tensors in parts.items() if tensors}


def _relative(path: str, output: Path) -> str | None:
    local = Path(path).expanduser()
    return os.path.relpath(local.resolve(), output.resolve()) if local.is_dir() else None
