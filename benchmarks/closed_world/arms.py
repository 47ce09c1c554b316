"""The methods compared: how the two adapters of a world are taught, and what each method says with them.

An arm returns what its predictors say (``Said``), by name. Whatever is fitted (a temperature, a width) is fitted on the
rows of the part ``fit``, which are about people that were taught: no unknown person is used.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.closed_world.linearised import COST, WIDTHS, linearised, whole_fisher
from benchmarks.closed_world.model import DRAWS, Asked, wearing
from benchmarks.closed_world.scores import Said, nll_of, tempered
from benchmarks.closed_world.worlds import Questions, data_block, taught
from vlora import Posterior
from vlora.config import load_config
from vlora.curvature import Votes
from vlora.laplace.config import PosteriorConfig
from vlora.laplace.run import run_posterior
from vlora.posterior.leading import Leading
from vlora.recipes.closed_world import model_folder

__all__ = [
    "ARMS",
    "MANY",
    "Found",
    "Setting",
    "add_directed",
    "laplace_folder",
    "of_posterior",
    "remembered",
    "said",
]

MEMBERS = 4
DROPOUT = 0.1
PARTS = ("log_probs", "aleatoric", "epistemic")
MANY = 64
"""Draws that show what eight leave to chance."""
SCALES = (0.125, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)


class Setting:
    """One adapter of one world and the questions about it.

    Args:
        seed: Of the world.
        files: Its files.
        adapter: ``a`` or ``b``.
        asked: The questions.
        folder: For adapters and log-probabilities of this world.
        optimizers: Name of an arm -> ``optimizer:`` block.
    """

    def __init__(
        self,
        seed: int,
        files: dict[str, Path],
        adapter: str,
        asked: Questions,
        folder: Path,
        optimizers: dict[str, Any],
    ) -> None:
        self.seed, self.files, self.adapter, self.asked = seed, files, adapter, asked
        self.folder, self.optimizers = folder, optimizers

    @cached_property
    def items(self) -> Asked:
        """The questions as tokens."""
        return Asked(self.asked)

    @property
    def train(self) -> list[Path]:
        """Files that the model's adapters were taught from."""
        return [self.files[f"train_{adapter}"] for adapter in self.adapter]

    def trained(self, arm: str, run: int = 0, *, streamed: Votes | None = None) -> Path:
        """Folder of the adapter that an arm trains; ``streamed`` gathers Grams on the way, with such votes."""
        optimizer = self.optimizers[arm.removesuffix("_dropout")]
        dropout = DROPOUT if arm.endswith("_dropout") else 0.0
        more = {"run": run, "dropout": dropout, "curvature": run == 0 and not dropout}
        output = self.folder / (f"{arm}_{run}" + (f"_streamed_{streamed}" if streamed else "")) / self.adapter
        if streamed:
            more |= {"curvature": "training", "votes": streamed}
        return taught(self.seed, self.files, self.adapter, optimizer, output, **more)

    def widest_draws(
        self, model: nn.Module, posterior: Posterior, nll: float, scales: Sequence[float] = SCALES
    ) -> float:
        """Widest factor on the standard deviations at which draws cost known people at most ``COST`` nats."""
        rows = [i for i, part in enumerate(self.asked.part) if part == "fit"]
        few = Questions(
            [self.asked.rows[i] for i in rows], [self.asked.group[i] for i in rows], ["fit"] * len(rows)
        )
        items, chosen = Asked(few), scales[0]
        for scale in scales[1:]:
            draws = items.under_draws(model, posterior.scaled(scale))
            if nll_of(Said.of_draws(draws.numpy(), antithetic=True), few, "fit") > nll + COST:
                break
            chosen = scale
        return chosen


class Found(dict[str, Said]):
    """Predictors by name, and what was fitted."""

    facts: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.facts = {}

    def add_point(self, name: str, said: Said, asked: Questions) -> None:
        """Add a predictor as it is and with a fitted temperature."""
        self[name] = said
        self[f"{name} + temperature"], self.facts[f"{name}: temperature"] = tempered(said, asked)


def said(arm: str, setting: Setting) -> Found:
    """What an arm says."""
    return remembered(arm, setting, partial(ARMS[arm], setting))


def remembered(name: str, setting: Setting, make: Callable[[], Found]) -> Found:
    """What ``make`` finds for a setting, kept on disk: scores can be computed again without a model."""
    kept = setting.folder / "said" / f"{name}_{setting.adapter}.npz"
    found = Found()
    if kept.is_file():
        arrays = np.load(kept)
        for one in json.loads(str(arrays["names"])):
            found[one] = Said(*(arrays.get(f"{one}/{part}") for part in PARTS))
        found.facts = json.loads(str(arrays["facts"]))
        return found
    found = make()
    values = {f"{key}/{part}": getattr(one, part) for key, one in found.items() for part in PARTS}
    given = {key: value for key, value in values.items() if value is not None}
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, names=json.dumps(list(found)), facts=json.dumps(found.facts), **given)
    return found


def base_model(setting: Setting) -> Found:
    """The model before any adapter."""
    found = Found()
    with wearing(None) as model:
        found["mean"] = Said(setting.items.at_mean(model).numpy())
    return found


def adamw(setting: Setting) -> Found:
    """AdamW: its weights, and with a temperature."""
    found = Found()
    found.add_point("mean", Said(_member(setting, 0).numpy()), setting.asked)
    return found


