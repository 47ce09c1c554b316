"""The sides of a comparison: what a run holds, and whether two of them answered the same items."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vlora.errors import DataError

__all__ = ["Answered", "RunKind", "Side", "check_same_items", "check_same_kind"]

logger = logging.getLogger(__name__)


class Answered(Protocol):
    """What one model said about all items of a run."""

    @property
    def model(self) -> str:
        """Name of the model."""
        ...

    @property
    def records(self) -> Sequence[Any]:
        """Its records, each with ``item`` and ``split``."""
        ...

    @property
    def row_of(self) -> Mapping[str, int]:
        """Row of every item."""
        ...


@dataclass(frozen=True)
class RunKind:
    """One kind of evaluation that a run may be."""

    name: str
    """In words."""
    file: str
    """File of its records, by which it is known."""
    read: Callable[[Path], Sequence[Answered]]
    """Every model of such a file."""
    test: Callable[[Any, Any], Mapping[str, Any]]
    """Tests of the later against the earlier model: at least ``predictor_a``, ``predictor_b``, ``n``, ``draws`` and
    ``tests``."""
    identity: Callable[[Any], Mapping[str, Any]]
    """What two records of one item must agree in, by name; what only one of them tells is not compared."""


@dataclass(frozen=True)
class Side:
    """One model of one run on one task."""

    run: str
    """Folder of the run."""
    task: str
    """Name of the task; empty where the run has one."""
    kind: RunKind
    """What the run is."""
    table: Answered
    """What the model said."""

    @property
    def label(self) -> str:
        """``run:model``, or the model alone where the run is called like it."""
        name = Path(self.run).name or self.run
        return name if name == self.table.model else f"{name}:{self.table.model}"


def check_same_kind(a: Side, b: Side) -> None:
    """Both sides must be of one kind.

    Raises:
        DataError: They are not.
    """
    if a.kind is not b.kind:
        parts = [f"{side.label} holds {side.kind.name} ({side.kind.file})" for side in (b, a)]
        raise DataError(f"{' and '.join(parts)}; compare evaluations of one kind")


def check_same_items(a: Side, b: Side) -> None:
    """Both sides must have answered the same questions, with the same right answers.

    Raises:
        DataError: An item is missing on one side, or is another one there.
    """
    only = [
        [item for item in one.table.row_of if item not in other.table.row_of and _counts(one, item)]
        for one, other in ((a, b), (b, a))
    ]
    if any(only):
        parts = [
            f"{len(items)} only in {side.label} (first {items[0]})"
            for items, side in zip(only, (a, b), strict=True)
            if items
        ]
        raise DataError(f"the items differ: {', '.join(parts)}; evaluate both models on the same rows")
    unknown = 0
    for item, row in a.table.row_of.items():
        if not _counts(a, item):
            continue
        ours = a.kind.identity(a.table.records[row])
        theirs = b.kind.identity(b.table.records[b.table.row_of[item]])
        unknown += ours.keys() != theirs.keys()
        for name in [name for name in ours if name in theirs]:
            if ours[name] != theirs[name]:
                raise DataError(
                    f"the items differ: {item} has another {name} in {a.label} than in {b.label}; evaluate both "
                    "models on the same rows"
                )
    if unknown:
        logger.warning(
            "%s and %s: one was written by an earlier vlora, so the texts of %d items are taken to be the same",
            *(a.label, b.label, unknown),
        )


def _counts(side: Side, item: str) -> bool:
    """Whether an item is reported on; validation rows only fit temperatures."""
    return side.table.records[side.table.row_of[item]].split != "validation"
