"""The arm of the posterior over all tensors at once: leading directions at an adapter's weights, drawn from.

For the AdamW adapter and for IVON's mean alike, ``vlora posterior`` measures the directions with labels drawn from the
model; h plays no part. The width is that of the draws in ``benchmarks/closed_world``: the widest, in steps of a factor
of two on the standard deviations, at which the mixture of draws costs known people at most ``COST`` nats over the mean,
on the rows of the part ``fit``.
"""

from pathlib import Path

from benchmarks.closed_world.linearised import COST
from benchmarks.closed_world.model import Asked, wearing
from benchmarks.closed_world.scores import Said, nll_of
from benchmarks.closed_world.worlds import Questions, data_block
from benchmarks.generation.worlds import taught, trainings
from vlora import Posterior
from vlora.config import load_config
from vlora.laplace.config import PosteriorConfig
from vlora.laplace.run import run_posterior
from vlora.recipes.closed_world import model_folder

__all__ = ["DIRECTIONS", "OPTIMIZERS", "PRECISIONS", "drawn_folder", "widest"]

OPTIMIZERS = ("ivon", "adamw")
DIRECTIONS = 256
PRECISIONS = tuple(4.0**k for k in range(9, -3, -1))
"""Of what the directions leave out, from narrow to wide; a factor of two on the standard deviations each."""


def drawn_folder(seed: int, setting: str, adapter: str, optimizer: str, work: Path, found: Questions) -> Path:
    """Folder of a posterior with leading directions at its widest width; a finished one is not repeated.

    Args:
        seed: Of the world.
        setting: ``word``: the width takes answers of one token.
        adapter: ``a`` or ``b``.
        optimizer: Whose adapter.
        work: Where worlds and adapters are kept.
        found: The questions.
    """
    folder = work / f"world_{seed}" / f"leading_{optimizer}" / adapter
    if (folder / "posterior.json").is_file():
        return folder
    measured = folder.with_name(f"{adapter}_measured")
    if not (measured / "posterior.json").is_file():
        config = {
            "adapter": str(taught(seed, setting, adapter, optimizer, work)),
            "base_model": str(model_folder()),
            "task": "causal_lm",
            "data": data_block(trainings(seed, setting, adapter, work)),
            "fisher": "sampled",
            "prior_precision": 1.0,
            "directions": DIRECTIONS,
            "batch_size": 64,
            "health_examples": 0,
            "output": str(measured),
        }
        run_posterior(load_config(PosteriorConfig, config))
    posterior = Posterior.from_pretrained(measured)
    posterior.with_prior(widest(posterior, found)).save_pretrained(folder)
    return folder


def widest(posterior: Posterior, found: Questions) -> float:
    """Smallest precision at which draws cost known people at most ``COST`` nats."""
    rows = [i for i, part in enumerate(found.part) if part == "fit"]
    few = Questions([found.rows[i] for i in rows], [found.group[i] for i in rows], ["fit"] * len(rows))
    items, chosen = Asked(few), PRECISIONS[0]
    drawing = posterior.drawing("leading")
    with wearing(posterior) as model:
        limit = nll_of(Said(items.at_mean(model).numpy()), few, "fit") + COST
        for precision in PRECISIONS[1:]:
            draws = items.under_draws(model, drawing.with_prior(precision)).numpy()
            if nll_of(Said.of_draws(draws, antithetic=True), few, "fit") > limit:
                break
            chosen = precision
    return chosen
