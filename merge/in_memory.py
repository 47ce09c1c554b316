"""Merge whole adapters in memory: posteriors in, a posterior out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from vlora.errors import ConfigError
from vlora.merge.adapters.ancestor import Ancestor, check_lineage, read_ancestor
from vlora.merge.adapters.assemble import MergedTensors, assemble, merged_curvature, pooled_examples
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.adapters.full_tensors import merge_full, merge_full_lineage
from vlora.merge.adapters.identities import check_before, check_written
from vlora.merge.adapters.keep import read_keep
from vlora.merge.adapters.prior import read_prior
from vlora.merge.adapters.reading import Inputs, read_inputs
from vlora.merge.config import distinct
from vlora.merge.curvature.positive import check_definite
from vlora.merge.layers import OptionsByModule, Setting, count_layers
from vlora.merge.methods import Method, get_method
from vlora.merge.options import (
    check_ancestor_options,
    check_keep_options,
    check_module_options,
    check_option,
    check_rank,
    keep_counts,
)
from vlora.merge.report.conflict import total_conflict
from vlora.merge.report.report import MergeReport, describe_module, merge_notes
from vlora.merge.report.sensitivity import Sensitivity, sampled
from vlora.merge.update import LoraUpdate, present
from vlora.merge.weights import Weights, check_weights
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256

__all__ = ["merge_adapters", "merge_with_report"]


def merge_adapters(posteriors: Sequence[Posterior], **settings: Any) -> Posterior:
    """Merge adapters into one; see :func:`merge_with_report` for the settings.

    Returns:
        A posterior that can be sampled, evaluated and merged again; a plain adapter if an input is one.
    """
    return merge_with_report(posteriors, **settings)[0]


def merge_with_report(
    posteriors: Sequence[Posterior],
    *,
    method: str = "gradient_matching",
    weights: Sequence[float] | None = None,
    module_weights: Sequence[Mapping[str, Setting]] | None = None,
    module_options: Mapping[str, Mapping[str, Setting]] | None = None,
    num_layers: int | None = None,
    rank: str | float = "auto",
    names: Sequence[str] | None = None,
    paths: Sequence[str] | None = None,
    revisions: Sequence[str | None] | None = None,
    base_model: str | None = None,
    progress: bool = False,
    verify: bool = True,
    **options: Any,
) -> tuple[Posterior, MergeReport]:
    """Merge adapters and say what happened to every module.

    Args:
        posteriors: Posteriors or plain PEFT LoRA adapters of one base model.
        method: A name of :data:`vlora.merge.METHODS`.
        weights: One per adapter, 1 if not given.
        module_weights: Per adapter: regular expression on module names -> weight there, which may be 0, or a gradient
            over the layers.
        module_options: Option -> regular expression -> value there, or gradient over the layers.
        num_layers: Layers that gradients run over; as many as the modules show if not given.
        rank: ``auto`` (lossless where the method's result is exact in factors, else the inputs' largest rank),
            ``keep``, ``lossless``, a number, or a share of energy in (0, 1).
        names: Short names for messages.
        paths: Where the adapters came from, for the lineage.
        revisions: Commits (or revisions) of those that are hub ids, for the lineage.
        base_model: Base model they are expected to belong to.
        progress: Show a progress bar on stderr.
        verify: Run the golden identities of :mod:`vlora.merge.adapters.identities` on a few modules first.
        **options: Options of the method, such as ``tau``, ``scale`` and ``curvature``.

    Returns:
        The merged posterior and the report.

    Raises:
        ConfigError: A weight, method or option is not usable.
        IncompatibleAdaptersError: The adapters do not fit together; which, where, and the cure.
        IdentityError: A golden identity does not hold on these inputs.
    """
    count = len(posteriors)
    checked = check_weights([1.0] * count if weights is None else weights, count, module_weights)
    names = distinct(names or [f"adapter {number}" for number in range(len(posteriors))])
    chosen = _checked_method(method, options)
    check_rank(rank)
    ancestor = None if options.get("ancestor") is None else read_ancestor(options["ancestor"])
    check_ancestor_options(options, module_options or {})
    check_keep_options(options, module_options or {})
    for posterior, name in zip(posteriors, names, strict=True):
        check_adapter(posterior, name, ancestor=ancestor is not None)
    check_together(posteriors, names, base_model)
    if ancestor is not None:
        check_together([ancestor.posterior, posteriors[0]], ["ancestor", names[0]])
        check_lineage(ancestor, posteriors, names)
    places = list(zip(paths or names, revisions or [None] * count, strict=True))
    sources = [_source(posteriors[i], names[i], places[i], checked, i) for i in range(count)]
    patterns = module_options or {}
    check_module_options(patterns, method, chosen.options)
    listed = {
        **_listed(options, ancestor),
        **({"module_options": {k: dict(v) for k, v in patterns.items()}} if patterns else {}),
    }
    report = MergeReport(method, rank, sources, options=listed)
    if ancestor is not None:
        report.ancestor.update(path=ancestor.path, sha256=ancestor.sha256)
    inputs = read_inputs(posteriors, names, ancestor)
    found = [*inputs.modules, *inputs.full_keys]
    checked.check_patterns(found, names)
    layers = count_layers(found) if num_layers is None else num_layers
    applied = _with_files(options, patterns, report)
    checked, settings = checked.over(found, layers), OptionsByModule(applied, patterns, layers)
    settings.check_patterns(inputs.modules)
    if verify:
        report.identities.update(check_before(inputs, checked, chosen, rank, settings))
    if not patterns and _is_identity(chosen, checked, rank, options):
        return _unchanged(posteriors[0], sources), report
    return _merge(inputs, checked, chosen, report, progress, settings), report


def _merge(
    inputs: Inputs,
    weights: Weights,
    method: Method,
    report: MergeReport,
    progress: bool,
    options: OptionsByModule,
) -> Posterior:
    merged = MergedTensors(pooled_examples(inputs))
    curvature = {}
    looked_at: dict[str, LoraUpdate] = {}
    looked_over, sensitivity = (
        set(sampled(inputs.modules, _widest(inputs))),
        Sensitivity(method.function, report.rank),
    )
    bar = tqdm(inputs.modules, desc="merge modules", file=sys.stderr, disable=None if progress else True)
    for module in bar:
        counted = weights.counted(module, [i for i, layout in enumerate(inputs.layouts) if module in layout])
        updates, shares = [inputs.update(i, module) for i, _ in counted], [w for _, w in counted]
        done = method.function(updates, shares, rank=report.rank, **options.of(module))
        merged.add_module(inputs, module, done.update)
        if module in report.identities.get("modules", ()):
            looked_at[module] = done.update
        if report.method == "gradient_matching" and module in looked_over:
            sensitivity.add(updates, shares, done, options.of(module))
        examples = [inputs.posteriors[i].meta.num_examples for i, _ in counted]
        report.modules[module] = describe_module(updates, done, examples)
        check_definite(module, done.report.get("clamped_fraction", 0.0))
        curvature |= merged_curvature(*_with_ancestor(*present(updates, shares)), inputs.keys_of(module).stem)
    for key in inputs.full_keys:
        found = dict(inputs.full_tensors(key))
        counted = [(i, w) for i, w in weights.counted(key, list(found)) if i in found]
        tensors, shares = [found[i] for i, _ in counted], [w for _, w in counted]
        if inputs.ancestor is None:
            value = merge_full(tensors, shares, method.full_tensors)
        else:
            value = merge_full_lineage(tensors, shares, negate=options.common.get("negative") == "negate")
        merged.add_full(inputs, key, value)
        report.full_tensors.append(key)
    if not all(p.has_hess for p in inputs.posteriors):
        merged.hess.clear()
        merged.weight_decay.clear()
    report.sensitivity.update(sensitivity.to_json())
    report.conflict.update(total_conflict(report.modules))
    report.notes.extend(merge_notes(inputs, report, bool(merged.hess)))
    result = assemble(inputs, merged, report.adapters, report.notes)
    if looked_at:
        report.identities["written"] = check_written(result, looked_at)
    return replace(result, curvature=curvature or None)


def _checked_method(name: str, options: Mapping[str, Any]) -> Method:
    method = get_method(name)
    for option, value in options.items():
        if option not in method.options:
            known = ", ".join(method.options) or "none"
            raise ConfigError(f"method {name} has no option {option!r}; its options: {known}")
        check_option(option, value)
    return method


def _is_identity(method: Method, weights: Weights, rank: str | float, options: Mapping[str, Any]) -> bool:
    """Whether the merge is of one adapter and must give it back, bit for bit."""
    if (
        len(weights.scalars) != 1
        or not weights.uniform
        or not isinstance(rank, str)
        or "task_rank" in options
        or options.get("ancestor") is not None
        or keep_counts(options, {})
    ):
        return False
    weight = weights.scalars[0]
    return (method.single == "mean" and weight > 0) or (
        method.single == "sum" and weight * options.get("scale", 1.0) == 1
    )


def _unchanged(posterior: Posterior, sources: Sequence[Mapping[str, Any]]) -> Posterior:
    return replace(
        posterior, meta=replace(posterior.meta, sources=[dict(s) for s in sources]), calibration=None
    )


def _source(
    posterior: Posterior, name: str, place: tuple[str, str | None], weights: Weights, index: int
) -> dict[str, Any]:
    patterns, (path, revision) = weights.patterns[index], place
    return {
        "name": name,
        "path": str(path),
        **({"revision": revision} if revision else {}),
        "weight": weights.scalars[index],
        **({"module_weights": dict(patterns)} if patterns else {}),
        "mean_sha256": posterior.meta.mean_sha256 or tensors_sha256(posterior.mean),
        "num_examples": posterior.meta.num_examples,
        "sources": posterior.meta.sources,
    }


def _widest(inputs: Inputs) -> int:
    """Most inputs or outputs of a module."""
    keys = [
        (posterior, k)
        for posterior, layout in zip(inputs.posteriors, inputs.layouts, strict=True)
        for k in layout.values()
    ]
    return max((max(p.mean[k.a].shape[1], p.mean[k.b].shape[0]) for p, k in keys), default=0)


def _listed(options: Mapping[str, Any], ancestor: Ancestor | None) -> dict[str, Any]:
    """Options for the report: plain data."""
    return {**options, **({} if ancestor is None else {"ancestor": ancestor.path})}


def _with_ancestor(
    updates: Sequence[LoraUpdate], weights: Sequence[float]
) -> tuple[Sequence[LoraUpdate], Sequence[float]]:
    """Updates whose Grams make those of the merge: in one lineage the ancestor's data count too."""
    start = updates[0].ancestor
    return (updates, weights) if start is None else ([start, *updates], [1.0, *weights])


def _with_files(
    options: Mapping[str, Any], patterns: Mapping[str, Mapping[str, Setting]], report: MergeReport
) -> Mapping[str, Any]:
    """Options as the method takes them: files of Grams in place of their paths, the ancestor in the updates.

    A ``keep`` without weight is not read.
    """
    given = {name: value for name, value in options.items() if name != "ancestor" and value is not None}
    if "prior" in given:
        given["prior"] = prior = read_prior(given["prior"])
        report.prior.update(path=prior.path, sha256=prior.sha256)
    path = given.pop("keep", None)
    if path is not None and keep_counts(options, patterns):
        given["keep"] = keep = read_keep(path)
        weight = given.get("keep_weight", 1.0)
        report.keep.update(path=keep.path, sha256=keep.sha256, weight=weight)
    return given
