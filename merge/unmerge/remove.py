"""Un-merge: take one adapter out of a merge again, where that is exact."""

from dataclasses import replace

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.adapters.ancestor import Ancestor, check_lineage
from vlora.merge.adapters.assemble import MergedTensors, assemble, mean_ess, own_ess
from vlora.merge.adapters.compatibility import check_adapter, check_together
from vlora.merge.adapters.full_tensors import merge_full_lineage
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.methods.lineage import merge_lineage
from vlora.merge.methods.sites import remove_shared_a
from vlora.merge.update import LoraUpdate, shared_a
from vlora.merge.weights import check_weights
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256

__all__ = ["remove_adapter"]


def remove_adapter(
    merged: Posterior, adapter: Posterior, *, weight: float = 1.0, ancestor: Posterior | None = None
) -> Posterior:
    """Subtract the sites of an adapter from a merge of adapters with one frozen A, or of one lineage.

    The inverse of ``gradient_matching`` with curvature ``sites``, and of nothing else: the result is what the merge
    of the other adapters would have been, up to float32 (entries of h below 0 count as 0; the adapters' prior
    precisions N delta must have been equal).

    Args:
        merged: The merge.
        adapter: The adapter to take out.
        weight: The weight it was merged with.
        ancestor: What the merge was relative to, for one lineage; every tensor is then taken out, heads too.

    Returns:
        The posterior of the remaining adapters.

    Raises:
        IncompatibleAdaptersError: A is not common and frozen, a tensor has no h, or nothing would be left.
    """
    (weight,) = check_weights([weight], 1).scalars
    names = ["the merge", "the adapter"]
    for posterior, name in zip((merged, adapter), names, strict=True):
        check_adapter(posterior, name, ancestor=ancestor is not None)
    check_together([merged, adapter], names)
    if ancestor is not None or merged.meta.ancestor.get("included"):
        return _from_lineage(merged, adapter, weight, ancestor)
    inputs = read_inputs([merged, adapter], names)
    left = merged.meta.num_examples - adapter.meta.num_examples
    if left < 1 or inputs.full_keys:
        raise IncompatibleAdaptersError(
            f"cannot take {adapter.meta.num_examples} examples out of a merge of {merged.meta.num_examples}"
            if left < 1
            else f"{inputs.full_keys[0]} was trained whole and averaged, which cannot be undone; merge the others anew"
        )
    tensors = MergedTensors(left)
    for module in inputs.modules:
        total, update = inputs.updates(module)
        rest = total
        if update.rank:
            _check_removable(total, update)
            rest = remove_shared_a(total, update, weight).update
        tensors.add_module(inputs, module, rest)
    sources = _without(merged, adapter)
    result = assemble(read_inputs([merged], ["the merge"]), tensors, sources, merged.meta.notes)
    ess = mean_ess(merged.meta) - mean_ess(adapter.meta)
    return replace(result, meta=replace(result.meta, num_examples=left, ess=ess))


def _from_lineage(
    merged: Posterior, adapter: Posterior, weight: float, ancestor: Posterior | None
) -> Posterior:
    """S' - w H_t, and the same of the natural means, relative to the ancestor."""
    if ancestor is None or not merged.meta.ancestor.get("included"):
        which = (
            "has its ancestor's data in it; give the ancestor"
            if ancestor is None
            else "has no ancestor in it"
        )
        raise IncompatibleAdaptersError(f"the merge {which}, as its posterior.json says")
    start, names = Ancestor(ancestor), ["the merge", "the adapter"]
    check_lineage(start, [merged, adapter], names)
    inputs = read_inputs([merged, adapter], names, start)
    left = merged.meta.num_examples - start.own_examples(adapter)
    if left < ancestor.meta.num_examples:
        raise IncompatibleAdaptersError(
            f"cannot take {start.own_examples(adapter)} examples out of a merge of {merged.meta.num_examples}, of "
            f"which {ancestor.meta.num_examples} are the ancestor's"
        )
    tensors, weights = MergedTensors(left), [1.0, -weight]
    for module in inputs.modules:
        tensors.add_module(
            inputs, module, merge_lineage(inputs.updates(module), weights, removing=True).update
        )
    for key in inputs.full_keys:
        values = [value for _, value in inputs.full_tensors(key)]
        tensors.add_full(inputs, key, merge_full_lineage(values, weights, removing=True))
    sources = _without(merged, adapter)
    result = assemble(read_inputs([merged], ["the merge"], start), tensors, sources, merged.meta.notes)
    meta = replace(
        result.meta,
        num_examples=left,
        ess=mean_ess(merged.meta) - own_ess(start, adapter),
        ancestor=dict(merged.meta.ancestor),
    )
    return replace(result, meta=meta)


def _check_removable(total: LoraUpdate, update: LoraUpdate) -> None:
    frozen = total.precision_a is None and update.precision_a is None and shared_a([total, update])
    if not frozen or total.precision_b is None or update.precision_b is None:
        raise IncompatibleAdaptersError(
            f"{total.module}: removal is exact only for adapters with one frozen A and h on B; "
            "merge the remaining adapters anew"
        )


def _without(merged: Posterior, adapter: Posterior) -> list[dict]:
    sha = adapter.meta.mean_sha256 or tensors_sha256(adapter.mean)
    return [source for source in merged.meta.sources if source.get("mean_sha256") != sha]
