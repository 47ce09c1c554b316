"""Uncertainty of generated text: estimators over token scores, answers and their meanings. Pure numpy, no model.

``sequence`` works on token log-probabilities and entropies, ``lexical`` on words, ``clusters`` groups answers of one
meaning, ``entropy`` measures the spread over those groups, ``kernels`` and ``eigenscore`` use graded similarity, and
``judged`` reads the verdicts of a model. Higher means less certain unless a docstring says otherwise.
"""
