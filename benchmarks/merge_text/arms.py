"""From adapters to numbers: every merge at its default and at its best scalar, floor and ceiling beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.merge_text.adapters import RANK, adapter
from benchmarks.merge_text.texts import STORIES, TEXTS, TOKENS

SUM_SCALARS, MEAN_SCALARS = (0.5, 0.7, 1.4), (1.4, 2.0, 2.8)
"""Factors on the merged update besides 1; means are shorter."""
FULL = 64
"""No module of stories260K has a higher rank."""
Scores = dict[str, float]
ARMS: dict[str, dict[str, Any]] = {
    "linear (mean)": {"method": "linear"},
    "task arithmetic (sum)": {"method": "task_arithmetic"},
    "TIES": {"method": "ties", "rank": FULL},
    "DARE linear": {"method": "dare_linear", "rank": FULL},
    "DARE TIES": {"method": "dare_ties", "rank": FULL},
    "TSV": {"method": "tsv"},
    "RegMean": {"method": "regmean"},
    "Fisher": {"method": "fisher", "rank": len(TEXTS) * RANK},
    "gradient matching, separable h": {
        "method": "gradient_matching", "curvature": "separable", "rank": len(TEXTS) * RANK,
    },
    "gradient matching, Kronecker": {"method": "gradient_matching", "curvature": "kronecker"},
    "task arithmetic, rank 8": {"method": "task_arithmetic", "rank": RANK},
    "gradient matching, Kronecker, rank 8": {
        "method": "gradient_matching", "curvature": "kronecker", "rank": RANK,
    },
}  # fmt: skip
"""Name -> keys of the merge's configuration; nothing is cut to a rank unless the name says so. ``votes`` is what an
example counts in the Grams, ``equal`` if not given."""
CURVATURES: dict[str, dict[str, Any]] = {
    name: {**keys, "votes": votes} if votes else keys
    for method, keys in (
        ("gradient matching", {"method": "gradient_matching", "curvature": "kronecker"}),
        ("MaTS", {"method": "mats", "rank": FULL, "damping": 0.0}),
    )
    for name, votes in (
        (f"{method}, Kronecker" if method != "MaTS" else method, ""),
        (f"{method}, votes by change", "change"),
    )
}
"""Other curvature: examples that count by what the adapter changed about them, and the output side too."""
JOINED: dict[str, dict[str, Any]] = {
    "RegMean": ARMS["RegMean"],
    "gradient matching, Kronecker": CURVATURES["gradient matching, Kronecker"],
    "gradient matching, tokens joined": {**CURVATURES["gradient matching, Kronecker"], "joined": True},
    "gradient matching, tokens joined, votes by change": {
        **CURVATURES["gradient matching, votes by change"], "joined": True,
    },
    "MaTS": CURVATURES["MaTS"],
    "MaTS, tokens joined": {**CURVATURES["MaTS"], "joined": True},
}  # fmt: skip
"""Grams in which a text's tokens are added up before they are squared, the package's default, beside tokens apart."""
_MEANS = ("linear", "regmean", "fisher")


@dataclass(frozen=True)
class Bench:
    """Base model, texts and the folder for what is made."""

    base: Path
    files: Mapping[str, str]
    work: Path

    def adapters(self, seed: int, votes: str = "equal", joined: bool = False) -> dict[str, Path]:
        """Adapter per text, with Grams in which an example counts by ``votes`` and tokens are ``joined`` or not."""
        return {text: adapter(text, seed, self.files, self.base, self.work, votes, joined) for text in TEXTS}

    def merged(self, place: Path, sources: Sequence[Mapping[str, Any]], **keys: Any) -> Path:
        """Folder of a merge, made unless it exists."""
        from vlora.config import load_config
        from vlora.merge import MergeConfig
        from vlora.merge.run import run_merge

        if not place.exists():
            settings = {"rank": "lossless", "ledger": "none", "adapters": list(sources), "output": str(place)}
            run_merge(load_config(MergeConfig, {**settings, **keys}))
        return place

    def scores(self, models: Mapping[str, Path | str], split: str, place: Path) -> dict[str, Scores]:
        """Mean NLL per token of every model on every kind of text of a split, at the posterior mean."""
        from vlora.config import load_config
        from vlora.eval.config import EvalConfig
        from vlora.eval.run import run_eval

        config = {
            "model": [{"path": str(path), "name": name} for name, path in models.items()],
            "base_model": str(self.base),
            "task": "causal_lm",
            "data": {"test": self.files[split], "text": "text", "group": "kind", "max_length": TOKENS},
            "num_samples": 0,
            "num_bootstrap": 1,
            "output": str(place),
            "overwrite": True,
        }
        folder = run_eval(load_config(EvalConfig, config))
        found: dict[str, Scores] = {name: {} for name in models}
        for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]:
            if row["group"] in (*TEXTS, STORIES) and row["predictor"] == "mean":
                found[row["model"]][row["group"]] = row["metrics"]["nll"]["value"]
        return found


def whole(bench: Bench, seed: int, ways: Mapping[str, Mapping[str, Any]] = ARMS) -> dict[str, Any]:
    """Scores of the arms on the adapters of one seed, of the base, the single adapters and joint training."""
    own = bench.adapters(seed)
    place = bench.work / f"merged_{seed}"
    by_scalar: dict[str, dict[float, Path]] = {}
    for name, given in ways.items():
        keys, folder = dict(given), name.replace(" ", "_").replace(",", "")
        sources = [{"path": str(path)} for path in bench.adapters(seed, keys.pop("votes", "equal")).values()]
        default = bench.merged(place / folder, sources, **keys)
        by_scalar[name] = {1.0: default} | {
            s: bench.merged(
                place / f"{folder}_{s}", [{"path": str(default), "weight": s}], method="task_arithmetic"
            )
            for s in (MEAN_SCALARS if given["method"] in _MEANS else SUM_SCALARS)
        }
    tried = {f"{name}|{s}": path for name, paths in by_scalar.items() for s, path in paths.items()}
    validation = bench.scores(tried, "validation", place / "validation")
    best = {
        name: min(paths, key=lambda s, name=name: average(validation[f"{name}|{s}"]))
        for name, paths in by_scalar.items()
    }
    chosen = {f"{name}|{s}": by_scalar[name][s] for name in ways for s in {1.0, best[name]}}
    joint = adapter("joint", seed, bench.files, bench.base, bench.work)
    references = {"base": "base", "joint": joint, **own}
    test = bench.scores({**chosen, **references}, "test", place / "test")
    arms = {
        name: {
            "default": test[f"{name}|1.0"],
            "best": test[f"{name}|{best[name]}"],
            "scalar": best[name],
            "validation_nll": {str(s): average(validation[f"{name}|{s}"]) for s in paths},
        }
        for name, paths in by_scalar.items()
    }
    singles = {text: test[text] for text in TEXTS}
    return {
        "seed": seed,
        "arms": arms,
        "no adapter": test["base"],
        "joint training": test["joint"],
        "single": singles,
    }


def at_default(bench: Bench, seed: int, ways: Mapping[str, Mapping[str, Any]] = JOINED) -> dict[str, Any]:
    """Scores of arms at their default scalar on the adapters of one seed, and of the single adapters."""
    own, place = bench.adapters(seed), bench.work / f"joined_{seed}"
    models: dict[str, Path | str] = {}
    for name, given in ways.items():
        keys = dict(given)
        grams = (keys.pop("votes", "equal"), keys.pop("joined", False))
        sources = [{"path": str(path)} for path in bench.adapters(seed, *grams).values()]
        models[name] = bench.merged(place / name.replace(" ", "_").replace(",", ""), sources, **keys)
    test = bench.scores({**models, **own}, "test", place / "test")
    arms = {name: {"default": test[name]} for name in models}
    return {"seed": seed, "arms": arms, "single": {text: test[text] for text in TEXTS}}


def average(scores: Scores) -> float:
    """Mean over the merged texts."""
    return sum(scores[text] for text in TEXTS) / len(TEXTS)
