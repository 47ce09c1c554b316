"""Prediction sets and abstention in ``results.json``: fitted on the validation rows, checked on every reported set.

The probabilities are those of ``mean`` and ``samples``, without a temperature, which would be fitted on the same rows.
What ``vlora calibrate`` stores beside an adapter is fitted with one, on rows of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlora.eval.decide import fit_rules, verify
from vlora.eval.predictions import ChoiceTable
from vlora.eval.tables import ALL, ModelTable
from vlora.posterior.decisions import Decisions

__all__ = ["ALPHA", "DELTA", "RISK", "check_promises"]

ALPHA, RISK, DELTA = 0.1, 0.05, 0.1
"""Share that sets may miss, error rate allowed among answers, chance that the threshold breaks it."""


def check_promises(tables: Sequence[ModelTable]) -> list[dict[str, Any]]:
    """Coverage, sizes and risk of rules fitted on each model's labelled validation rows; nothing without such rows.

    Returns:
        One entry per model, predictor and set (``test``, then every out-of-distribution group): see
        :func:`vlora.eval.decide.verify`.
    """
    found = []
    for table in tables:
        if not isinstance(table, ChoiceTable):
            continue
        held_out = np.flatnonzero((table.split == "validation") & table.labelled)
        sets = {"test": table.rows(ALL)}
        for group in dict.fromkeys(table.group[table.split == "ood"].tolist()):
            sets[group] = np.flatnonzero((table.split == "ood") & (table.group == group))
        for predictor in ("mean", "samples") if len(held_out) else ():
            if predictor not in table.predictors:
                continue
            log_probs = table.predictive(predictor).log_probs
            rules, abstention = fit_rules(
                log_probs[held_out], table.label[held_out], alphas=(ALPHA,), risk=RISK, delta=DELTA
            )
            decisions = Decisions(
                task="",
                predictor=predictor,
                num_samples=table.num_samples,
                antithetic=table.antithetic,
                temperature=1.0,
                conformal=rules,
                abstention=abstention,
            )
            head = {"model": table.model, "predictor": predictor, "fitted_on": len(held_out)}
            for name, rows in sets.items():
                if len(rows):
                    label = [None if value < 0 else int(value) for value in table.label[rows].tolist()]
                    found.append({**head, **verify(decisions, log_probs[rows], label, name)})
    return found
