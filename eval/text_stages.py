"""The stages in which texts are scored, so that a temperature is known before the texts that are reported on.

The records of a text cannot be tempered afterwards: they do not hold the next-token distributions. So the logit
temperature (:mod:`vlora.eval.text_temperature`) comes first: from the evaluation's own validation texts, which are
scored at every temperature of a grid; else from ``calibration.json``, where ``vlora calibrate`` fitted one on texts
that are not among the reported rows. Anything but texts is one stage.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlora.eval.prepare import Evaluation
from vlora.eval.splits import describe_split
from vlora.eval.store import ScoreFile
from vlora.eval.subjects import Subject
from vlora.eval.text_temperature import TOKEN_TEMPERATURES, fit_token_temperature
from vlora.posterior.calibration import token_temperatures_of

__all__ = ["Stage", "file_temperatures", "stages"]

_GRID = "@grid"  # the texts that a temperature is fitted on


@dataclass(frozen=True)
class Stage:
    """Items that are scored together."""

    evaluation: Evaluation
    """The evaluation on them alone."""
    places: Sequence[int]
    """Their places among all items."""
    temperatures: Sequence[float] = ()
    """Temperatures to try on them."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """Temperature of ``mean`` and ``samples`` to report them at."""

    @property
    def suffix(self) -> str:
        """What their scores in the store depend on besides item and draws."""
        if self.temperatures:
            return _GRID
        return "@T=" + ",".join(f"{value:.6g}" for value in self.chosen.values()) if self.chosen else ""

    def set_up(self) -> None:
        """Tell the scorer of texts what to score under."""
        if self.evaluation.config.task == "causal_lm":
            scorer: Any = self.evaluation.scorer
            scorer.temperatures, scorer.chosen = self.temperatures, self.chosen


def stages(evaluation: Evaluation, subject: Subject, file: ScoreFile, name: str) -> Iterator[Stage]:
    """What is scored one after another for one model: all items, or validation texts and then the others.

    Args:
        evaluation: Models and items.
        subject: The model.
        file: Its scores; before the second stage is asked for, those of the first must be in it.
        name: Name in the store of all its parameter vectors together.
    """
    items = evaluation.items
    held_out = [place for place, item in enumerate(items) if item.split == "validation"]
    if evaluation.config.task != "causal_lm" or not held_out or len(held_out) == len(items):
        chosen = file_temperatures(evaluation, subject)[0] if evaluation.config.task == "causal_lm" else {}
        yield Stage(evaluation, range(len(items)), chosen=chosen)
        return
    first = Stage(evaluation.part("validation"), held_out, TOKEN_TEMPERATURES)
    yield first
    scored = [file.scores[name + first.suffix][key] for key in first.evaluation.item_keys]
    others = [place for place, item in enumerate(items) if item.split != "validation"]
    yield Stage(evaluation.part("reported"), others, chosen=_fit(scored))


def _fit(texts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Temperatures of what the texts were scored under, with the digits that the store's names have."""
    names = {"mean": "nll_tempered", "samples": "nll_samples_tempered"}
    return {
        of: float(f"{fit_token_temperature(texts, name).temperature:.6g}")
        for of, name in names.items()
        if texts[0].get(name) is not None
    }


def file_temperatures(evaluation: Evaluation, subject: Subject) -> tuple[dict[str, float], str]:
    """Temperatures that ``vlora calibrate`` fitted on texts, and why there are none where there are none.

    Raises:
        PosteriorFormatError: ``calibration.json`` is damaged, newer, or belongs to another posterior.
    """
    found = None if subject.as_read is None else token_temperatures_of(subject.as_read)
    if found is None:
        return {}, "no validation texts (data.validation) and no temperature of texts in calibration.json"
    fitted_on = set((found.get("split") or {}).get("row_sha256") or ())
    test = [item for item in evaluation.items if item.split != "validation"]
    shared = len(fitted_on & set(describe_split(test)["row_sha256"]))
    if shared:
        return {}, f"calibration.json was fitted on {shared} of the rows that are reported on"
    chosen = {"mean": found["mean"]}
    config = evaluation.config
    posterior = subject.posterior
    same = posterior is not None and posterior.covariance == found["covariance"]
    if evaluation.num_samples(subject) and same and not isinstance(config.temperature, (int, float)):
        chosen["samples"] = found["samples" if subject.fitted is None else "samples_fitted"]
    return {of: float(f"{value:.6g}") for of, value in chosen.items()}, ""
