"""The merge methods, one per file: pure functions of the updates of one module, with their papers.

``table.py`` is what can be written after ``method:``. ``sites.py`` and ``separable.py`` are two of the routes of
``gradient_matching.py`` (the third is :mod:`vlora.merge.kronecker`), ``sparsify.py`` the masks of TIES, DARE and DELLA.
"""

from vlora.merge.methods.table import METHODS, Method, get_method

__all__ = ["METHODS", "Method", "get_method"]
