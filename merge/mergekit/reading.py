"""mergekit's YAML as ours, for the methods that both have; what has no counterpart is refused by name.

    models: [{model: base+adapter, parameters: {weight, density, epsilon}}], base_model, merge_method,
    parameters: {normalize, lambda, t, ...}, dtype

Adapters (``base+adapter``, or a folder with adapter_config.json) become an adapter merge, whole models a model merge.
The update of an adapter is mergekit's task vector of base + adapter, so the formulas agree; defaults do not, and are
written out. Values per filter and gradients over layers become ``module_weights`` and ``module_options``. Every
difference that stays is told in one line. Written from mergekit's documentation (0.1).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.merge.mergekit.models import Entry, are_adapters, entries_of, layers_of, split_revision
from vlora.merge.mergekit.settings import EVERYWHERE, Spread, common_spread, scalar, spread_of
from vlora.merge.methods.hints import method_hint

__all__ = ["is_mergekit", "translate"]

_METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della")
_NORMALISED = ("linear", "ties")  # what mergekit's normalize is when it is not given
_SPARSE = ("ties", "dare_linear", "dare_ties", "della")
_ELECTING = ("ties", "dare_ties", "della")
_CONCATENATING = ("linear", "slerp", "task_arithmetic")
_DIFFERENCES = ("task_arithmetic", *_SPARSE)  # methods on differences to the base
_EPSILON = 0.15  # mergekit's default
_KNOWN = {"models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source",
          "chat_template", "name"}  # fmt: skip


def is_mergekit(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is one of mergekit."""
    return "merge_method" in values


