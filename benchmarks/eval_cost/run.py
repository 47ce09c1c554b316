"""What does an evaluation with S posterior draws cost? Tokens through the blocks and CPU seconds, one JSON a unit.

    python -m benchmarks.eval_cost.run --data DATA [--units 'arc_easy-all*']
    python -m benchmarks.eval_cost.table

DATA holds ``arc_easy`` and ``openbookqa``, each with ``train.jsonl.gz`` and ``test.jsonl.gz``. A unit whose file exists
under ``results/`` is not repeated. Where lm-evaluation-harness is installed, it scores the same items with the same
model; its units are left out elsewhere.
"""

import argparse
import fnmatch
import importlib
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.eval_cost.cases import ADAPTERS, CASES, SHOTS, Case, adapted, base_model, items
from vlora.data import RowFormat
from vlora.eval.forward import Draws, unwrapped
from vlora.eval.score import build_scorer, collect, run_scorer
from vlora.eval.score_choices import ChoiceScorer, encode_choices
from vlora.eval.sink import Sink
from vlora.stacked.blocks import block_list

RESULTS = Path(__file__).parent / "results"
FORMAT = RowFormat(prompt="question", max_length=2048)
TOKENS = 1024
"""Tokens in a batch, for every method."""
UNITS = ("all-naive-1", "all-lm_eval-1", "all-ours-1", "all-ours-8", "upper-ours-8", "all-naive-8")
"""Adapted blocks, method, parameter vectors."""
PACKAGES = ("variational-lora", "torch", "transformers", "peft", "lm_eval")


