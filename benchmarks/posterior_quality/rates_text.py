"""The same question as ``rates`` for a narrow language model: LoRA on stories260K (width 64), NLL of held-out texts.

    python -m benchmarks.posterior_quality.rates_text --data DATA --work WORK --base STORIES260K

Trained by ``vlora train`` as it comes but for the learning rate, one pass over the rows. A run whose file exists is not
repeated.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.merge_text.arms import Bench
from benchmarks.merge_text.texts import TOKENS, read_texts
from benchmarks.posterior_quality.rates import RESULTS, SEED
from benchmarks.rows import keep_record, write_rows

WIDTH, BATCH, HELD_OUT = 64, 8, 200
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
KINDS = {"gsm8k": "school", "alpaca_demo": "instructions"}
"""Names of the texts in ``merge_text``."""
STEPS = {"gsm8k": (100, 400, 900), "alpaca_demo": (100,)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the files and adapters")
    parser.add_argument("--base", type=Path, required=True, help="folder of the model")
    args = parser.parse_args()
    for name, lengths in STEPS.items():
        for steps in lengths:
            for lr in RATES:
                head = {
                    "task": name,
                    "rows": BATCH * steps,
                    "steps": steps,
                    "lr": lr,
                    "seed": SEED,
                    "width": WIDTH,
                }
                keep_record(
                    RESULTS / f"{name}_{steps}_{lr:g}.json",
                    lambda head=head: head | measure(head, args.data, args.work, args.base),
                )


def measure(head: dict[str, Any], data: Path, work: Path, base: Path) -> dict[str, Any]:
    """NLL a token of held-out rows of the training file, by the mean."""
    from vlora.config import load_config
    from vlora.training import TrainConfig
    from vlora.training.train import run_training

    name, steps = head["task"], head["steps"]
    kind = KINDS[name]
    rows = [{"text": text, "kind": kind} for text in read_texts(kind, data)[0]]
    files = {part: str(work / f"{name}_{steps}_{part}.jsonl") for part in ("train", "held_out")}
    write_rows(rows[HELD_OUT:][: head["rows"]], Path(files["train"]))
    write_rows(rows[:HELD_OUT], Path(files["held_out"]))
    place = work / f"rates_{name}_{steps}_{head['lr']:g}"
    config = {
        "base_model": str(base),
        "task": "causal_lm",
        "data": {"train": files["train"], "text": "text", "max_length": TOKENS},
        "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        "training": {"num_train_epochs": 1, "per_device_train_batch_size": BATCH},
        "optimizer": {"name": "ivon", "lr": head["lr"]},
        "seed": head["seed"],
        "output": str(place),
    }
    if not place.exists():
        run_training(load_config(TrainConfig, config))
    bench = Bench(base, files, work)
    return {"nll": bench.scores({"mean": place}, "held_out", Path(f"{place}_eval"))["mean"][kind]}


if __name__ == "__main__":
    main()
