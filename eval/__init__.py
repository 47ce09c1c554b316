"""Judging a model: score it, turn records into numbers with intervals, write the report.

``records`` is the on-disk contract, ``metrics`` the pure numpy core, ``results`` everything that
``results.json`` holds. Nothing is imported here, so that reading a record needs neither torch nor a model.
"""
