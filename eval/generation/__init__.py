"""Generated and given answers under posterior draws: how far can this one be trusted?

``run`` samples answers, scores them under every draw, clusters them by meaning and ranks every estimator of uncertainty
against correctness. ``collect`` is the part that touches a model, ``estimators`` and ``results`` work on its records.
"""
