"""Distance of hidden states from those of the training rows, the score that needs no posterior.

Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888) of the last layer's hidden state of a question from a Gaussian
fitted to those of the distinct questions that the model was taught, replayed ones included, as in ``feature_distance``
of ``vlora eval``: the mean over the prompt's tokens. Beside it the state of the last token, from which the answer is
read, and the relative distances (Ren et al. 2021, arXiv:2106.09022) with the relation as class. No label is used.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.closed_world import arms
from benchmarks.closed_world.groups import SOURCES, Group
from benchmarks.closed_world.model import wearing
from benchmarks.closed_world.scores import Said, detection
from benchmarks.closed_world.ways import METHODS
from benchmarks.closed_world.worlds import ADAPTERS, Questions, Row, read_rows
from vlora.eval.metrics.feature_distance import FeatureGaussian
from vlora.eval.metrics.uncertainty import entropy
from vlora.models import load_tokenizer
from vlora.recipes.closed_world import model_folder
from vlora.recipes.closed_world.lexicon import RELATIONS

__all__ = ["PLACES", "units"]

METHOD = "equal_votes"
PLACES = ("mean over tokens", "last token")
RELATION = {value: relation.name for relation in RELATIONS for value in relation.values}


def units(seed: int, optimizers: dict[str, Any], work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """One unit per source: its two adapters and their merge."""
    group = Group(seed, "ab", optimizers, work)
    return {f"{source}_features": partial(_unit, group, source) for source in SOURCES}


def _unit(group: Group, source: str) -> dict[str, Any]:
    alone = dict(zip(ADAPTERS, group.inputs(source), strict=True))
    worn = alone | {group.adapters: group.merged(source, METHODS[METHOD])}
    found = {}
    for adapters, posterior in worn.items():
        setting = group.setting(adapters)
        ignorance = entropy(arms.said("base", setting)["mean"].log_probs)
        with wearing(posterior) as model:
            said = Said(setting.items.scores(model).log_softmax(-1).double().numpy())
            distances = _distances(model, setting.asked, setting.train)
        scores = {"entropy": entropy(said.log_probs), **distances}
        scores |= {f"{name} × base": scores[name] * ignorance for name in ("entropy", *PLACES)}
        found[adapters] = {"auroc": detection(scores, setting.asked)}
    return {"source": source, "world": group.seed, "scores": found}


def _distances(model: nn.Module, asked: Questions, train: Sequence[Path]) -> dict[str, np.ndarray]:
    """Distance of every question, and relative to the other relations', at both places."""
    taught = {row["prompt"]: row["response"] for path in train for row in read_rows(path)}
    rows: list[Row] = [{"prompt": prompt} for prompt in taught]
    names = [RELATION[response] for response in taught.values()]
    classes = [sorted(set(names)).index(name) for name in names]
    known, new = _states(model, rows), _states(model, asked.rows)
    found = {}
    for place in PLACES:
        found[place] = FeatureGaussian.fit(known[place]).distance(new[place])
        if len(set(classes)) > 1:
            found[f"{place}, relative"] = FeatureGaussian.fit(known[place], classes).relative(new[place])
    return found


@torch.no_grad()
def _states(model: nn.Module, rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Hidden states ``(N, d)`` of the last layer behind prompts."""
    tokenizer = load_tokenizer(str(model_folder()))
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    found: dict[str, list[torch.Tensor]] = {place: [] for place in PLACES}
    for start in range(0, len(prompts), 256):
        some = prompts[start : start + 256]
        lengths = torch.tensor([len(prompt) for prompt in some])
        ids = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in some], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        states = (
            model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1].double()
        )
        found[PLACES[0]].append((states * mask[..., None]).sum(1) / lengths[:, None])
        found[PLACES[1]].append(states[torch.arange(len(some)), lengths - 1])
    return {place: torch.cat(parts).numpy() for place, parts in found.items()}
