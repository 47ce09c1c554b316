"""Who answers: a model at its mean and under its posterior draws, or an ensemble whose members are the draws.

Draw s is one parameter vector for all tokens of an answer and for all answers given under it, in sampling and in
scoring alike.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlora.eval.ensemble import ENSEMBLE, ensemble_members
from vlora.eval.forward import Draws
from vlora.eval.host import Host
from vlora.eval.models_config import Ensemble
from vlora.eval.subjects import Subject

__all__ = ["Speaker", "Voices", "ensemble_of", "speakers"]


@dataclass(frozen=True)
class Speaker:
    """A model of the evaluation, not yet in memory."""

    name: str
    members: tuple[Subject, ...]
    """One subject, or the members of an ensemble."""
    num_draws: int
    """Posterior draws or members; 1 for a model without a posterior."""
    antithetic: bool = False

    @property
    def is_ensemble(self) -> bool:
        """Whether the draws are models of their own."""
        return len(self.members) > 1

    def content(self) -> dict[str, Any]:
        """Everything about the speaker that its answers depend on, as JSON-able content."""
        return {
            "name": self.name,
            "members": [member.content() for member in self.members],
            "draws": [self.num_draws, self.antithetic],
        }

    def describe(self) -> dict[str, Any]:
        """The speaker's entry in ``results.json``."""
        if not self.is_ensemble:
            return {**self.members[0].describe(), "num_draws": self.num_draws}
        names = [member.name for member in self.members]
        return {"name": self.name, "kind": "ensemble", "members": names, "num_draws": self.num_draws}

    @contextmanager
    def on(self, host: Host) -> Iterator["Voices"]:
        """The speaker on its base model."""
        if self.is_ensemble:
            yield Voices(self, host, None)
            return
        (subject,) = self.members
        with host.wearing(subject.posterior) as model:
            posterior = subject.posterior if subject.kind == "posterior" else None
            yield Voices(self, host, Draws(model, posterior, self.num_draws, self.antithetic))


@dataclass(frozen=True)
class Voices:
    """A speaker in memory."""

    speaker: Speaker
    host: Host
    draws: Draws | None
    """Mean and draws of one model; None for an ensemble."""

    @property
    def num_draws(self) -> int:
        """S."""
        return self.speaker.num_draws

    @property
    def has_mean(self) -> bool:
        """Whether there is a model that stands for all draws."""
        return self.draws is not None

    @contextmanager
    def mean(self) -> Iterator[nn.Module]:
        """The mean model; of an ensemble the first member."""
        if self.draws is None:
            with self.draw(0) as model:
                yield model
            return
        with self.draws.at(None):
            yield self.draws.model

    @contextmanager
    def draw(self, number: int) -> Iterator[nn.Module]:
        """The model under draw ``number``; of an ensemble that member."""
        if self.draws is None:
            with self.host.wearing(self.speaker.members[number].posterior) as model:
                yield model
            return
        with self._at(number):
            yield self.draws.model

    def _at(self, number: int) -> AbstractContextManager[object]:
        assert self.draws is not None
        return self.draws.at(number)


def speakers(subjects: Sequence[Subject], num_samples: int, antithetic: bool) -> list[Speaker]:
    """Every model of the evaluation as a speaker: with its draws, or with one voice."""
    found = []
    for subject in subjects:
        drawn = num_samples if subject.kind == "posterior" and num_samples > 0 else 0
        found.append(Speaker(subject.name, (subject,), drawn or 1, antithetic and drawn > 1))
    return found


def ensemble_of(subjects: Sequence[Subject], wanted: Ensemble) -> Speaker | None:
    """The ensemble that the configuration asks for, each member at its mean.

    Raises:
        ConfigError: An unknown member, fewer than two, or a model that has the ensemble's name.
    """
    names = ensemble_members(subjects, wanted)
    by_name = {subject.name: subject for subject in subjects}
    return Speaker(ENSEMBLE, tuple(by_name[name] for name in names), len(names)) if names else None
