"""The tiny Llama with an adapter on it, and what it says: log-probabilities of a relation's 24 values.

Passes at the mean and under draws are those of ``vlora eval`` (``vlora.eval.score``). Gradients of the 24 scores are
taken once for all covariances that are tried on them.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.closed_world.worlds import Questions
from vlora.backward import watched
from vlora.data import RowFormat, examples_from_rows
from vlora.eval.forward import Draws
from vlora.eval.score import build_scorer, score_model
from vlora.models import load_adapter, load_base_model, load_tokenizer
from vlora.posterior import Posterior
from vlora.recipes.closed_world import model_folder

__all__ = ["DRAWS", "Asked", "wearing"]

DRAWS = 8
ROWS = 32
"""Rows whose gradients are held at once."""
FORMAT = RowFormat(prompt="prompt", choices="choices", answer="answer", max_length=32)

logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def wearing(posterior: Posterior | None) -> Iterator[nn.Module]:
    """The base model, or an adapter on it."""
    model = load_base_model(str(model_folder()), task="causal_lm")
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    yield model if posterior is None else load_adapter(model, posterior)


class Asked:
    """Questions, tokenised once, for any model on the base.

    Args:
        asked: The questions.
    """

    def __init__(self, asked: Questions) -> None:
        self.tokenizer = load_tokenizer(str(model_folder()))
        examples = examples_from_rows("multiple_choice", asked.rows, FORMAT, require_label=False)
        model = load_base_model(str(model_folder()), task="causal_lm")
        self.scorer = build_scorer(
            "multiple_choice", examples, self.tokenizer, FORMAT, model.config, max_tokens=2048
        )
        self.prompts = [self.tokenizer(row["prompt"])["input_ids"] for row in asked.rows]
        self.values = torch.tensor([self._values(tuple(row["choices"])) for row in asked.rows])

    def at_mean(self, model: nn.Module) -> Tensor:
        """Log-probabilities ``(N, K)`` with the weights as they are."""
        return _known(score_model(self.scorer, Draws(model)).log_probs)

    def under_draws(self, model: nn.Module, posterior: Posterior, count: int = DRAWS) -> Tensor:
        """Log-probabilities ``(S, N, K)`` of antithetic draws."""
        held = Draws(model, posterior, num_samples=count, antithetic=True)
        return _known(score_model(self.scorer, held).sample_log_probs).transpose(0, 1).contiguous()

    @torch.no_grad()
    def scores(self, model: nn.Module) -> Tensor:
        """Logits ``(N, K)`` of the K values behind every prompt, quickly: their softmax is :meth:`at_mean`'s."""
        rows = range(len(self.prompts))
        return torch.cat([self._scores(model, list(rows[i : i + 256])) for i in rows[::256]])

    def with_dropout(self, model: nn.Module, count: int = DRAWS, seed: int = 0) -> Tensor:
        """Log-probabilities ``(S, N, K)`` with the adapter's own dropout left on."""
        layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
        torch.manual_seed(seed)
        for layer in layers:
            layer.train()
        found = torch.stack([self.at_mean(model) for _ in range(count)])
        model.eval()
        return found

    def gradients(self, model: nn.Module, rows: Sequence[int] | None = None) -> Iterator[dict[str, Tensor]]:
        """Gradients of the K values' scores in batches of rows: key of the adapter -> ``(B, K, *tensor)``."""
        layers = {
            module: name.removesuffix(".default") + ".weight"
            for name, module in model.named_modules()
            if name.endswith((".lora_A.default", ".lora_B.default"))
        }
        chosen = list(range(len(self.prompts)) if rows is None else rows)
        for start in range(0, len(chosen), ROWS):
            yield self._gradients(model, layers, chosen[start : start + ROWS])

    def _gradients(
        self, model: nn.Module, layers: dict[nn.Module, str], rows: list[int]
    ) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {key: [] for key in layers.values()}

        def receive(key: str, inputs: Tensor, gradient: Tensor) -> None:
            found[key].append(gradient.mT @ inputs)

        with torch.enable_grad(), watched({layer: partial(receive, key) for layer, key in layers.items()}):
            scores = self._scores(model, rows)
            for k in range(scores.shape[1]):
                scores[:, k].sum().backward(retain_graph=k + 1 < scores.shape[1])
        return {key: torch.stack(parts, 1) for key, parts in found.items()}

    def _scores(self, model: Any, rows: list[int]) -> Tensor:
        """Logits of the K values behind each prompt; equal to their log-likelihoods up to a constant of the row."""
        prompts = [torch.tensor(self.prompts[row]) for row in rows]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask).logits
        last = logits[torch.arange(len(rows)), lengths - 1]
        return last.gather(1, self.values[rows])

    def _values(self, choices: tuple[str, ...]) -> list[int]:
        found: Any = self.tokenizer.convert_tokens_to_ids(list(choices))
        return found


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value
