"""Rows on disk between scoring and metrics: ``records.jsonl``, one JSON object per model and item.

Everything that any metric needs is in them, so results can be computed again without a model. JSON knows no infinity:
a log-probability of minus infinity (an impossible choice) is written as ``null``. NaN is never written.
"""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlora.errors import DataError
from vlora.eval.metrics.arrays import Array
from vlora.eval.record_fields import FIELDS, LM_FIELDS, check_choices, check_tokens, convert, plain
from vlora.files import atomic_write

__all__ = ["SPLITS", "Record", "TokenScores", "iterate_records", "read_records", "write_records"]

SPLITS = ("test", "validation", "ood")
"""Splits a record may belong to; validation rows serve to fit a temperature and nothing else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """Teacher-forced scores of the ``num_tokens`` response tokens of one document; sums and entropies in nats."""

    num_tokens: int
    """Scored tokens, T."""
    nll: float
    """Sum of -log p(y_t) at the mean."""
    correct: Array | None = None
    """1 where the most probable token was the right one, at the mean; None in an ensemble of texts, as the next two,
    whose members' records do not tell the mixture of their next-token distributions. Shape ``(T,)``."""
    confidence: Array | None = None
    """Probability of the most probable token at the mean. Shape ``(T,)``."""
    entropy: Array | None = None
    """Entropy of the next-token distribution at the mean. Shape ``(T,)``."""
    nll_samples: float | None = None
    """Sum of -log of the per-token mixture over draws (product of expectations)."""
    nll_sequence: float | None = None
    """-log of the mean over draws of the document's probability (expectation of products)."""
    sample_correct: Array | None = None
    """As ``correct``, for the mixture. Shape ``(T,)``."""
    sample_confidence: Array | None = None
    """As ``confidence``, for the mixture. Shape ``(T,)``."""
    total_entropy: Array | None = None
    """Entropy of the mixture. Shape ``(T,)``."""
    expected_entropy: Array | None = None
    """Mean entropy of the draws. Shape ``(T,)``."""
    nll_expected: float | None = None
    """Mean over draws of -log of the document's probability; minus ``nll_sequence``, its epistemic part."""
    nll_std: float | None = None
    """Standard deviation of the same over draws (S - 1)."""
    nll_variance: float | None = None
    """Variance of ``nll`` to first order in the weights, in squared nats."""
    reverse_information: Array | None = None
    """Mean divergence of the mixture from the draws, KL(mixture, draw). Shape ``(T,)``."""
    nll_by_draw: Array | None = None
    """-log of the document's probability under every draw (of an ensemble, every member). Shape ``(S,)``."""
    entropy_by_draw: Array | None = None
    """Sum over tokens of the entropy under every draw. Shape ``(S,)``."""
    weight_by_draw: Array | None = None
    """Sum over tokens of p_s(y_t) over that of the per-token mixture, under every draw. Shape ``(S,)``."""
    temperature: float | None = None
    """Logit temperature that was fitted for the mean on other texts."""
    nll_chosen: float | None = None
    """As ``nll``, at that temperature."""
    confidence_chosen: Array | None = None
    """As ``confidence``, at that temperature. Shape ``(T,)``."""
    entropy_chosen: Array | None = None
    """As ``entropy``, at that temperature. Shape ``(T,)``."""
    sample_temperature: float | None = None
    """Logit temperature that was fitted for the per-token mixture of draws."""
    nll_samples_chosen: float | None = None
    """As ``nll_samples``, at that temperature."""
    sample_confidence_chosen: Array | None = None
    """As ``sample_confidence``, at that temperature. Shape ``(T,)``."""
    sample_entropy_chosen: Array | None = None
    """As ``total_entropy``, at that temperature. Shape ``(T,)``."""
    temperatures: Array | None = None
    """Of texts that a temperature is fitted on: the temperatures that were tried. Shape ``(G,)``."""
    nll_tempered: Array | None = None
    """``nll`` at each of them. Shape ``(G,)``."""
    nll_samples_tempered: Array | None = None
    """``nll_samples`` at each of them. Shape ``(G,)``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What one model said about one item."""

    model: str
    """Name of the model in this evaluation."""
    item: str
    """Identity of the item, the same for every model: models are compared on equal items."""
    split: str
    """``test``, ``validation`` or ``ood``."""
    group: str
    """Part of the test set, or name of the out-of-distribution set."""
    num_tokens: int
    """Length of the prompt in tokens: the length-only baseline."""
    text: str = ""
    """The question, else the end of the prompt (of a text its beginning), for people."""
    text_sha256: str | None = None
    """Hash of the whole text; None in files of earlier versions, whose ``text`` is its beginning."""
    choices: tuple[str, ...] | None = None
    """What could be answered, for people."""
    label: int | None = None
    """Index of the right choice; None when there is no right answer."""
    label_probs: Array | None = None
    """Known distribution of the right answer, shape ``(K,)``."""
    log_probs: Array | None = None
    """log p(k | x) at the mean, normalised over the K choices. Shape ``(K,)``."""
    sample_log_probs: Array | None = None
    """The same per posterior draw, shape ``(S, K)``; None without a posterior."""
    expectation_of_products: Array | None = None
    """Multiple choice: log of the mean over draws of every choice's probability as a whole string, normalised over
    the choices afterwards. Shape ``(K,)``."""
    product_of_expectations: Array | None = None
    """The same of the per-token mixture, each token averaged over draws by itself. Shape ``(K,)``."""
    linearised_covariance: Array | None = None
    """Covariance of the K logits (or choices' log-likelihoods) to first order in the weights. Shape ``(K, K)``."""
    share_left: float | None = None
    """Share of the prior variance of the outputs that the data left, 0 (settled) to 1 (they say nothing)."""
    feature_distance: float | None = None
    """Squared Mahalanobis distance of the hidden state at the mean from that of the reference rows."""
    relative_feature_distance: float | None = None
    """The same minus the distance under one Gaussian of all reference rows; None without classes."""
    antithetic: bool = False
    """Draws 2j and 2j+1 are mirrored at the mean."""
    lm: TokenScores | None = None
    """Scores of a language-modelling row, in place of ``log_probs``."""

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Record":
        """Check a parsed row and make a record of it; unknown keys are ignored.

        Raises:
            DataError: A key is missing, has the wrong type, or its values do not fit together.
        """
        if not isinstance(row, Mapping):
            raise DataError(f"a record must be a JSON object, got {type(row).__name__}")
        values = convert(row, FIELDS)
        if values["split"] not in SPLITS:
            raise DataError(f"'split' must be one of {', '.join(SPLITS)}, got {values['split']!r}")
        if values["lm"] is None:
            check_choices(values)
        else:
            values["lm"] = TokenScores(**check_tokens(convert(values["lm"], LM_FIELDS)))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; keys without a value stay out, except the label and the draws."""
        row = {key: plain(getattr(self, key)) for key in FIELDS if key != "lm"}
        if self.lm is not None:
            row["lm"] = {key: plain(value) for key, value in asdict(self.lm).items()}
            return {key: value for key, value in row.items() if value is not None}
        optional = (
            "text_sha256",
            "label_probs",
            "expectation_of_products",
            "product_of_expectations",
            "linearised_covariance",
            "share_left",
            "feature_distance",
            "relative_feature_distance",
        )
        return {key: value for key, value in row.items() if key not in optional or value is not None}


def write_records(path: str | os.PathLike[str], records: Iterable[Record | Mapping[str, Any]]) -> int:
    """Write records as JSON lines, all or nothing.

    Args:
        path: File to write; an existing one is replaced only once the new one is complete.
        records: Records, or their dictionaries, which are checked.

    Returns:
        Number of rows written.

    Raises:
        DataError: A row is not a valid record; nothing is changed then.
        OutputError: The file cannot be written; an existing one is unchanged then.
    """
    lines = []
    for record in records:
        row = record.to_dict() if isinstance(record, Record) else record
        checked = Record.from_dict(row).to_dict()  # nothing is written that could not be read
        lines.append(json.dumps(checked, allow_nan=False, ensure_ascii=False) + "\n")
    atomic_write(path, "".join(lines))
    return len(lines)


def read_records(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> list[Record]:
    """Read all records of a file.

    Args:
        path: A file written by ``write_records``.
        skip_damaged: Leave damaged lines out, with one warning that counts them, in place of an error.

    Returns:
        The records in the order of the file.

    Raises:
        DataError: The file is missing or empty, or a line is damaged; the message names the line.
    """
    return list(iterate_records(path, skip_damaged=skip_damaged))


def iterate_records(path: str | os.PathLike[str], *, skip_damaged: bool = False) -> Iterator[Record]:
    """Read records one at a time; arguments and errors of ``read_records``."""
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path} is not a file; run the evaluation first or give the path of its records.jsonl"
        )
    good, damaged = 0, []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = _parse(line, f"{path} line {number}")
            except DataError as error:
                if not skip_damaged:
                    raise
                damaged.append(str(error))
                continue
            good += 1
            yield record
    if damaged:
        warnings.warn(f"{len(damaged)} damaged record(s) left out; the first: {damaged[0]}", stacklevel=2)
    if good == 0:
        raise DataError(
            f"{path} holds no records; the evaluation may have been interrupted before its first item"
        )


def _parse(line: bytes, where: str) -> Record:
    """One line to one record; every error says where."""
    try:
        return Record.from_dict(json.loads(line, parse_constant=_refuse_constant))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text; the file is damaged or is not a records.jsonl") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); the line may have been cut off, "
            "run the evaluation again or read with skip_damaged=True"
        ) from None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise DataError(f"holds {name}, which no valid record does; the model may have diverged")
