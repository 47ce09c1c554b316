"""Tiny adapters of one lineage: an ancestor, and runs that went on from it."""

import torch
from merge_cases import add_posterior, generator, make_adapter, positive

from vlora.posterior import Posterior, PosteriorMeta
from vlora.posterior.hashing import tensors_sha256

BASE = {"id": "tiny/base"}


def make_ancestor(folder, seed=1, num_examples=200, **lora):
    """A posterior with random factors and h, saved; returns it as read."""
    plain = Posterior.from_pretrained(make_adapter(folder / "plain", seed, **lora))
    add_posterior(plain, seed, num_examples=num_examples, ess=num_examples).save_pretrained(
        folder / "ancestor"
    )
    return Posterior.from_pretrained(folder / "ancestor")


def go_on(ancestor, seed, *, num_examples=100, ess=None, step=0.05, record=True, prior=None):
    """A run that moved every entry of the ancestor a little."""
    noise = generator(seed)
    mean = {k: v + step * torch.randn(v.shape, generator=noise) for k, v in ancestor.mean.items()}
    hess = {k: positive(*v.shape, seed=97 * seed + i).float() for i, (k, v) in enumerate(mean.items())}
    sha = ancestor.meta.mean_sha256 or tensors_sha256(ancestor.mean)
    meta = PosteriorMeta(
        num_examples=num_examples,
        ess=ess or num_examples,
        weight_decay=0.3,
        base_model=BASE,
        ancestor={"folder": "ancestor", "sha256": sha, "included": False} if record else {},
        **({} if prior is None else {"prior": prior}),
    )
    return Posterior(mean, hess, meta, ancestor.adapter_config)
