"""A ``vlora`` model for EleutherAI's lm-evaluation-harness: likelihoods averaged over draws, answers of the mean.

    python -m vlora.eval.lm_eval run --model vlora --model_args adapter=out/posterior --tasks arc_easy

runs the harness's own command line with the model registered; ``vlora lm-eval`` is the short form. Log-likelihoods are
those of whole strings (:mod:`vlora.eval.lm_eval_scores`): every draw scores all requests, then the draws are averaged.
A ``cache_requests`` or ``use_cache`` of the harness sees the average only. What each draw said stays in
``VloraLM.draw_scores``.

``generate_until`` answers from the posterior mean, greedy unless the task asks for sampling, up to the task's stop
strings or ``max_gen_toks``. With ``vote`` every draw answers as well, and the text that most draws give is the answer
(:func:`vlora.eval.lm_eval_scores.most_given`): for short answers, at the cost of S + 1 generations a request.

It is a module of its own because it needs the optional package: ``pip install 'variational-lora[lm-eval]'``.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vlora.errors import ConfigError, MissingDependencyError
from vlora.eval.lm_eval_scores import log_mean_exp, most_given, posterior_predictive
from vlora.models import load_adapter, load_base_model, load_tokenizer
from vlora.posterior import Posterior
from vlora.posterior.calibration import calibrated
from vlora.posterior.draws import check_draws, known_covariance
from vlora.quantization import Quantization

try:
    from lm_eval.api.model import CacheHook  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise MissingDependencyError(
        f"lm-evaluation-harness is needed ({error}); pip install 'variational-lora[lm-eval]'"
    ) from None

__all__ = ["VloraLM"]

logger = logging.getLogger(__name__)

_HFLM: Any = HFLM  # the registry's decorator hides its type
_registered: Any = register_model("vlora")


@_registered
class VloraLM(_HFLM):
    """A base model that wears a posterior, averaged over draws of whole strings.

    Attributes:
        posterior: The adapter, at its fitted width where one was fitted.
        num_samples: Draws S; 0 scores the mean.
        vote: Whether generated answers are those that most draws give.
        draw_scores: One entry per scored string, in the order of the requests of each call: its context, continuation
            and the log-probability under every draw; with ``vote`` one per generated answer too: its context, the
            mean's answer and that of every draw.
    """

    def __init__(
        self,
        adapter: str,
        base_model: str | None = None,
        num_samples: int = 8,
        antithetic: bool = True,
        covariance: str = "independent",
        stored_width: bool = True,
        vote: bool = False,
        dtype: str = "float32",
        quantization: Quantization = "none",
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load the base model and put the adapter on it.

        Args:
            adapter: Posterior folder, plain PEFT folder, or hub id of either.
            base_model: Folder or hub id; None takes the one that the adapter names.
            num_samples: Draws S. A plain adapter has none.
            antithetic: Draws 2j and 2j+1 mirror each other.
            covariance: Of the draws: ``independent`` entries, or ``leading`` directions over all tensors.
            stored_width: Draw at the width that ``vlora calibrate`` fitted.
            vote: Generate under every draw and give the answer of most; False generates at the mean alone.
            dtype: Number format of the base model; logits become float32 before every softmax.
            quantization: ``none``, ``8bit`` or ``4bit``.
            device: None takes the accelerator if there is one.
            revision: Revision of the base model on the hub.
            trust_remote_code: Run code that the base model's repository brings.
            **kwargs: For ``HFLM``: ``batch_size``, ``max_length``, ``add_bos_token``, …

        Raises:
            ConfigError: No base model is known, or the number of draws does not fit.
            PosteriorFormatError: The adapter is damaged or belongs to another base model.
        """
        stored = Posterior.from_pretrained(adapter).drawing(known_covariance(covariance))
        check_draws(stored)
        self.posterior = calibrated(stored) if stored_width else stored
        self.num_samples = int(num_samples) if self.posterior.has_hess else 0
        self.antithetic = bool(antithetic) and self.num_samples > 0
        if self.num_samples < 0 or (self.antithetic and self.num_samples % 2):
            raise ConfigError(
                f"num_samples must be 0 or more, and even for antithetic draws, got {num_samples}"
            )
        self.vote = bool(vote) and self.num_samples > 0
        if vote and not self.vote:
            logger.warning("there are no draws to vote, so generated answers are those of the mean")
        name = base_model or self.posterior.adapter_config.get("base_model_name_or_path")
        if not name:
            raise ConfigError("base_model is needed: the adapter does not name its base model")
        loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        base = load_base_model(
            str(name),
            task="causal_lm",
            dtype=dtype,
            quantization=quantization,
            device_map=_placement(device),
            **loading,
        )
        tokenizer = load_tokenizer(str(name), **loading)
        kwargs = {"softmax_dtype": "float32", **kwargs, "pretrained": base, "tokenizer": tokenizer}
        super().__init__(**kwargs, device=device)
        self._model = load_adapter(base, self.posterior).eval()
        self.draw_scores: list[dict[str, Any]] = []
        self._inside_a_draw = False

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Log-probability of every continuation, averaged over draws as a whole."""
        if self._inside_a_draw or not self.num_samples:
            return super()._loglikelihood_tokens(requests, **kwargs)
        draws = []
        for draw in range(self.num_samples):
            with self._at(draw):
                draws.append(super()._loglikelihood_tokens(requests, **kwargs))
        combined = posterior_predictive(draws)
        for row, (request, answer) in enumerate(zip(requests, combined, strict=True)):
            self._keep(request[0], [draw[row][0] for draw in draws])
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return combined

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts: every draw reads all windows of a text before the draws are averaged."""
        if not self.num_samples:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        draws = []
        for draw in range(self.num_samples):
            with self._at(draw):
                draws.append(super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))
        combined = [log_mean_exp(values) for values in zip(*draws, strict=True)]
        for row, (request, answer) in enumerate(zip(requests, combined, strict=True)):
            self._keep(("", request.args[0]), [draw[row] for draw in draws])
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return combined

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop string or ``max_gen_toks``: the mean's, or with ``vote`` the one that most draws give.

        Raises:
            ConfigError: A task wants answers for which the model has no room.
        """
        self._check_room(requests)
        generate = super().generate_until
        if not self.vote:
            return generate(requests, disable_tqdm=disable_tqdm)
        with self._at(None):
            at_mean = generate(requests, disable_tqdm=disable_tqdm)
        draws = []
        for draw in range(self.num_samples):
            with self._at(draw):
                draws.append(generate(requests, disable_tqdm=disable_tqdm))
        chosen = []
        for request, first, *others in zip(requests, at_mean, *draws, strict=True):
            chosen.append(most_given(others, first))
            self.draw_scores.append({"context": request.args[0], "at_mean": first, "answers": others})
            self.cache_hook.add_partial("generate_until", request.args, chosen[-1])
        return chosen

    def _check_room(self, requests: Any) -> None:
        """Refuse answers so long that no prompt fits in front; the harness's own check is an assertion."""
        kwargs: list[Any] = [normalize_gen_kwargs(one.args[1], self.max_gen_toks) for one in requests]
        longest = max((one["max_gen_toks"] for one in kwargs), default=0)
        if longest >= self.max_length:
            raise ConfigError(
                f"a task asks for answers of up to {longest} tokens, prompt and answer together get {self.max_length}; "
                "set max_gen_toks (of the task, or of the model), or max_length"
            )

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results, with the posterior's part."""
        info = super().get_model_info()
        mine = {"draws": self.num_samples, "antithetic": self.antithetic, "vote": self.vote}
        mine |= {"ess": self.posterior.meta.ess, "covariance": self.posterior.covariance}
        return {**info, **{f"vlora_{name}": value for name, value in mine.items()}}

    @contextmanager
    def _at(self, draw: int | None) -> Iterator[None]:
        """The model at one draw, None for the mean; the harness's cache must not see what one of them answers."""
        hook, self.cache_hook = self.cache_hook, CacheHook(None)
        self._inside_a_draw = True
        try:
            if draw is None:
                yield
                return
            with self.posterior.sampled(self._model, draw, antithetic=self.antithetic):
                yield
        finally:
            self.cache_hook, self._inside_a_draw = hook, False

    def _keep(self, strings: Sequence[str] | None, log_probs: Sequence[float]) -> None:
        context, continuation = strings or ("", "")
        shown = [value if math.isfinite(value) else None for value in log_probs]
        self.draw_scores.append({"context": context, "continuation": continuation, "log_probs": shown})


def _placement(device: str | None) -> dict[str, str] | None:
    """Where the model goes: the device asked for, else the accelerator; None is the CPU."""
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True)
        device = "cpu" if found is None else str(found)
    return None if device == "cpu" else {"": device}


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    cli_evaluate()
