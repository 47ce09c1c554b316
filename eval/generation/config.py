"""Settings of ``vlora eval`` with ``kind: generation``."""

from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import ConfigDict

from vlora.data import Source
from vlora.data.config import check_seed
from vlora.errors import ConfigError
from vlora.eval.generation.estimators import CONFIDENCES, ESTIMATORS
from vlora.eval.models_config import ModelsConfig

__all__ = [
    "AnswerCalibrationConfig",
    "AnswerDataConfig",
    "GenerationConfig",
    "GradeConfig",
    "JudgeConfig",
    "PTrueConfig",
    "SamplingConfig",
]

Clustering = Literal["token_f1", "text", "entailment"]


@dataclass(frozen=True, kw_only=True)
class AnswerDataConfig:
    """Questions: where the rows are, and how prompts become tokens."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    folder: str | None = None
    """Folder or file of the task's rows; with neither ``folder`` nor ``test`` the task's place on the hub is read."""
    test: Source | None = None
    """Rows to evaluate on."""
    validation: Source | None = None
    """Rows apart from the test rows, to fit the temperature of confidences."""
    fewshot: Source | None = None
    """Rows with answers for the examples in the prompts, for tasks that have any."""
    ood: dict[str, Source] = field(default_factory=dict)
    """Further sets of questions by name, reported as groups of that name."""
    max_rows: int | None = None
    """Take only so many rows of every set, chosen by ``data.seed``."""
    seed: int = 0
    """Seed of the choice of rows."""
    max_length: int = 512
    """Longest prompt with its answer in tokens; the prompt gives way at its front."""
    chat: Literal["auto", "never", "always"] = "auto"
    """Wrap prompts in the tokenizer's chat template: when there is one, never, or always."""
    system: str | None = None
    """System message of the chat template."""

    def __post_init__(self) -> None:
        check_seed("data.seed", self.seed)
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"data.max_rows must be at least 1, got {self.max_rows}")
        taken = sorted({"all", "test", "validation"} & self.ood.keys())
        if taken:
            raise ConfigError(f"data.ood: {taken[0]!r} is the name of a built-in group; choose another name")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How answers are drawn."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    num_answers: int = 4
    """Answers per posterior draw, M. Models without draws and ensembles give ``num_answers * num_samples`` in all, as
    many as the others. 0 draws none, which leaves the scores of the one answer that is judged."""
    temperature: float = 1.0
    """Of the tokens; not the posterior's. Stored log-probabilities are always those at 1."""
    top_p: float = 1.0
    """Keep the most likely tokens up to this mass."""
    max_new_tokens: int | None = None
    """Longest answer; None takes the task's."""

    def __post_init__(self) -> None:
        if self.num_answers < 0:
            raise ConfigError(f"sampling.num_answers must be 0 or more, got {self.num_answers}")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"sampling needs temperature > 0 and top_p in (0, 1], got {self.temperature} and {self.top_p}"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"sampling.max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How answers of one meaning are found."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    clusters_by: Clustering = "token_f1"
    """``token_f1`` and ``text`` (equal once normalised) compare words and need no model; ``entailment`` asks one."""
    threshold: float = 0.6
    """Token F1 from which two answers count as one."""
    model: str | None = None
    """Folder or hub id of a sequence-pair classifier with classes entailment, neutral, contradiction."""
    revision: str | None = None
    """Revision of the judge on the hub."""
    strict: bool = True
    """Both directions must entail; false also joins answers that do not contradict each other and are not both
    neutral."""
    batch_size: int = 64
    """Pairs in a batch."""
    cache: str | None = None
    """Folder for verdicts, shared by runs; None keeps them beside the output while it is unfinished."""

    def __post_init__(self) -> None:
        if self.clusters_by == "entailment" and self.model is None:
            raise ConfigError(
                "judge.clusters_by: entailment needs judge.model, a folder or hub id of a sequence-pair classifier"
            )
        if not 0 < self.threshold <= 1 or self.batch_size < 1:
            raise ConfigError("judge needs a threshold in (0, 1] and a batch_size of at least 1")


@dataclass(frozen=True, kw_only=True)
class GradeConfig:
    """When a generated answer is right."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    by: Literal["exact", "contains", "f1", "entailment"] = "exact"
    """Equal to a right answer once normalised, holds its words in order, shares enough words with it, or entails it
    and is entailed by it as ``judge.model`` sees it."""
    threshold: float = 0.5
    """Token F1 from which an answer is right."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"grade.threshold must lie in (0, 1], got {self.threshold}")


