"""An ensemble of the adapters of one evaluation, the baseline that a posterior has to beat: members as draws.

    p(k | x) = (1/M) sum_m p_m(k | x)          entropy parts as for draws: mean entropy of the members, and the rest

(Lakshminarayanan et al. 2017, arXiv:1612.01474). Members stand at their means. For choices and texts everything follows
from the members' records, at no cost beyond theirs; answers are generated under every member
(:mod:`vlora.eval.generation.voices`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlora.errors import ConfigError
from vlora.eval.metrics.uncertainty import mixture_log_probs
from vlora.eval.models_config import Ensemble
from vlora.eval.records import Record
from vlora.eval.subjects import Subject
from vlora.eval.text_ensemble import text_ensemble_record
from vlora.posterior.hashing import tensors_sha256

__all__ = ["ENSEMBLE", "ensemble_cost", "ensemble_members", "ensemble_records"]

ENSEMBLE = "ensemble"
"""Name of the ensemble among the models."""
_DECIMALS = 8  # as the records of its members


def ensemble_members(subjects: Sequence[Subject], wanted: Ensemble) -> list[str]:
    """Names of the members, none for no ensemble.

    Args:
        subjects: The models of the evaluation.
        wanted: As configured; ``auto`` takes the adapters that were trained and not merged from others, if there are
            two or more of different weights and no model has the ensemble's name.

    Raises:
        ConfigError: An unknown member, fewer than two, or a model that has the ensemble's name.
    """
    names = [subject.name for subject in subjects]
    adapters = [s for s in subjects if s.posterior is not None]
    if wanted == "auto":
        trained: dict[str, str] = {}
        for s in adapters:
            if s.posterior is not None and not s.posterior.meta.sources:
                trained.setdefault(
                    tensors_sha256(s.posterior.mean), s.name
                )  # one vote for one set of weights
        return list(trained.values()) if len(trained) > 1 and ENSEMBLE not in names else []
    if wanted is False or wanted == []:
        return []
    chosen = [s.name for s in adapters] if wanted is True else list(wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ConfigError(f"ensemble: no model {unknown[0]!r}; the models are {', '.join(names)}")
    if len(set(chosen)) < 2:
        raise ConfigError(f"ensemble: expected at least two different adapters, got {chosen}")
    if ENSEMBLE in names:
        raise ConfigError(f"a model is named {ENSEMBLE!r}, the name of the ensemble; give it another")
    return chosen


def ensemble_records(members: Sequence[Sequence[Record]]) -> list[Record]:
    """Records of the ensemble from those of its members, who answered the same items in the same order.

    Args:
        members: Records of every member.

    Returns:
        One record an item: the members' probabilities at their means as draws, and their average as ``log_probs``; of a
        text, see :mod:`vlora.eval.text_ensemble`.
    """
    found = []
    for own in zip(*members, strict=True):
        if own[0].lm is not None:
            found.append(text_ensemble_record(own, ENSEMBLE))
            continue
        samples = np.stack([record.log_probs for record in own])
        mixture = mixture_log_probs(samples[:, None])[0].round(_DECIMALS)
        found.append(
            replace(
                own[0],
                **{"model": ENSEMBLE, "log_probs": mixture, "sample_log_probs": samples, "antithetic": False},
                **{"expectation_of_products": None, "product_of_expectations": None},
                linearised_covariance=None,
                share_left=None,
                feature_distance=None,
                relative_feature_distance=None,
            )
        )
    return found


def ensemble_cost(rows: Sequence[Mapping[str, Any]], members: Sequence[str]) -> list[dict[str, Any]]:
    """Row of ``cost.by_estimator``: the passes of the members at their means, which are listed with them too.

    Args:
        rows: Rows of all models.
        members: Names of the members; none for no ensemble.
    """
    own = [row for row in rows if row["model"] in members and row["estimator"] == "mean"]
    if not own:
        return []
    total = {name: sum(row[name] for row in own) for name in ("passes", "forwards", "tokens", "seconds")}
    return [{"model": ENSEMBLE, "estimator": "members", **total}]
