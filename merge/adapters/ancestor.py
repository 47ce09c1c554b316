"""The posterior that adapters of one lineage went on from: read, compared with each of them, and taken out of their h.

What an adapter's own data say of a tensor, H_t in :mod:`vlora.merge.methods.lineage`, depends on what its h counts:

    N h               of a run that recorded this ancestor, or none: its prior of mean zero is not added again
    N (h + d) - S_0   of a merge of such runs, or of a run trained with the ancestor as its prior: S_0 is in there
    0                 of the ancestor itself
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vlora.errors import IncompatibleAdaptersError
from vlora.merge.adapters.compatibility import check_adapter
from vlora.merge.adapters.opening import open_adapter
from vlora.posterior import Posterior
from vlora.posterior.hashing import tensors_sha256
from vlora.posterior.lora_layout import module_rank, module_scaling, split_keys

__all__ = ["Ancestor", "check_lineage", "read_ancestor"]

_START = "vlora train with start: FOLDER goes on from an adapter"


@dataclass(frozen=True)
class Ancestor:
    """The common start of a merge's adapters."""

    posterior: Posterior
    path: str = "in memory"
    known: dict[int, tuple[Posterior, bool]] = field(default_factory=dict, compare=False)
    """Adapters that were compared with it, by address: hashing tensors takes a while."""

    @cached_property
    def sha256(self) -> str:
        """Content hash of its mean."""
        return self.posterior.meta.mean_sha256 or tensors_sha256(self.posterior.mean)

    @cached_property
    def hess_sha256(self) -> str:
        """Content hash of its h."""
        return self.posterior.meta.hess_sha256 or tensors_sha256(self.posterior.hess)

    def precision(self, key: str) -> Tensor | None:
        """S_0 = N_0 (h_0 + delta_0) of a tensor; None if it is deterministic."""
        return _whole(self.posterior, key)

    def prior(self, key: str) -> float:
        """N_0 delta_0, the share of S_0 that no data stand behind."""
        meta = self.posterior.meta
        return meta.num_examples * meta.of("weight_decay", key) if key in self.posterior.hess else 0.0

    def is_itself(self, posterior: Posterior) -> bool:
        """Whether a posterior is the ancestor."""
        if id(posterior) not in self.known:
            other = Ancestor(posterior)
            same = other.sha256 == self.sha256 and other.hess_sha256 == self.hess_sha256
            self.known[id(posterior)] = posterior, same
        return self.known[id(posterior)][1]

    def included(self, posterior: Posterior) -> bool:
        """Whether an adapter's h counts the ancestor's data."""
        meta = posterior.meta
        return bool(meta.ancestor.get("included")) or meta.prior.get("kind", "zero") != "zero"

    def own_examples(self, posterior: Posterior) -> int:
        """Training examples of an adapter that are not the ancestor's."""
        if self.is_itself(posterior):
            return 0
        merged = bool(posterior.meta.ancestor.get("included"))
        return posterior.meta.num_examples - merged * self.posterior.meta.num_examples

    def site(self, posterior: Posterior, key: str, name: str) -> Tensor | None:
        """H_t of one tensor of an adapter, in examples / weight^2; None where it is deterministic in all of them.

        Raises:
            IncompatibleAdaptersError: A tensor was trained, but the adapter or the ancestor has no h of it.
        """
        start, mean = self.precision(key), posterior.mean[key].double()
        if key not in posterior.hess:
            if not torch.equal(mean, self.posterior.mean[key].double()):
                raise IncompatibleAdaptersError(
                    f"{name!r} has another {key} than the ancestor {self.path}, but no h of it; fit one with vlora "
                    "posterior"
                )
            return None if start is None else torch.zeros_like(start)
        if start is None:
            raise IncompatibleAdaptersError(
                f"the ancestor {self.path} has no h of {key}, which {name!r} trained; fit one with vlora posterior"
            )
        if self.is_itself(posterior):
            return torch.zeros_like(start)
        if self.included(posterior):
            whole = _whole(posterior, key)
            assert whole is not None
            return whole - start
        return posterior.meta.num_examples * posterior.hess[key].double().clamp_min(0)