def translate(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Turn a mergekit configuration into ours.

    Args:
        values: The parsed YAML.

    Returns:
        Keys of :class:`vlora.merge.MergeConfig` (or ``models:`` of a model merge), still without ``output``, and one
        line per difference.

    Raises:
        ConfigError: A method or a feature that vlora does not have.
    """
    method = _method(values)
    shared = values.get("parameters") or {}
    entries, base, lines = entries_of(values, method)
    adapters = are_adapters(entries)
    result: dict[str, Any] = {"method": method}
    weights = _weights(entries, shared, method, base)
    result |= _options(entries, shared, method, lines)
    _normalise(result, weights, shared, method, adapters, lines)
    result["adapters" if adapters else "models"] = [
        {"path": e.path, "weight": w}
        | ({"module_weights": p} if p else {})
        | ({"revision": e.revision} if e.revision else {})
        for e, (w, p) in zip(entries, map(_weight, weights), strict=True)
    ]
    _layers(result, entries, base)
    base = base or next((e.base for e in entries if e.base), None)
    if base is not None and not (adapters and Path(base).exists()) and (adapters or method in _DIFFERENCES):
        result["base_model"] = split_revision(base)[0]
    _rest(values, result, adapters, method, lines)
    return result, lines


def _method(values: Mapping[str, Any]) -> str:
    method = str(values["merge_method"])
    if method not in _METHODS:
        hint = method_hint(method, _METHODS)
        hint = f"; {hint}" if hint else ""
        raise ConfigError(
            f"mergekit merge_method {method!r} is none of those that vlora shares with it ({', '.join(_METHODS)}){hint}"
        )
    for key in values:
        if key not in _KNOWN:
            raise ConfigError(f"mergekit key {key!r} has no counterpart in vlora; remove it")
    return method


def _weights(entries: list[Entry], shared: Mapping[str, Any], method: str, base: str | None) -> list[Spread]:
    if method == "slerp":
        return _positions(entries, shared, base)
    found = []
    for entry in entries:
        value, where = entry.parameters.get("weight", shared.get("weight")), f"weight of {entry.path}"
        if value is None:
            raise ConfigError(f"mergekit {where}: weight is missing; give every model one")
        found.append(spread_of(value, where))
    return found


def _positions(entries: list[Entry], shared: Mapping[str, Any], base: str | None) -> list[Spread]:
    """Weights 1 - t and t; a mean of weights that sum to 1 is at position t, and one of weight 0 is left out."""
    given = shared.get("t", next((e.parameters["t"] for e in entries if "t" in e.parameters), None))
    if given is None or len(entries) != 2 or base is None:
        raise ConfigError("mergekit slerp needs base_model, two models and a number t in [0, 1]")
    t = spread_of(given, "t")
    values = [t.value, *t.patterns.values()]
    flat = [x for v in values if v is not None for x in (v if isinstance(v, list) else [v])]
    if not all(0 <= x <= 1 for x in flat):
        raise ConfigError(
            f"mergekit slerp needs base_model, two models and a number t in [0, 1], got {given}"
        )
    if set(flat) in ({0.0}, {1.0}):
        raise ConfigError(f"mergekit t: {given} is one of the two models as it is; nothing to merge")
    return [t.mapped(lambda x: 1.0 - x), t]


def _weight(spread: Spread) -> tuple[float, dict[str, Any]]:
    """``weight`` and ``module_weights``; a weight that is 0 or that no tensor takes stands as 1 behind a pattern."""
    if spread.patterns and spread.value in (None, 0.0):
        return 1.0, {**spread.patterns, **({} if spread.value is None else {EVERYWHERE: 0.0})}
    return (0.0 if spread.value is None else spread.value), dict(spread.patterns)


def _layers(result: dict[str, Any], entries: list[Entry], base: str | None) -> None:
    """The number of layers as the base says, where a gradient runs over them."""
    tables = [e.get("module_weights", {}) for e in result.get("adapters", result.get("models", []))]
    tables += result.get("module_options", {}).values()
    if any(isinstance(value, list) for table in tables for value in table.values()):
        places = [base, *(e.base for e in entries), *(e.path for e in entries)]
        found = next((n for p in places if p and (n := layers_of(p)) is not None), None)
        if found is not None:
            result["num_layers"] = found


def _options(
    entries: list[Entry], shared: Mapping[str, Any], method: str, lines: list[str]
) -> dict[str, Any]:
    options: dict[str, Any] = {}

    def take(name: str, key: str, default: float, factor: float = 1.0) -> None:
        given = [e.parameters.get(name, shared.get(name)) for e in entries]
        spread = common_spread(given, name, default).mapped(lambda x: factor * x)
        if key == "scale" and (spread.patterns or spread.value != 1.0) and method in ("linear", "slerp"):
            raise ConfigError(f"mergekit lambda: {method} has none; remove it")
        if spread.value is not None and not (key == "scale" and spread.value == 1.0):
            options[key] = spread.value
        if spread.patterns:
            options.setdefault("module_options", {})[key] = spread.patterns

    if method in _SPARSE:
        take("density", "density", 1.0)
    if method == "della":
        take("epsilon", "epsilon", _EPSILON, 2.0)
        lines.append("epsilon is half a width in mergekit and a whole one here: doubled")
    take("lambda", "scale", 1.0)
    if scalar(shared.get("rescale", True), "rescale") is not True:
        raise ConfigError(
            "mergekit rescale: false has no counterpart, dropped entries are always made up for; remove it"
        )
    if shared.get("int8_mask") is not None:
        lines.append("int8_mask is about mergekit's memory; ignored")
    if method in ("dare_linear", "dare_ties", "della"):
        lines.append("the random masks are others than mergekit's; key seed chooses them")
    known = {"weight", "density", "epsilon", "lambda", "rescale", "int8_mask", "normalize", "t"}
    for name in [n for source in (shared, *(e.parameters for e in entries)) for n in source]:
        if name not in known:
            raise ConfigError(f"mergekit parameter {name!r} has no counterpart in vlora; remove it")
    return options


def _normalise(
    result: dict[str, Any],
    weights: list[Spread],
    shared: Mapping[str, Any],
    method: str,
    adapters: bool,
    lines: list[str],
) -> None:
    """Their ``normalize``: a key of ours, another method, or weights divided by their sum."""
    if method == "slerp":
        return
    wanted = bool(scalar(shared.get("normalize", method in _NORMALISED), "normalize"))
    if method in _ELECTING:
        result["normalise"] = wanted
    elif wanted != (method == "linear"):
        single = not any(w.patterns for w in weights)
        total = sum(w.value or 0.0 for w in weights)
        if method == "linear" and (adapters or (single and abs(total - 1) < 1e-9)):
            result["method"] = "task_arithmetic" if adapters else "linear"
            lines.append("linear with normalize: false is a weighted sum: method task_arithmetic" if adapters else
                         "normalize: false changes nothing, the weights sum to 1")  # fmt: skip
        elif method == "linear":
            told = f"of sum {total:g}" if single else "per tensor"
            raise ConfigError(f"mergekit normalize: false with weights {told} scales whole models; use sum 1")
        elif not single or not total > 0:
            raise ConfigError(
                "mergekit normalize: true needs one positive sum of weights for all tensors; divide them yourself"
            )
        else:
            weights[:] = [w.mapped(lambda x: x / total) for w in weights]
            lines.append("normalize: true: the weights are divided by their sum")


def _rest(
    values: Mapping[str, Any], result: dict[str, Any], adapters: bool, method: str, lines: list[str]
) -> None:
    if adapters:
        result["rank"] = "lossless" if result["method"] in _CONCATENATING else "keep"
        lines.append(
            f"the result is an adapter again, rank: {result['rank']}"
            + ("" if result["rank"] == "lossless" else "; merge_report.json says what the rank retains")
        )
        if method == "slerp":
            lines.append("slerp is between updates here, between whole weights in mergekit")
        ignored = [
            k
            for k in ("dtype", "out_dtype", "tokenizer_source", "chat_template")
            if values.get(k) is not None
        ]
        if ignored:
            lines.append(f"{', '.join(ignored)}: adapters keep their dtype and have no tokenizer; ignored")
        return
    dtype = values.get("out_dtype") or values.get("dtype")
    if dtype is not None:
        result["dtype"] = dtype
        lines.append("dtype is that of the output; arithmetic is in float32")
    if values.get("tokenizer_source") is not None:
        result["tokenizer"] = values["tokenizer_source"]
    if values.get("chat_template") is not None:
        raise ConfigError("mergekit chat_template: vlora keeps the base model's; remove it")
