"""``vlora demo``: the whole road on the closed world, from data to report, with the ordinary programs.

Every stage is a configuration in ``<out>/configs``; ``vlora train <out>/configs/train_a_ivon.yaml`` repeats one.
A second call goes on where the first one stopped and repeats nothing that is done.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlora.config import load_config, save_config
from vlora.errors import ConfigError, PosteriorFormatError
from vlora.eval.config import EvalConfig
from vlora.files import atomic_write
from vlora.merge.config import MergeConfig
from vlora.merge.run import run_merge
from vlora.recipes.closed_world import build_world, write_datasets
from vlora.recipes.demo_configs import MERGES, eval_config, merge_config, train_config
from vlora.recipes.demo_summary import draw_picture, summary_table
from vlora.recipes.evaluate import evaluate
from vlora.training.config import TrainConfig
from vlora.training.train import run_training

__all__ = ["run_demo"]

TRAIN_STEPS = 240
NUM_SAMPLES = 8


def run_demo(out: Path, *, seed: int = 0, steps: int = TRAIN_STEPS, num_samples: int = NUM_SAMPLES) -> Path:
    """Teach two adapters with IVON and with AdamW, merge them, ask all of them about everybody.

    Args:
        out: Folder for data, configurations, adapters, merges, report and picture.
        seed: Of the people and their facts, and of the training runs.
        steps: Optimizer steps per adapter.
        num_samples: Posterior draws in the evaluation.

    Returns:
        Path of ``report.html``.
    """
    started = time.monotonic()
    world = out / "world.txt"
    settings = f"seed {seed}\n"
    if out.exists() and any(out.iterdir()) and not world.is_file():
        raise ConfigError(f"{out} holds something other than a demo; choose another folder with --out")
    if world.is_file() and world.read_text(encoding="utf-8") != settings:
        raise ConfigError(f"{out} holds the demo of another seed; choose another folder with --out")
    atomic_write(world, settings)
    data = write_datasets(build_world(seed), out / "data")
    road = _Road(out)
    for optimizer in ("ivon", "adamw"):
        for adapter in ("a", "b"):
            settings_of = train_config(out, data, adapter, optimizer, seed=10 * seed, steps=steps)
            road.go(f"train_{adapter}_{optimizer}", TrainConfig, settings_of, run_training)
    for name in MERGES:
        road.go(f"merge_{name}", MergeConfig, merge_config(out, name), run_merge)
    road.go("eval", EvalConfig, eval_config(out, data, num_samples=num_samples), evaluate)
    report = out / "report" / "report.html"
    draw_picture(out / "report" / "results.json", out / "picture.png")
    print(summary_table(out / "report" / "results.json"))
    print(f"report   {report}\npicture  {out / 'picture.png'}\ntime     {time.monotonic() - started:.0f} s")
    return report


class _Road:
    """Runs the stages in order; a stage is skipped when it is done and nothing before it was repeated."""

    def __init__(self, out: Path) -> None:
        self.configs = out / "configs"
        self.configs.mkdir(parents=True, exist_ok=True)
        self.repeated = False

    def go(self, name: str, cls: type, settings: dict[str, Any], run: Callable[[Any], Any]) -> None:
        config = load_config(cls, {**settings, "overwrite": True})
        output, file = Path(config.output), self.configs / f"{name}.yaml"
        if not self.repeated and _is_done(output, cls, config, file):
            print(f"{name:28} done already")
            return
        self.repeated = self.repeated or output.exists()
        started = time.monotonic()
        run(config)
        save_config(config, file)  # last: a stage that was stopped is not done
        print(f"{name:28} {time.monotonic() - started:6.1f} s   {output}")


def _is_done(output: Path, cls: type, config: Any, file: Path) -> bool:
    if not output.is_dir() or not file.is_file():
        return False
    try:
        return load_config(cls, file) == config
    except (ConfigError, PosteriorFormatError):
        return False
