"""Before and after the merge: the predictors of each stage under their names, and their numbers by world."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.closed_world.cells import dig, mean
from benchmarks.readme_table import Records

__all__ = ["AFTER", "BEFORE", "DEFAULT", "PREDICTORS", "Stage", "values", "worlds"]

PREDICTORS: dict[str, tuple[str, str]] = {
    "base model": ("base", "mean"),
    "AdamW": ("adamw", "mean"),
    "AdamW + temperature": ("adamw", "mean + temperature"),
    "AdamW, MC dropout, 8": ("dropout", "draws"),
    "AdamW, ensemble of 4": ("ensemble", "mixture"),
    "AdamW, Laplace, 8 draws": ("laplace", "draws"),
    "AdamW, Laplace, 8 draws, fitted width": ("laplace", "draws, fitted width"),
    "AdamW, Laplace, linearised": ("laplace", "linearised, independent"),
    "AdamW, Laplace, Kronecker": ("laplace", "linearised, Kronecker"),
    "AdamW, Laplace, full": ("laplace", "linearised, full"),
    "AdamW, Laplace, full, 8 draws": ("adamw_directed", "full draws"),
    "AdamW, Laplace, full, 64 draws": ("adamw_directed", "full draws, 64"),
    "IVON, mean": ("ivon", "mean"),
    "IVON, mean + temperature": ("ivon", "mean + temperature"),
    "IVON, 8 draws": ("ivon", "draws"),
    "IVON, 8 draws, fitted width": ("ivon", "draws, fitted width"),
    "IVON, linearised": ("ivon", "linearised, independent"),
    "IVON, Kronecker": ("ivon", "linearised, Kronecker"),
    "IVON, full": ("ivon", "linearised, full"),
    "IVON, full, 8 draws": ("ivon_directed", "full draws"),
    "IVON, full, 64 draws": ("ivon_directed", "full draws, 64"),
}
"""Name in the tables -> arm, predictor."""

PREDICTORS_AFTER: dict[str, tuple[str, str]] = {
    "AdamW": ("adamw_posterior", "mean"),
    "AdamW + temperature": ("adamw_posterior", "mean + temperature"),
    "AdamW, MC dropout, 8": ("adamw_dropout", "draws"),
    "AdamW, ensemble of 4 merges": ("adamw_ensemble", "mixture"),
    "AdamW, Laplace, 8 draws": ("adamw_posterior", "draws"),
    "AdamW, Laplace, linearised": ("adamw_linearised", "linearised, independent"),
    "AdamW, Laplace, Kronecker": ("adamw_linearised", "linearised, Kronecker"),
    "AdamW, Laplace, full": ("adamw_posterior", "linearised, full"),
    "AdamW, Laplace, full, 1024 directions": ("adamw_linearised", "linearised, full, 1024 directions"),
    "IVON, mean": ("ivon_posterior", "mean"),
    "IVON, mean + temperature": ("ivon_posterior", "mean + temperature"),
    "IVON, 8 draws": ("ivon_posterior", "draws"),
    "IVON, linearised": ("ivon_linearised", "linearised, independent"),
    "IVON, Kronecker": ("ivon_linearised", "linearised, Kronecker"),
    "IVON, full": ("ivon_posterior", "linearised, full"),
    "IVON, full, 1024 directions": ("ivon_linearised", "linearised, full, 1024 directions"),
}
"""The same of the merges of A and B with equal votes."""
MORE = ", 1024 directions"
PREDICTORS_DEFAULT: dict[str, tuple[str, str]] = {
    "AdamW": ("adamw_default", "mean"),
    "AdamW + temperature": ("adamw_default", "mean + temperature"),
    "AdamW, MC dropout, 8": ("adamw_default_dropout", "draws"),
    "AdamW, ensemble of 4 merges": ("adamw_default_ensemble", "mixture"),
    "AdamW, Laplace, 8 draws": ("adamw_default", "draws"),
    "AdamW, Laplace, 8 draws, fitted width": ("adamw_default", "draws, fitted width"),
    "AdamW, Laplace, linearised": ("adamw_default", "linearised, independent"),
    "AdamW, Laplace, Kronecker": ("adamw_default", "linearised, Kronecker"),
    "AdamW, Laplace, full": ("adamw_default", "linearised, full"),
    f"AdamW, Laplace, full{MORE}": ("adamw_default", f"linearised, full{MORE}"),
    f"AdamW, Laplace, full{MORE}, 8 draws": ("adamw_default", "full draws"),
    f"AdamW, Laplace, full{MORE}, 64 draws": ("adamw_default", "full draws, 64"),
    "IVON, mean": ("ivon_default", "mean"),
    "IVON, mean + temperature": ("ivon_default", "mean + temperature"),
    "IVON, 8 draws": ("ivon_default", "draws"),
    "IVON, 8 draws, fitted width": ("ivon_default", "draws, fitted width"),
    "IVON, linearised": ("ivon_default", "linearised, independent"),
    "IVON, Kronecker": ("ivon_default", "linearised, Kronecker"),
    "IVON, full": ("ivon_default", "linearised, full"),
    f"IVON, full{MORE}": ("ivon_default", f"linearised, full{MORE}"),
    f"IVON, full{MORE}, 8 draws": ("ivon_default", "full draws"),
    f"IVON, full{MORE}, 64 draws": ("ivon_default", "full draws, 64"),
}
"""The same of the merges that ``vlora merge`` makes by default: votes by change, tokens joined."""


@dataclass(frozen=True)
class Stage:
    """Where the records of a stage are, and what they hold."""

    part: str
    """Folder of the records."""
    predictors: Mapping[str, tuple[str, str]]
    """Name in the tables -> unit of the part, predictor."""
    adapters: bool
    """Whether a record holds each of its adapters apart, or one merge of them."""
    reference: str = "AdamW"
    """What the others are held against; the worlds are those that have it."""

    def worlds(self, records: Records) -> list[int]:
        """Worlds that have the reference."""
        head = f"{self.part}/{self.predictors[self.reference][0]}_"
        return sorted(r["world"] for name, r in records.items() if name.removeprefix(head).isdigit())

    def found(self, records: Records, predictor: str) -> list[list[dict[str, Any]]]:
        """Of every world what its record says of a predictor, once per adapter; nothing where there is no record."""
        unit, name = self.predictors[predictor]
        scores = [
            records.get(f"{self.part}/{unit}_{world}", {}).get("scores", {}) for world in self.worlds(records)
        ]
        return [
            [some[name] for some in (one.values() if self.adapters else [one]) if name in some]
            for one in scores
        ]

    def values(self, records: Records, predictor: str, *keys: str) -> np.ndarray:
        """One number per world, mean over its adapters where they are apart; NaN where there is none."""
        return np.array([mean([dig(one, *keys) for one in some]) for some in self.found(records, predictor)])

    def count(self, records: Records, predictor: str) -> str:
        """Number of worlds that have a predictor."""
        return str(sum(map(bool, self.found(records, predictor))))


BEFORE = Stage("main", PREDICTORS, adapters=True)
AFTER = Stage("posterior", PREDICTORS_AFTER, adapters=False)
DEFAULT = Stage("posterior", PREDICTORS_DEFAULT, adapters=False)


def worlds(records: Records) -> list[int]:
    """Worlds that have the AdamW arm."""
    return BEFORE.worlds(records)


def values(records: Records, predictor: str, *keys: str) -> np.ndarray:
    """One number per world before the merge, mean over its two adapters; NaN where there is none."""
    return BEFORE.values(records, predictor, *keys)