def ensemble(setting: Setting) -> Found:
    """Mixture of AdamW runs with other starts, orders of rows and seeds."""
    found = Found()
    draws = torch.stack([_member(setting, run) for run in range(MEMBERS)])
    found.add_point("mixture", Said.of_draws(draws.numpy(), antithetic=False), setting.asked)
    return found


def dropout(setting: Setting) -> Found:
    """AdamW with dropout on the adapter's inputs, which stays on for 8 passes."""
    found = Found()
    with wearing(Posterior.from_pretrained(setting.trained("adamw_dropout"))) as model:
        found.add_point("mean", Said(setting.items.at_mean(model).numpy()), setting.asked)
        passes = setting.items.with_dropout(model)
    found["draws"] = Said.of_draws(passes.numpy(), antithetic=False)
    return found


def laplace(setting: Setting) -> Found:
    """Posterior of the AdamW adapter from gradients at its weights (``vlora posterior``)."""
    return of_posterior(setting, Posterior.from_pretrained(laplace_folder(setting)))


def ivon(setting: Setting) -> Found:
    """IVON as ``vlora train`` has it."""
    return of_posterior(setting, Posterior.from_pretrained(setting.trained("ivon")))


def of_posterior(setting: Setting, posterior: Posterior) -> Found:
    """Mean, draws as trained and at a fitted width, and the linearised model of one posterior."""
    found, items = Found(), setting.items
    with wearing(posterior) as model:
        mean = items.at_mean(model)
        found.add_point("mean", Said(mean.numpy()), setting.asked)

        def drawn(scale: float) -> Said:
            return Said.of_draws(items.under_draws(model, posterior.scaled(scale)).numpy(), antithetic=True)

        found["draws"] = drawn(1.0)
        scale = setting.widest_draws(model, posterior, nll_of(found["mean"], setting.asked, "fit"))
        found["draws, fitted width"] = drawn(scale)
        found.facts["draws: width"] = scale
        whole = whole_fisher(model, setting.train)
        more, facts = linearised(model, posterior, items, mean, setting.asked, whole)
    found.update(more)
    found.facts |= facts | _width(posterior)
    return found


def directed(source: str, setting: Setting) -> Found:
    """Draws with the covariance of the full matrix, which the linearised model has too: they differ in linearity."""
    folder = laplace_folder(setting) if source == "adamw" else setting.trained(source)
    posterior, found = Posterior.from_pretrained(folder), Found()
    with wearing(posterior) as model:
        mean = Said(setting.items.at_mean(model).numpy())
        whole = whole_fisher(model, setting.train)
        add_directed(found, setting, model, posterior, whole, nll_of(mean, setting.asked, "fit"))
    return found


def add_directed(
    found: Found, setting: Setting, model: nn.Module, posterior: Posterior, whole: Leading, nll: float
) -> None:
    """Add draws with the covariance of a Fisher matrix over all tensors, few and many, at their widest width."""
    along = replace(posterior, covariance="leading", directions=whole).at_temperature(1.0)
    width = setting.widest_draws(model, along, nll, WIDTHS)
    many = setting.items.under_draws(model, along.scaled(width), MANY)
    found["full draws"] = Said.of_draws(many[:DRAWS].numpy(), antithetic=True)
    found[f"full draws, {MANY}"] = Said.of_draws(many.numpy(), antithetic=True)
    found.facts["full draws: width"] = width


def laplace_folder(setting: Setting) -> Path:
    """Folder of the Laplace posterior of the AdamW adapter; a finished one is not repeated."""
    output = setting.folder / "laplace" / setting.adapter
    if not (output / "posterior.json").is_file():
        train = setting.files[f"train_{setting.adapter}"]
        config = load_config(
            PosteriorConfig,
            {
                "adapter": str(setting.trained("adamw")),
                "base_model": str(model_folder()),
                "task": "causal_lm",
                "data": data_block(train),
                "batch_size": 64,
                "output": str(output),
            },
        )
        run_posterior(config)
    return output


def _member(setting: Setting, run: int) -> Tensor:
    """Log-probabilities of one AdamW run, kept for the ensemble."""
    kept = setting.folder / f"adamw_{run}" / f"{setting.adapter}.safetensors"
    if not kept.is_file():
        folder = setting.trained("adamw", run)
        with wearing(Posterior.from_pretrained(folder)) as model:
            save_file({"log_probs": setting.items.at_mean(model)}, kept)
    return load_file(kept)["log_probs"]


def _width(posterior: Posterior) -> dict[str, Any]:
    std = torch.cat([value.flatten() for value in posterior.std().values()])
    quantiles = [float(std.quantile(q)) for q in (0.05, 0.5, 0.95)]
    ess = posterior.meta.ess
    return {"std_quantiles": quantiles, "ess": ess if isinstance(ess, float) else math.nan}


ARMS: dict[str, Callable[[Setting], Found]] = {
    "base": base_model,
    "adamw": adamw,
    "dropout": dropout,
    "ensemble": ensemble,
    "laplace": laplace,
    "ivon": ivon,
    "adamw_directed": partial(directed, "adamw"),
    "ivon_directed": partial(directed, "ivon"),
}
"""Name -> what it says about a setting's questions."""
