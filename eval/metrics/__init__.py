"""Metrics as pure float64 numpy functions: no I/O, no model, no global random state.

Shapes: N items, K choices, S posterior draws, B bootstrap resamples. Items with fewer than K choices are
padded with a log-probability of ``-inf``, which every function reads as probability zero. A bootstrap resample is
a count of each item; what ranks or bins items works on ``(B, N)`` such counts at once (``Kept``, ``Separation``,
``mass_ece``), and the plain function is the same code with every count equal to one.
"""
