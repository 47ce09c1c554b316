"""An entailment model as judge of answers: any sequence-pair classifier in Hugging Face form, batched and cached.

Labels are found by their names in the model's configuration (``entailment``, ``neutral``, ``contradiction`` in any
spelling that holds ``entail``, ``neutral``, ``contradict``). Verdicts are kept on disk under the hash of the judge's
weights and of the two texts, one file a judge, so that a pair is judged once whatever the run. A pair that the judge
fails on gets NaN and is counted; it is tried again in the next run.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vlora.errors import ConfigError, OutputError
from vlora.eval.metrics.arrays import Array
from vlora.files import ends_line
from vlora.posterior import fingerprint_weights

__all__ = [
    "EntailmentModel",
    "Judge",
    "VerdictCache",
    "judge_hash",
    "pairwise_relations",
    "relation_columns",
    "verdict_file",
]

logger = logging.getLogger(__name__)

_NAMES = ("entail", "neutral", "contradict")


class Judge(Protocol):
    """Whatever can say how two texts relate."""

    def relations(self, pairs: Sequence[tuple[str, str]]) -> Array:
        """p(entailment, neutral, contradiction) of "premise implies hypothesis" per pair, shape ``(P, 3)``.

        NaN where no verdict could be had.
        """
        ...


def relation_columns(id2label: Mapping[int, str], where: str) -> list[int | None]:
    """Columns of a classifier's output that hold entailment, neutral and contradiction.

    Args:
        id2label: Names of the classes, from the model's configuration.
        where: Name of the model, for the message.

    Returns:
        Three columns; the last is None for a two-way judge (entailment or not), whose other class counts as neutral.

    Raises:
        ConfigError: The names do not say which class is which.
    """
    names = {index: str(name).lower() for index, name in id2label.items()}
    positive = {index: name for index, name in names.items() if not name.startswith(("not", "non"))}
    found = [[index for index, name in positive.items() if key in name] for key in _NAMES]
    if len(names) == 2 and len(found[0]) == 1:
        return [found[0][0], next(index for index in names if index != found[0][0]), None]
    if len(names) == 3 and all(len(indices) == 1 for indices in found):
        return [indices[0] for indices in found]
    shown = ", ".join(map(str, id2label.values()))
    raise ConfigError(
        f"judge.model {where}: its classes are named {shown}, expected entailment, neutral and contradiction; "
        "set id2label in its config.json"
    )


def judge_hash(place: str, revision: str | None = None) -> str:
    """Hash of a judge: of its weights in a local folder, else of its name and revision."""
    return hashlib.sha256(
        (fingerprint_weights(place, revision) or f"{place}@{revision}").encode()
    ).hexdigest()


def verdict_file(folder: str | Path, judge: str) -> Path:
    """Where the verdicts of a judge lie, by its hash."""
    return Path(folder).expanduser() / f"verdicts-{judge[:16]}.jsonl"


class VerdictCache:
    """Verdicts on disk: one JSON line a pair, appended as they come; damaged lines are counted and judged again.

    Attributes:
        path: The file; its name holds the hash of the judge.
        damaged: Lines that could not be read.
    """

    def __init__(self, folder: str | Path, judge: str) -> None:
        self.path = verdict_file(folder, judge)
        self._known: dict[str, list[float]] = {}
        self.damaged = 0
        if self.path.is_file():
            self._read()

    def _read(self) -> None:
        for line in filter(None, self.path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                row = json.loads(line)
                values = [float(value) for value in row["p"]]
                if len(values) != len(_NAMES) or not np.isfinite(values).all():
                    raise ValueError("not three numbers")
                self._known[row["pair"]] = values
            except (ValueError, KeyError, TypeError):
                self.damaged += 1
        if self.damaged:
            logger.warning(
                "%s: %d damaged line(s) left out; their pairs are judged again", self.path, self.damaged
            )

    def get(self, pair: tuple[str, str]) -> list[float] | None:
        """Verdict on a pair, or None."""
        return self._known.get(self._key(pair))

    def add(self, verdicts: Mapping[tuple[str, str], Sequence[float]]) -> None:
        """Keep verdicts.

        Raises:
            OutputError: The file cannot be written.
        """
        lines = []
        for pair, values in verdicts.items():
            self._known[self._key(pair)] = list(values)
            lines.append(json.dumps({"pair": self._key(pair), "p": list(values)}) + "\n")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                if not ends_line(self.path):
                    file.write("\n")
                file.write("".join(lines))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; set judge.cache") from error

    @staticmethod
    def _key(pair: tuple[str, str]) -> str:
        return hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:32]


class EntailmentModel:
    """A sequence-pair classifier as judge.

    Attributes:
        failures: Pairs without a verdict so far.
        judged: Pairs that went through the model so far; those of the cache did not.
        tokens: Tokens that went through it, padding included.
        contradicts: Whether it tells contradiction from mere absence of entailment.
    """

    def __init__(
        self,
        place: str,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        cache: str | Path | None = None,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place, revision=revision)
            model = AutoModelForSequenceClassification.from_pretrained(
                place, revision=revision, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(f"judge.model: cannot load a pair classifier from {place}: {reason}") from None
        self._columns = relation_columns(model.config.id2label, place)
        self.contradicts = self._columns[2] is not None
        self._model = model.eval().requires_grad_(False).to(device)
        self._batch_size, self.failures, self._warned = batch_size, 0, False
        self.judged = self.tokens = 0
        self._cache = VerdictCache(cache, judge_hash(place, revision)) if cache else None

    def relations(self, pairs: Sequence[tuple[str, str]]) -> Array:
        """p(entailment, neutral, contradiction) per pair, shape ``(P, 3)``; NaN where the judge failed."""
        known = {pair: self._cache.get(pair) if self._cache else None for pair in pairs}
        missing = sorted((pair for pair, verdict in known.items() if verdict is None), key=_length)
        for start in range(0, len(missing), self._batch_size):
            batch = missing[start : start + self._batch_size]
            verdicts = {
                pair: row for pair, row in zip(batch, self._judge(batch), strict=True) if row is not None
            }
            self.failures += len(batch) - len(verdicts)
            known.update(verdicts)
            if self._cache and verdicts:
                self._cache.add(verdicts)
        nothing = [np.nan] * 3
        return np.array([known[pair] or nothing for pair in pairs], dtype=np.float64).reshape(-1, 3)

    def _judge(self, pairs: list[tuple[str, str]]) -> list[list[float] | None]:
        """Verdicts of one batch; a batch that fails is tried pair by pair."""
        try:
            rows = self._forward(pairs)
        except (RuntimeError, ValueError, IndexError) as error:
            if len(pairs) == 1:
                if not self._warned:
                    reason = " ".join(str(error).split())[:120]
                    logger.warning(
                        "the judge failed on a pair: %s; further failures are only counted", reason
                    )
                self._warned = True
                return [None]
            return [self._judge([pair])[0] for pair in pairs]
        return [row.tolist() if np.isfinite(row).all() else None for row in rows]

    @torch.inference_mode()
    def _forward(self, pairs: list[tuple[str, str]]) -> Array:
        """Probabilities of the three relations, ``(P, 3)``."""
        limit = min(
            self._tokenizer.model_max_length, getattr(self._model.config, "max_position_embeddings", 512)
        )
        encoded = self._tokenizer(
            [premise for premise, _ in pairs],
            [hypothesis for _, hypothesis in pairs],
            padding=True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(self._model.device)
        self.judged, self.tokens = self.judged + len(pairs), self.tokens + encoded["input_ids"].numel()
        probs = self._model(**encoded).logits.float().softmax(-1).double().cpu().numpy()
        columns = [np.zeros(len(probs)) if column is None else probs[:, column] for column in self._columns]
        return np.stack(columns, axis=1)


def _length(pair: tuple[str, str]) -> int:
    return -len(pair[0]) - len(pair[1])


def pairwise_relations(judge: Judge, answers: Sequence[str], question: str = "") -> Array:
    """Relations of all ordered pairs of answers, each distinct pair judged once.

    Args:
        judge: Whoever judges.
        answers: Texts, M.
        question: Put in front of both texts, as in the papers: "blue" entails "navy" or not by what was asked.

    Returns:
        p(entailment, neutral, contradiction) of "answer i implies answer j", shape ``(M, M, 3)``, "entails" on the
        diagonal and between equal texts; NaN where the judge failed.
    """
    texts = list(dict.fromkeys(answers))
    place = {text: number for number, text in enumerate(texts)}
    asked = [f"{question} {text}".strip() for text in texts]
    index = [(i, j) for i in range(len(texts)) for j in range(len(texts)) if i != j]
    table = np.zeros((len(texts), len(texts), 3))
    table[np.arange(len(texts)), np.arange(len(texts)), 0] = 1.0
    if index:
        rows, columns = np.array(index).T
        table[rows, columns] = judge.relations([(asked[i], asked[j]) for i, j in index])
    order = [place[answer] for answer in answers]
    return table[np.ix_(order, order)]
