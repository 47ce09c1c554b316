"""The same question as ``rates`` for a narrow language model: LoRA on stories260K (width 64), NLL of held-out texts.

    python -m benchmarks.posterior_quality.rates_text --data DATA --work WORK --base STORIES260K

Trained by ``vlora train`` as it comes but for the learning rate, one pass over the rows. A run whose file exists is not
repeated.
"""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.merge_text.texts import TOKENS
from benchmarks.posterior_quality.rates import RESULTS, SEED
from benchmarks.rows import keep_record, read_rows, write_rows

WIDTH, BATCH, HELD_OUT = 64, 8, 200
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
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

    rows = [{"text": text} for text in texts(head["task"], data)]
    files = {"train": rows[HELD_OUT:][: head["rows"]], "held_out": rows[:HELD_OUT]}
    place = work / f"rates_{head['task']}_{head['steps']}_{head['lr']:g}"
    for name, part in files.items():
        write_rows(part, work / f"{head['task']}_{head['steps']}_{name}.jsonl")
    if not place.exists():
        run_training(
            load_config(
                TrainConfig,
                {
                    "base_model": str(base),
                    "task": "causal_lm",
                    "data": {
                        "train": str(work / f"{head['task']}_{head['steps']}_train.jsonl"),
                        "text": "text",
                        "max_length": TOKENS,
                    },
                    "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
                    "training": {"num_train_epochs": 1, "per_device_train_batch_size": BATCH},
                    "optimizer": {"name": "ivon", "lr": head["lr"]},
                    "seed": head["seed"],
                    "output": str(place),
                },
            )
        )
    return {"nll": held_out_nll(place, base, [row["text"] for row in files["held_out"]])}


def texts(name: str, data: Path) -> list[str]:
    """All training texts."""
    rows = read_rows(data / name / "train.jsonl.gz")
    if name == "gsm8k":
        return [f"{row['question']}\n{row['answer_text']}" for row in rows]
    return ["\n".join(row[p] for p in ("instruction", "input", "output") if row[p]) for row in rows]


def held_out_nll(place: Path, base: Path, rows: list[str]) -> float:
    """Mean NLL of a token in nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), place).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    total, count = 0.0, 0
    with torch.no_grad():
        for text in rows:
            ids = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")["input_ids"]
            log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
            total -= log_probs.gather(1, ids[0, 1:, None]).sum().item()
            count += ids.shape[1] - 1
    return total / count


if __name__ == "__main__":
    main()