def main() -> None:
    """Parse the arguments and run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--units", default="*", help="only units whose name matches")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"{case}-{unit}" for case in CASES for unit in UNITS]
    if importlib.util.find_spec("lm_eval") is None:
        names = [name for name in names if "lm_eval" not in name]
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        if fnmatch.fnmatch(name, args.units) and not (RESULTS / f"{name}.json").exists():
            measure(name, args.data)


def measure(name: str, data: Path) -> None:
    """Run one unit and write its file."""
    case_name, adapter, method, samples = name.split("-")
    case = items(case_name, data)
    model, posterior = adapted(base_model(), ADAPTERS[adapter])
    which: list[int | None] = [None] if samples == "1" else list(range(int(samples)))
    if method == "lm_eval":
        importlib.import_module("lm_eval.models.huggingface")  # its import is no part of the cost
    draws = Draws(model, posterior, int(samples), antithetic=True, scoring="auto")
    run: Callable[[], Tensor] = {
        "naive": lambda: naive(case, draws, which),
        "lm_eval": lambda: harness(case, model),
    }.get(method, lambda: vlora(case, draws, which))
    with counted(model) as counts:
        start = time.process_time()
        found = run()
        seconds = time.process_time() - start
    result = {
        "case": case_name, "adapter": adapter, "method": method, "vectors": len(which), "items": len(case.examples),
        "shots": SHOTS, **counts, "cpu_seconds": seconds, "choice_tokens": choice_tokens(case),
        "log_probs": [[round(x, 6) for x in row] for row in found.tolist()],
        "versions": versions(), "hardware": hardware(),
    }  # fmt: skip
    temporary = RESULTS / f".{name}.tmp"
    temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    temporary.replace(RESULTS / f"{name}.json")
    print(name, f"{counts['block_tokens']:.0f} tokens, {seconds:.1f} s", flush=True)


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, float]]:
    """Count tokens: those given to the model, and those that run through its blocks (padding included), per block."""
    counts = {"calls": 0, "given_tokens": 0, "block_tokens": 0.0}
    blocks = block_list(model)
    assert blocks is not None

    def given(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        counts["calls"] += 1
        counts["given_tokens"] += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()

    def through(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        counts["block_tokens"] += hidden.shape[0] * hidden.shape[1] / len(blocks)

    inner = unwrapped(model)
    handles = [inner.register_forward_pre_hook(given, with_kwargs=True)]
    # before the last shared block repeats its output: hooks run in the order of their making
    handles += [block.register_forward_hook(through) for block in blocks]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def vlora(case: Case, draws: Draws, which: Sequence[int | None]) -> Tensor:
    """Log-probabilities of the choices [N, K], the mixture of the vectors."""
    scorer = build_scorer(
        "multiple_choice", case.examples, case.tokenizer, FORMAT, draws.model.config, max_tokens=TOKENS
    )
    assert isinstance(scorer, ChoiceScorer)
    sink = Sink([str(item) for item in range(scorer.num_items)], [str(draw) for draw in which])
    run_scorer(scorer, draws, which, sink)
    results = [sink.result(item) for item in range(scorer.num_items)]
    tables = [
        collect([[result[0], result[v]] for result in results], scorer.lengths) for v in range(len(which))
    ]
    per_vector = [t.sample_log_probs[:, 0] for t in tables if t.sample_log_probs is not None]
    return _mixture(per_vector)


def naive(case: Case, draws: Draws, which: Sequence[int | None]) -> Tensor:
    """One vector after another, every choice a row of its own behind its whole prompt."""
    encoded = encode_choices(case.examples, case.tokenizer, FORMAT, max_length=2048)
    rows = [(item, i, c) for item, own in enumerate(encoded) for i, c in enumerate(own)]
    rows.sort(key=lambda row: -len(row[2].input_ids))
    width = max(map(len, encoded))
    found = []
    for vector in which:
        scores = torch.full((len(encoded), width), float("-inf"), dtype=torch.float64)
        with draws.at(vector), torch.inference_mode():
            for batch in _cut(rows):
                _score_rows(draws.model, batch, scores)
        found.append(scores.log_softmax(-1))
    return _mixture(found)


def _cut(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start = 0
    while start < len(rows):
        size = max(1, TOKENS // (len(rows[start][2].input_ids) - 1))
        yield rows[start : start + size]
        start += size


def _score_rows(model: nn.Module, batch: Sequence[Any], scores: Tensor) -> None:
    fed = [choice.input_ids[:-1] for _, _, choice in batch]
    length = max(map(len, fed))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in fed])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in fed])
    log_probs = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    for row, (item, index, choice) in enumerate(batch):
        at = torch.arange(choice.prompt_length, len(choice.input_ids))
        scores[item, index] = log_probs[row, at - 1, torch.tensor(choice.input_ids)[at]].double().sum()


def harness(case: Case, model: nn.Module) -> Tensor:
    """lm-evaluation-harness on the same prompts, as a task of local rows."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import lm_eval  # pyright: ignore
    from lm_eval.api.task import ConfigurableTask  # pyright: ignore
    from lm_eval.models.huggingface import HFLM  # pyright: ignore

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        rows = [
            {"prompt": e.prompt, "choices": list(e.choices or ()), "answer": e.label} for e in case.examples
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = ConfigurableTask(
            config={
                "task": "cost",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(path)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{prompt}}",
                "doc_to_choice": "choices",
                "doc_to_target": "answer",
                "num_fewshot": 0,
            }  # fmt: skip
        )
        longest = max(len(case.tokenizer(e.prompt)["input_ids"]) for e in case.examples)  # pyright: ignore
        size = max(1, TOKENS // longest)
        lm = HFLM(pretrained=model, tokenizer=case.tokenizer, batch_size=size, max_length=2048)  # pyright: ignore
        done = lm_eval.evaluate(lm, {"cost": task}, bootstrap_iters=0, log_samples=True)  # pyright: ignore
    samples = sorted(done["samples"]["cost"], key=lambda sample: sample["doc_id"])  # pyright: ignore
    sums = [torch.tensor([float(pair[0][0]) for pair in s["resps"]], dtype=torch.float64) for s in samples]
    width = max(map(len, sums))
    return torch.stack(
        [nn.functional.pad(s, (0, width - len(s)), value=float("-inf")).log_softmax(-1) for s in sums]
    )


def choice_tokens(case: Case) -> dict[str, int]:
    """Tokens of all items by what they need: prompts once each, and what the choices add to them."""
    encoded = encode_choices(case.examples, case.tokenizer, FORMAT, max_length=2048)
    prompts = sum(own[0].prompt_length for own in encoded)
    return {
        "prompts": prompts,
        "choices": sum(len(c.input_ids) - 1 - c.prompt_length for own in encoded for c in own),
    }


def _mixture(per_vector: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(per_vector))
    return stacked.logsumexp(0) - torch.tensor(float(len(stacked))).double().log()


def versions() -> dict[str, str]:
    """Versions of what was used."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        if importlib.util.find_spec(package.replace("variational-lora", "vlora")) is not None:
            found[package] = metadata.version(package)
    return found


def hardware() -> dict[str, Any]:
    """Processor and load."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "load": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main()
