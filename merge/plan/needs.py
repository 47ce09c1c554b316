"""What a merge method needs of adapters and does not find, judged from headers."""

from collections.abc import Callable, Mapping, Sequence

from vlora.merge.config import MergeConfig
from vlora.merge.plan.headers import AdapterHeaders

__all__ = ["curvature_kind", "describe_lacking", "lacking"]

Has = Callable[[AdapterHeaders, str], bool]
_H: tuple[str, Has] = ("h", lambda a, m: a.has_h(m))
_INPUT: tuple[str, Has] = ("input_gram", lambda a, m: a.gram(m, "input_gram") is not None)
_OUTPUT: tuple[str, Has] = ("output_gram", lambda a, m: a.gram(m, "output_gram") is not None)
_ACTIVATION: tuple[str, Has] = ("activation_gram", lambda a, m: a.gram(m, "activation_gram") is not None)
_NEEDS: dict[str, list[tuple[str, Has]]] = {
    "fisher": [_H],
    "regmean": [_ACTIVATION],
    "mats": [_INPUT, _OUTPUT],
}
_CURVATURES: dict[str, list[tuple[str, Has]]] = {"kronecker": [_INPUT], "separable": [_H], "sites": [_H]}


def lacking(config: MergeConfig, adapters: Sequence[AdapterHeaders]) -> dict[str, dict[str, list[str]]]:
    """Adapter -> what the method needs -> modules where it is missing; empty if nothing is.

    Args:
        config: The merge.
        adapters: Headers of its inputs.
    """
    needs = _NEEDS.get(config.method, [])
    if config.method == "gradient_matching":
        needs = _CURVATURES.get("sites" if config.ancestor else config.curvature or "auto", [])
    found: dict[str, dict[str, list[str]]] = {}
    for adapter in adapters:
        for what, has in needs:
            modules = [module for module in adapter.modules if not has(adapter, module)]
            if modules:
                found.setdefault(adapter.name, {})[what] = modules
    return found


def curvature_kind(config: MergeConfig, module: str, adapters: Sequence[AdapterHeaders]) -> str | None:
    """What would weight a module under gradient matching, best first as the method itself chooses; else None.

    A frozen A, which decides for ``sites``, is taken from one gauge and no h: that the A are equal only values say.
    """
    if config.method != "gradient_matching":
        return None
    if config.ancestor is not None:
        return "sites"
    if config.curvature not in (None, "auto"):
        return config.curvature
    here = [adapter for adapter in adapters if module in adapter.modules]
    uncertain = all(adapter.has_h(module) for adapter in here)
    if (
        not config.keeps
        and uncertain
        and not any(adapter.has_h(module, "a") for adapter in here)
        and _one_gauge(here)
    ):
        return "sites"
    if all(adapter.gram(module, "input_gram") is not None for adapter in here):
        return "kronecker"
    return "separable" if uncertain else "isotropic"


def _one_gauge(adapters: Sequence[AdapterHeaders]) -> bool:
    gauges = {adapter.meta.gauge for adapter in adapters}
    return len(gauges) == 1 and None not in gauges


def describe_lacking(found: Mapping[str, Mapping[str, Sequence[str]]], method: str) -> list[str]:
    """One sentence per adapter and thing."""
    cures = {
        "h": "train it with IVON, or fit one with vlora.laplace",
        "activation_gram": "gather it with collect_curvature(..., activations=True)",
    }
    return [
        f"{method} needs {what}, which {name!r} lacks in {len(modules)} modules, first {modules[0]}; "
        + cures.get(what, "gather curvature for it (vlora.curvature)")
        for name, parts in found.items()
        for what, modules in parts.items()
    ]