def read_ancestor(given: str | Posterior) -> Ancestor:
    """The ancestor of a merge, from its folder or as it is.

    Raises:
        PosteriorFormatError: The folder is no adapter, or damaged.
    """
    if isinstance(given, Posterior):
        return Ancestor(given)
    return Ancestor(open_adapter(given)[0], given)


def check_lineage(ancestor: Ancestor, posteriors: Sequence[Posterior], names: Sequence[str]) -> None:
    """Refuse adapters that cannot have gone on from the ancestor, by layout, settings and records, not by values.

    Args:
        ancestor: The posterior that all are said to come from.
        posteriors: The adapters.
        names: Their names, for messages.

    Raises:
        IncompatibleAdaptersError: Which adapter, what about it, and the cure.
    """
    check_adapter(ancestor.posterior, f"ancestor {ancestor.path}", ancestor=True)
    if not ancestor.posterior.has_hess:
        raise IncompatibleAdaptersError(
            f"the ancestor {ancestor.path} is a plain adapter without h; fit a posterior with vlora posterior, and "
            "give that folder"
        )
    for posterior, name in zip(posteriors, names, strict=True):
        if not posterior.has_hess:
            raise IncompatibleAdaptersError(
                f"{name!r} is a plain adapter without h, and a sum by sites needs it; fit one with vlora posterior"
            )
        _check_layout(ancestor, posterior, name)
        _check_record(ancestor, posterior, name)


def _check_layout(ancestor: Ancestor, posterior: Posterior, name: str) -> None:
    first, other = ancestor.posterior, posterior
    differing = sorted(first.mean.keys() ^ other.mean.keys())
    if differing:
        who = "the ancestor" if differing[0] in first.mean else repr(name)
        raise _no_child(name, ancestor, f"only {who} has {differing[0]} ({len(differing)} tensors differ)")
    for module in split_keys(first.mean)[0]:
        for what, of in (("rank", module_rank), ("scaling (lora_alpha, use_rslora)", module_scaling)):
            mine, theirs = of(other.adapter_config, module), of(first.adapter_config, module)
            if mine != theirs:
                raise _no_child(
                    name, ancestor, f"its {what} on {module} is {mine:g}, the ancestor's {theirs:g}"
                )
    for key, value in other.mean.items():
        if value.shape != first.mean[key].shape:
            shapes = f"{tuple(value.shape)}, the ancestor's {tuple(first.mean[key].shape)}"
            raise _no_child(name, ancestor, f"the shape of its {key} is {shapes}")


def _check_record(ancestor: Ancestor, posterior: Posterior, name: str) -> None:
    """The hash of what it started from, where it says one, must be the ancestor's."""
    if ancestor.is_itself(posterior):
        return
    meta = posterior.meta
    for what, record in (("went on from", meta.ancestor), ("was trained under", meta.prior)):
        sha = record.get("sha256")
        if (sha is not None or record.get("kind", "zero") != "zero") and sha != ancestor.sha256:
            raise IncompatibleAdaptersError(
                f"{name!r} {what} {record.get('folder', 'another posterior')} (mean {str(sha)[:12]}), which is not the "
                f"ancestor {ancestor.path} (mean {ancestor.sha256[:12]}); give that one as ancestor"
            )


def _no_child(name: str, ancestor: Ancestor, what: str) -> IncompatibleAdaptersError:
    return IncompatibleAdaptersError(
        f"{name!r} did not go on from the ancestor {ancestor.path}: {what}; {_START}, without ancestor these merge as "
        "independent ones"
    )


def _whole(posterior: Posterior, key: str) -> Tensor | None:
    """N (h + delta) of one tensor, untempered."""
    if key not in posterior.hess:
        return None
    meta = posterior.meta
    return meta.num_examples * (posterior.hess[key].double() + meta.of("weight_decay", key))
