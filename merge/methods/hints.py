"""What a name that is no method was meant to be: names of other tools and papers, and slips of the keyboard.

Of the table below, "is" says that ours computes that, "nearest" that it does something related. Names and what they
stand for are those of mergekit 0.1 (``breadcrumbs``, ``model_stock``, ``nuslerp``, ``karcher`` ...), of PEFT's
``combination_type``, and of the papers.
"""

import difflib
from collections.abc import Sequence

__all__ = ["method_hint"]

_SPACE = (
    "a choice of coordinates here, not a method: method ties, dare_linear, dare_ties or della with space: {}"
)
_KNOTS, _CORE = _SPACE.format("knots"), _SPACE.format("core")
_MEAN, _SUM = "that is method linear", "that is method task_arithmetic"
_AT_RANK = "that is method task_arithmetic, with rank: {}"
_STOCK = "not supported (weights from the angles between models); nearest: linear"
_CRUMBS = "not supported (drops the largest entries of an update and the smallest); nearest: ties"
_SLERP = "not supported (a spherical mean of several); nearest: slerp for two adapters, linear for more"
_KFAC = "that is method mats (both sides of K-FAC) or gradient_matching with curvature: kronecker (its input side)"

_ELSEWHERE: dict[str, str] = {
    "knots": _KNOTS,
    "knots_ties": _KNOTS,
    "core": _CORE,
    "core_space": _CORE,
    "mean": _MEAN,
    "average": _MEAN,
    "avg": _MEAN,
    "uniform": _MEAN,
    "soup": _MEAN,
    "model_soup": _MEAN,
    "model_soups": _MEAN,
    "sum": _SUM,
    "ta": _SUM,
    "task_vectors": _SUM,
    "cat": _AT_RANK.format("lossless"),
    "concat": _AT_RANK.format("lossless"),
    "svd": _AT_RANK.format("keep, or a number"),
    "ties_svd": "that is method ties, with rank: keep or a number",
    "dare": "that is method dare_linear or dare_ties",
    "dare_linear_svd": "that is method dare_linear, with rank: keep or a number",
    "dare_ties_svd": "that is method dare_ties, with rank: keep or a number",
    "della_linear": "not supported (DELLA without sign election); nearest: della, dare_linear",
    "magprune": "that is the drop step of method della",
    "magnitude_prune": "not supported (trims and adds without electing signs); nearest: ties",
    "magnitude_prune_svd": "not supported (trims and adds without electing signs); nearest: ties",
    "breadcrumbs": _CRUMBS,
    "breadcrumbs_ties": _CRUMBS,
    "model_stock": _STOCK,
    "nuslerp": "that is method slerp: by weights, between updates, module by module",
    "karcher": _SLERP,
    "multislerp": _SLERP,
    "sce": "not supported (keeps the entries that vary most, weighs by their squares); nearest: ties, fisher",
    "passthrough": "not supported: layers of several models are not stacked here",
    "iso": "that is method iso_c",
    "iso_cts": "not supported (Iso-C with directions of the single tasks added); nearest: iso_c, tsv",
    "tsv_m": "that is method tsv",
    "tsvm": "that is method tsv",
    "task_singular_vectors": "that is method tsv",
    "kfac": _KFAC,
    "k_fac": _KFAC,
    "kronecker": "that is method gradient_matching with curvature: kronecker",
    "sites": "that is method gradient_matching with curvature: sites",
    "separable": "that is method gradient_matching with curvature: separable",
    "laplace": "nearest: gradient_matching, fisher",
    "uncertainty": "that is method gradient_matching",
    "regmean++": "not supported; nearest: regmean",
}


def method_hint(name: str, known: Sequence[str]) -> str:
    """Words for a name that is not in ``known``: what it is called here, or the closest name; empty if there is none.

    Args:
        name: As it was given; case and hyphens do not count.
        known: Names of methods, for the closest one.
    """
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in _ELSEWHERE:
        return _ELSEWHERE[plain]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    if not close:
        close = [n for n in known if len(plain) > 3 and (plain in n or n in plain)][:1]
    return f"did you mean {close[0]!r}?" if close else ""
