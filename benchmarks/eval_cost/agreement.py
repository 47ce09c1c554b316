"""Does the linearised variance follow the draws as they get narrow, and what does it cost? One JSON a unit.

    python -m benchmarks.eval_cost.agreement --data DATA --stories MODEL --work WORK [--units 'stories-*']
    python -m benchmarks.eval_cost.table

DATA holds ``tinystories_1k/ascii.jsonl.gz``, MODEL stories260K; the closed world comes with the package. One adapter a
model is trained with IVON and kept in WORK. A unit is a model and a task. For every item the variance of a
log-probability (of the text, or of the most probable choice) is taken from ``DRAWS`` antithetic draws and from the
linearised model, ``g^T Sigma g``, at the width of training and at parts of it, with the same noise at every width.
First order in the weights is exact in the limit: correlation and ratio must go to 1, up to the noise of the draws.
Sigma has independent entries, or in ``-leading`` the ``DIRECTIONS`` leading directions over all tensors at once; what
these leave out is as wide as the entries that training gave are in the median.
"""

import argparse
import fnmatch
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.rows import keep_record, read_rows, write_rows
from vlora.config import load_config
from vlora.eval.config import EvalConfig
from vlora.eval.forward import Draws
from vlora.eval.linearised import Wanted
from vlora.eval.predictive import logit_covariances
from vlora.eval.prepare import Evaluation, prepare
from vlora.eval.score import Scores, run_scorer, score_model
from vlora.eval.sink import Sink, draw_name
from vlora.posterior import Posterior
from vlora.posterior.ranks import spearman
from vlora.recipes.closed_world import build_world, write_datasets
from vlora.recipes.demo_configs import train_config
from vlora.training.config import TrainConfig
from vlora.training.train import run_training

RESULTS = Path(__file__).parent / "results" / "agreement"
UNITS = tuple(
    f"{model}-{task}{covariance}"
    for covariance in ("", "-leading")
    for model in ("closed_world", "stories")
    for task in ("causal_lm", "multiple_choice")
)
ITEMS, DRAWS, STEPS = 32, 128, 120
DIRECTIONS = 256
WIDTHS = (1.0, 0.5, 0.25, 0.125)
"""Parts of the width of training."""
COST_DRAWS = 8
PROMPT_WORDS, CHOICE_WORDS, TEXT_TOKENS = 12, 4, 48


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--stories", type=Path, required=True, help="folder of the stories260K model")
    parser.add_argument("--work", type=Path, required=True, help="folder for adapters and rows")
    parser.add_argument("--units", default="*", help="only units whose name matches")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in UNITS:
        if fnmatch.fnmatch(name, args.units):
            record = keep_record(RESULTS / f"{name}.json", lambda name=name: measure(name, args))
            print(name, "there" if record is None else f"{record['seconds']:.0f} s", flush=True)


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Agreement at every width, and cost."""
    model_name, task, *leading = name.split("-")
    config = (closed_world if model_name == "closed_world" else stories)(task, args)
    evaluation = prepare(load_config(EvalConfig, config))
    posterior = evaluation.subjects[0].posterior
    assert posterior is not None
    median_std = float(torch.cat([sd.flatten() for sd in posterior.std().values()]).median())
    if leading:
        posterior = led(posterior, median_std)
    with evaluation.host.wearing(posterior) as model:
        widths = [agreement(evaluation, model, posterior, width) for width in WIDTHS]
        costs = cost(evaluation, model, posterior)
    return {
        "model": model_name,
        "task": task,
        "covariance": posterior.covariance,
        "items": len(evaluation.items),
        "draws": DRAWS,
        "outputs": max((len(item.example.choices or "x") for item in evaluation.items), default=1),
        "parameters": sum(h.numel() for h in posterior.hess.values()),
        "median_std": median_std,
        "widths": widths,
        "cost": costs,
    }


def led(posterior: Posterior, std: float) -> Posterior:
    """The same mean with the covariance of its leading directions, ``std`` wide in what they leave out."""
    assert posterior.directions is not None
    directions = posterior.directions.resting(std**-2)
    return replace(posterior, covariance="leading", directions=directions).at_temperature(1.0)


def agreement(evaluation: Evaluation, model: nn.Module, posterior: Posterior, width: float) -> dict[str, Any]:
    """Variance by the linearised model against the variance over draws, at a part of the width of training."""
    narrow = posterior.scaled(width)
    scores = score_model(evaluation.scorer, Draws(model, narrow, DRAWS, antithetic=True))
    covariance = logit_covariances(evaluation.scorer, model, [Wanted([narrow], narrow.covariance)])[0]
    sampled, linearised = variances(scores, covariance)
    error = np.abs(linearised / sampled - 1)
    return {
        "width": width,
        "rank_correlation": spearman(torch.from_numpy(linearised), torch.from_numpy(sampled)),
        "median_relative_error": float(np.median(error)),
        "ratio": float(linearised.sum() / sampled.sum()),
        "median_variance": float(np.median(sampled)),
        "sampled": sampled.tolist(),
        "linearised": linearised.tolist(),
    }


def variances(scores: Scores, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every item, over draws and to first order, in squared nats.

    For choices ``log p_k = z_k - log sum exp z`` has the gradient ``e_k - p`` in the logits.
    """
    if scores.texts is not None:
        return np.array([text["nll_std"] ** 2 for text in scores.texts]), covariance[:, 0, 0]
    assert scores.log_probs is not None and scores.sample_log_probs is not None
    log_probs, samples = scores.log_probs.numpy(), scores.sample_log_probs.numpy()
    rows, best = np.arange(len(log_probs)), log_probs.argmax(1)
    slope = np.eye(log_probs.shape[1])[best] - np.exp(log_probs)
    return samples[rows, :, best].var(axis=1, ddof=1), np.einsum("nk,nkl,nl->n", slope, covariance, slope)