@dataclass(frozen=True, kw_only=True)
class PTrueConfig:
    """The question put to the model about its own answer."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    template: str = (
        "Question: {question}\nPossible answer: {answer}\nIs the possible answer true or false?\n"
        "The possible answer is:"
    )
    """Prompt, with ``{question}`` and ``{answer}``."""
    true: str | list[str] = field(default_factory=lambda: ["True", "true", " True", " true"])
    """What it says if the answer is right: one spelling or several, whose probabilities are added. A space goes before
    each unless it brings its own, except in chat templates; spellings of the same tokens count once."""
    false: str | list[str] = field(default_factory=lambda: ["False", "false", " False", " false"])
    """What it says if not."""

    @staticmethod
    def spellings(words: str | list[str]) -> list[str]:
        """One spelling or several, as a list."""
        return [words] if isinstance(words, str) else words

    def __post_init__(self) -> None:
        for name in ("true", "false"):
            words = self.spellings(getattr(self, name))
            if not words or not all(word.strip() for word in words):
                raise ConfigError(f"p_true.{name} needs a word, or a list of its spellings, got {words}")
        try:
            self.template.format(question="", answer="")
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"p_true.template may use {{question}} and {{answer}} and no other name in braces ({error})"
            ) from None


@dataclass(frozen=True, kw_only=True)
class AnswerCalibrationConfig:
    """What ``vlora calibrate`` fits on the validation questions; ``vlora eval`` does not read it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    score: str | None = None
    """Uncertainty that is held against the threshold for "don't know": any estimator of ``docs/hallucination.md``. None
    takes ``semantic_entropy``, and for given answers ``token_nll``: it must depend on the answer that is given."""
    confidence: str = "max_probability"
    """Probability of being right that ``vlora predict`` tells, with its temperature fitted."""
    threshold_share: float = 0.5
    """Share of the validation questions that the threshold is fitted on; the others give its grid and the
    temperature."""
    num_thresholds: int = 100
    """Thresholds to test at most: quantiles of the score on the other questions."""
    risk: float = 0.05
    """Error rate allowed among the answers that are not "don't know"."""
    delta: float = 0.1
    """Chance, over validation sets, that the fitted threshold breaks ``risk``."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("score", self.score, (None, *ESTIMATORS)),
            ("confidence", self.confidence, CONFIDENCES),
        ):
            if value not in known:
                raise ConfigError(
                    f"calibration.{name} must be one of {', '.join(filter(None, known))}, got {value}"
                )
        for name in ("threshold_share", "risk", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"calibration.{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.num_thresholds < 1:
            raise ConfigError(f"calibration.num_thresholds must be at least 1, got {self.num_thresholds}")

    def for_task(self, kind: str) -> "AnswerCalibrationConfig":
        """With the score that a kind of task takes where none was asked for."""
        default = "token_nll" if kind == "given_answers" else "semantic_entropy"
        return self if self.score is not None else replace(self, score=default)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(ModelsConfig):
    """Uncertainty of answers, generated or given: ``vlora eval CONFIG.yaml`` with ``kind: generation``."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    kind: Literal["generation"]
    """Marks this kind of evaluation."""
    task: str
    """Name of a task, or path of a task file."""
    data: AnswerDataConfig = field(default_factory=AnswerDataConfig)
    """Rows."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How answers are drawn."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How answers of one meaning are found."""
    grade: GradeConfig = field(default_factory=GradeConfig)
    """When an answer is right."""
    p_true: PTrueConfig | None = field(default_factory=PTrueConfig)
    """Question about the model's own answer; null asks none."""
    eigenscore: bool = True
    """Take the hidden states that EigenScore needs, one more pass over the sampled answers."""
    threshold: float = 0.75
    """Probability of being right above which answering pays, for the penalised score."""
    batch_size: int = 16
    """Questions at a time."""
    calibration: AnswerCalibrationConfig = field(default_factory=AnswerCalibrationConfig)
    """Threshold and temperature of ``vlora calibrate``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"threshold must lie in [0, 1), got {self.threshold}")
        if self.grade.by == "entailment" and self.judge.model is None:
            raise ConfigError("grade.by: entailment needs judge.model")
