"""Which weighting to merge: predicted losses of thousands of weightings, before one of them is built.

``search.py`` is the program; ``model.py`` the quadratic model, ``build.py`` makes it from adapters; ``matching.py`` and
``reduced.py`` solve gradient matching for many weightings at once; ``noise.py`` and ``spread.py`` say how sure that is.
"""

from vlora.merge.preview.search import METHODS, Preview, preview

__all__ = ["METHODS", "Preview", "preview"]