def cost(evaluation: Evaluation, model: nn.Module, posterior: Posterior) -> dict[str, dict[str, float]]:
    """Tokens through the whole model as vlora counts them, and CPU seconds (the least of two), of one scoring."""
    scorer = evaluation.scorer
    keys = [str(item) for item in range(scorer.num_items)]

    def draws(count: int) -> Sink:
        which: list[int | None] = list(range(count)) or [None]
        sink = Sink(keys, [draw_name(draw, count > 0) for draw in which], whole=scorer.whole)
        run_scorer(
            scorer, Draws(model, posterior if count else None, count, antithetic=count > 0), which, sink
        )
        return sink

    def linearised() -> Sink:
        sink = Sink(keys, ["linearised"])
        scorer.linearise(model, [Wanted([posterior], posterior.covariance)], sink)
        return sink

    runs: dict[str, Callable[[], Sink]] = {
        "mean": lambda: draws(0), "draws": lambda: draws(COST_DRAWS), "linearised": linearised
    }  # fmt: skip
    found = {}
    for name, run in runs.items():
        seconds, tokens = [], 0.0
        for _ in range(2):
            start = time.process_time()
            tokens = run().tokens
            seconds.append(time.process_time() - start)
        found[name] = {"tokens": tokens, "cpu_seconds": min(seconds)}
    return found


def closed_world(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """One adapter of the demo, asked about everybody it could know."""
    work = args.work / "closed_world"
    data = write_datasets(build_world(0), work / "data")
    settings = train_config(work, data, "a", "ivon", seed=0, steps=STEPS)
    trained(settings)
    rows = [row for row in _lines(data["test"]) if row["answer"] is not None and row["group"] == "a_clean"]
    columns = {"prompt": "prompt", "choices": "choices", "answer": "answer", "response": "response"}
    test = write_rows(rows[:ITEMS], work / "items.jsonl")
    return evaluated(task, settings, {"test": test, **columns, "append_eos": False, "max_length": 32})


def stories(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """An adapter on stories, asked how they go on: words of the story against words of three others."""
    work = args.work / "stories"
    texts = [row["text"] for row in read_rows(args.data / "tinystories_1k" / "ascii.jsonl.gz")]
    path = write_rows([{"text": text} for text in texts[:600]], work / "train.jsonl")
    kept = [text.split() for text in texts[600 : 600 + ITEMS]]
    settings = {
        "base_model": str(args.stories), "task": "causal_lm", "seed": 0, "output": str(work / "adapter"),
        "data": {"train": path, "text": "text", "max_length": 96},
        "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "optimizer": {"name": "ivon", "lr": 1e-3},
        "training": {"per_device_train_batch_size": 8, "max_steps": STEPS, "use_cpu": True, "max_grad_norm": 0},
    }  # fmt: skip
    trained(settings)
    after = [" ".join(words[PROMPT_WORDS : PROMPT_WORDS + CHOICE_WORDS]) for words in kept]
    rows = [
        {
            "text": " ".join(words), "prompt": " ".join(words[:PROMPT_WORDS]), "answer": 0,
            "choices": [after[i], *(after[(i + j) % ITEMS] for j in (1, 2, 3))],
        }
        for i, words in enumerate(kept)
    ]  # fmt: skip
    test = {"test": write_rows(rows, work / "items.jsonl"), "max_length": TEXT_TOKENS}
    asked = {"prompt": "prompt", "choices": "choices", "answer": "answer"}
    return evaluated(task, settings, {**test, **({"text": "text"} if task == "causal_lm" else asked)})


def trained(settings: dict[str, Any]) -> None:
    """Train an adapter and measure its leading directions, unless its folder exists."""
    if not Path(settings["output"]).exists():
        run_training(load_config(TrainConfig, settings | {"directions": DIRECTIONS}))


def evaluated(task: str, settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation of a trained adapter."""
    return {
        "model": settings["output"], "base_model": settings["base_model"], "task": task, "data": data,
        "num_samples": DRAWS, "output": settings["output"] + "_unused",
    }  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
