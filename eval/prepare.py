"""What an evaluation reads before it scores: adapters, items and class names, checked against each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError, DataError
from vlora.eval.config import EvalConfig
from vlora.eval.ensemble import ensemble_members
from vlora.eval.host import Host, check_same_base
from vlora.eval.item_warnings import say_repeated, set_of
from vlora.eval.items import Item, load_items, read_class_names
from vlora.eval.linearised_prior import linearised_prior
from vlora.eval.score import Scorer, build_scorer
from vlora.eval.splits import check_apart, row_hashes
from vlora.eval.store import content_key
from vlora.eval.subjects import Subject, base_model_of, load_subjects
from vlora.eval.tables import ALL
from vlora.models import num_labels_of
from vlora.posterior import Posterior, fingerprint_weights
from vlora.posterior.kinds import missing

__all__ = ["Evaluation", "prepare"]


@dataclass(frozen=True)
class Evaluation:
    """What was read: models and items. The base model is loaded when the first model needs scoring."""

    config: EvalConfig
    base_model: str
    subjects: Sequence[Subject]
    items: Sequence[Item]
    classes: Sequence[str] | None
    ensemble: Sequence[str] = ()
    """Names of the members of the ensemble that stands beside them."""
    repeated: int = 0
    """Rows that repeat an earlier row of their set."""
    parent: "Evaluation | None" = None
    """The evaluation that this one is a part of."""

    @cached_property
    def host(self) -> Host:
        """Base model and tokenizer, shared with the parts."""
        if self.parent is not None:
            return self.parent.host
        classes = len(self.classes) if self.classes else None
        return Host(self.config, self.base_model, task=self.config.task, num_labels=classes)

    @cached_property
    def scorer(self) -> Scorer:
        """Items tokenised and batched, for all models."""
        return build_scorer(
            self.config.task,
            [item.example for item in self.items],
            self.host.tokenizer,
            self.config.data,
            self.host.model.config,
            max_tokens=self.config.batch_tokens or self.host.batch_tokens,
            max_rows=self.config.batch_size,
        )

    @cached_property
    def item_keys(self) -> list[str]:
        """Hash of everything about each item that its scores depend on: its text, not its label or group."""
        names = [
            "text",
            "text_pair",
            "prompt",
            "choices",
            *(["response"] if self.config.task == "causal_lm" else []),
        ]
        return [content_key([getattr(item.example, name) for name in names])[:32] for item in self.items]

    def restricted(self, items: Sequence[Item]) -> "Evaluation":
        """The same evaluation on other items; base model and tokenizer are shared."""
        return replace(self, items=items, parent=self)

    def part(self, name: str) -> "Evaluation":
        """The evaluation on its ``validation`` items or on the others (``reported``), each made once."""
        parts: dict[str, Evaluation] = self.__dict__.setdefault("_parts", {})
        if name not in parts:
            chosen = [item for item in self.items if (item.split == "validation") == (name == "validation")]
            parts[name] = self.restricted(chosen)
        return parts[name]

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What the scores of all models depend on: base model, number format, task and templates."""
        config, data = self.config, self.config.data
        layout = {
            name: getattr(data, name) for name in ("separator", "chat", "system", "append_eos", "max_length")
        }
        return {
            "base": fingerprint_weights(self.base_model, config.revision)
            or [self.base_model, config.revision],
            "base_files": _small_files(self.base_model),
            "task": config.task,
            "template": {**layout, "prompted": data.prompt is not None},
            "classes": None if self.classes is None else len(self.classes),
            "dtype": config.dtype,
            "quantization": config.quantization,
        }

    def content(self, subject: Subject) -> dict[str, Any]:
        """Everything that one model's scores depend on besides item and draw, JSON-able."""
        return {**self._shared, "model": subject.content()}

    def num_samples(self, subject: Subject) -> int:
        """Draws of one model."""
        return self.config.num_samples if subject.kind == "posterior" else 0


def _small_files(base_model: str) -> str | None:
    """Hash of a local base model's configuration and tokenizer files."""
    folder = Path(base_model).expanduser()
    kinds = (".json", ".model", ".txt", ".jinja")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds) if folder.is_dir() else []
    return content_key([[path.name, path.read_bytes().hex()] for path in files]) if files else None


def prepare(config: EvalConfig) -> Evaluation:
    """Read adapters and data and check that they fit together, before any model is loaded.

    Raises:
        PosteriorFormatError: An adapter is damaged or belongs to another base model.
        DataError: Data that cannot be read or scored.
        ConfigError: Settings that do not fit together, or test rows that a posterior's temperature was fitted on.
    """
    subjects = [_with_prior(subject, config) for subject in load_subjects(config)]
    members = ensemble_members(subjects, config.ensemble)
    base_model = base_model_of(subjects, config)
    posteriors = {s.name: s.posterior for s in subjects if s.posterior is not None}
    check_same_base(posteriors, base_model, config.revision)
    classes = None
    if config.task == "sequence_classification":
        heads = {name: num_labels_of(posterior) for name, posterior in posteriors.items()}
        sizes = {name: size for name, size in heads.items() if size is not None}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise ConfigError(
                f"the adapters' heads differ in their number of classes ({shown}); evaluate them apart"
            )
        data = replace(config.data, labels=config.data.labels or _recorded_labels(posteriors))
        classes = read_class_names(data, next(iter(sizes.values()), None))
    items = load_items(config.task, config.data, classes)
    _check_groups(config, items)
    names, sets = [item.example.item for item in items], [set_of(item) for item in items]
    repeated = say_repeated(names, sets, row_hashes(items), [item.example.extra.get("id") for item in items])
    test = [item for item in items if item.split == "test"]
    for subject in subjects:
        if subject.fitted is not None:
            whose = f"the posterior temperature of {subject.name!r}"
            check_apart(subject.fitted.get("split") or {}, test, whose)
        if subject.prior is not None and subject.prior.fitted is not None:
            whose = f"the prior of the linearised {subject.name!r}"
            check_apart(subject.prior.fitted.get("split") or {}, test, whose)
    return Evaluation(config, base_model, subjects, items, classes, members, repeated)


def _with_prior(subject: Subject, config: EvalConfig) -> Subject:
    """The model with the prior that its linearised predictive is to have, where one is wanted."""
    posterior = subject.as_read
    if not config.linearised or posterior is None or not posterior.has_hess:
        return subject
    kind = config.linearised_kind
    if (reason := missing(posterior, kind)) is not None:
        raise ConfigError(f"linearised: {kind} cannot be had for {subject.name}: {reason}")
    if config.task == "causal_lm":
        return subject
    prior = linearised_prior(posterior, subject.path, config.linearised_prior, kind=kind)
    return replace(subject, prior=prior)


def _recorded_labels(posteriors: Mapping[str, Posterior]) -> list[str] | None:
    """Class names that training recorded, when the adapters agree on them."""
    names = [posterior.meta.labels for posterior in posteriors.values() if posterior.meta.labels]
    return names[0] if names and all(name == names[0] for name in names) else None


def _check_groups(config: EvalConfig, items: Sequence[Item]) -> None:
    """Mistakes in group names are found now and not after hours of scoring."""
    groups = list(dict.fromkeys(item.example.group for item in items if item.split != "validation"))
    if ALL in groups:
        raise DataError(f"{ALL!r} is the name for all test rows together; rename that value of data.group")
    for name, question in config.detect.items():
        for group in (*question.positive, *question.negative):
            if group not in groups:
                raise ConfigError(f"detect.{name}: no group {group!r}; the data hold {', '.join(groups)}")
