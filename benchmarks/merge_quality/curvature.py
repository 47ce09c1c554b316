"""How well does each stand-in describe the curvature of an adapted weight? Against exact per-example gradients.

    python -m benchmarks.merge_quality.curvature --data DATA --work WORK [--seeds 0 1 2] [--only NAME]

For a module let D_i be the gradient of row i's loss with respect to its full weight W, shape (m, n), over the training
rows, at the trained adapter. The exact (empirical Fisher) curvature is F = sum_i vec D_i vec D_i^T. Two questions:

- Its diagonal, sum_i D_i o D_i: Spearman's rank correlation over all m n entries with each diagonal stand-in.
- All of it: the cosine <F, K> / |F| |K| with each stand-in K = S (x) G, which needs no mn x mn matrix:
  <F, S (x) G> = sum_i tr(D_i^T S D_i G), |S (x) G| = |S| |G|, |F|^2 = sum_ij <D_i, D_j>^2. With the best scale the
  relative Frobenius error is sqrt(1 - cosine^2).

F counts a row by its squared gradient, the Grams count every row alike; ``cosine_alike`` is the cosine with each D_i
divided by its norm, and ``effective_rows`` says how many rows F stands on, (sum |D_i|^2)^2 / sum |D_i|^4.

Stand-ins are made from what a merge has: Grams streamed during training (``streamed``), Grams of one exact pass
afterwards (``one pass``), both with tokens apart, one pass with a row's tokens joined (``joined``), the Gram of the
activations, which RegMean takes, IVON's h lifted to row col^T, and 1 / Var of every entry of the update.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.merge_quality.adapters import Adapter, Library
from benchmarks.merge_quality.network import MODULES, Network
from benchmarks.merge_quality.run import RESULTS, arguments
from benchmarks.merge_quality.tasks import MIXED
from benchmarks.merge_quality.training import logits, measured
from benchmarks.posterior_quality.tasks import Rows
from benchmarks.rows import keep_and_tell
from vlora.backward import watched
from vlora.merge.curvature.lift import lift_update
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.update import LoraUpdate
from vlora.posterior.ranks import spearman

UNWEIGHTED = "I (x) Gram of the activations"
ROWS = 320
"""Training rows of the exact gradients."""


def main() -> None:
    """One JSON per task and seed."""
    args = arguments(str(__doc__)).parse_args()
    torch.set_num_threads(1)
    library = Library(args.data, args.work)
    for seed in args.seeds or range(3):
        for adapter in library.adapters("mixed", MIXED[:4], "independent", "ivon", seed):
            name = f"{adapter.task}__{seed}"
            if args.only in name:
                keep_and_tell(RESULTS, "curvature", name, lambda a=adapter, s=seed: compare(a, library, s))


def compare(adapter: Adapter, library: Library, seed: int) -> dict[str, Any]:
    """All modules of one adapter."""
    train = library.task(adapter.task).train
    rows = Rows(train.hidden[:ROWS], train.mask[:ROWS], train.label[:ROWS])
    network = loaded(adapter)
    exact = gradients(network, rows, adapter.head())
    passed = measured(network, train, adapter.head())
    joined = measured(network, train, adapter.head(), joined=True)
    modules = {}
    for module in MODULES:
        streamed = {side: adapter.tensors[f"{module}.{side}_gram"] for side in ("input", "output")}
        once, whole = (
            {side: found[f"base_model.model.{module}.{side}_gram"] for side in ("input", "output")}
            for found in (passed, joined)
        )
        sources = {"streamed": streamed, "one pass": once, "one pass, joined": whole}
        modules[module] = one_module(exact[module], adapter.update(module), sources)
    return {"task": adapter.task, "seed": seed, "rows": len(rows), "modules": modules}


def one_module(
    gradient: Tensor, update: LoraUpdate, grams: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Rank correlations of diagonals and cosines of whole matrices."""
    truth = gradient.square().sum(0).flatten()
    size = norm(gradient)
    lifted = lift_update(update)
    ones = [torch.ones(count) for count in gradient.shape[1:]]
    ranks: dict[str, float] = {}
    cosines = {"I (x) I": _cosine(gradient, size, *ones)}
    if lifted is not None:
        row, col = (side.float() for side in lifted)
        ranks["lifted h"] = spearman(torch.outer(row, col).flatten(), truth) or 0.0
        cosines["lifted h"] = _cosine(gradient, size, row, col)
        inverse = (1 / variance(update)).float()
        ranks["1 / Var"] = spearman(inverse.flatten(), truth) or 0.0
        cosines["1 / Var"] = (truth @ inverse.flatten() / (size * inverse.norm())).item()
    if update.activation_gram is not None:
        g = normalised_gram(update.activation_gram.float(), update.module)
        ranks[UNWEIGHTED] = spearman(torch.outer(ones[0], g.diagonal()).flatten(), truth) or 0.0
        cosines[UNWEIGHTED] = _cosine(gradient, size, ones[0], g)
    for source, pair in grams.items():
        s, g = (normalised_gram(pair[side].float(), update.module) for side in ("output", "input"))
        ds, dg = s.diagonal(), g.diagonal()
        for name, (left, right) in {
            "S (x) G": (ds, dg),
            "I (x) G": (ones[0], dg),
            "S (x) I": (ds, ones[1]),
        }.items():
            ranks[f"{name}, {source}"] = spearman(torch.outer(left, right).flatten(), truth) or 0.0
        cosines[f"S (x) G, {source}"] = _cosine(gradient, size, s, g)
        cosines[f"I (x) G, {source}"] = _cosine(gradient, size, ones[0], g)
        cosines[f"S (x) I, {source}"] = _cosine(gradient, size, s, ones[1])
        cosines[f"diagonals of S (x) G, {source}"] = _cosine(gradient, size, ds, dg)
    sizes = gradient.flatten(1).norm(dim=1).double()
    found = {"rank_correlation": ranks, "cosine": cosines, "cosine_alike": _alike(gradient, update, grams)}
    return found | {"effective_rows": (sizes.square().sum().square() / sizes.pow(4).sum()).item()}


def _alike(
    gradient: Tensor, update: LoraUpdate, grams: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, float]:
    """Cosines of S (x) G where every row counts alike."""
    unit = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
    size, found = norm(unit), {}
    for source, pair in grams.items():
        s, g = (normalised_gram(pair[side].float(), update.module) for side in ("output", "input"))
        found[f"S (x) G, {source}"] = _cosine(unit, size, s, g)
    return found


def variance(update: LoraUpdate) -> Tensor:
    """Posterior variance of every entry of the update, ``(m, n)``."""
    if update.precision_a is None or update.precision_b is None:
        raise ValueError(f"{update.adapter!r} has no posterior on both factors")
    v_a, v_b = 1 / update.precision_a, 1 / update.precision_b
    return update.scale**2 * (update.b.square() @ v_a + v_b @ (update.a.square() + v_a))


def norm(gradient: Tensor) -> float:
    """|F|."""
    flat = gradient.flatten(1)
    return (flat @ flat.T).norm().item()


def _cosine(gradient: Tensor, size: float, s: Tensor, g: Tensor) -> float:
    """<F, S (x) G> / |F| |S (x) G|; a vector is a diagonal."""
    seen = s @ gradient if s.ndim == 2 else s[:, None] * gradient
    seen = seen @ g if g.ndim == 2 else seen * g
    return (seen.mul_(gradient).sum() / (size * s.norm() * g.norm())).item()


def gradients(network: Network, rows: Rows, head: Tensor) -> dict[str, Tensor]:
    """Exact gradient of every row's loss with respect to the full weights, ``(N, m, n)`` per module."""
    parts: dict[str, list[Tensor]] = {module: [] for module in MODULES}

    def receive(module: str, x: Tensor, g: Tensor) -> None:
        parts[module].append(g.transpose(1, 2) @ x)

    layers = {layer: (lambda x, g, m=module: receive(m, x, g)) for module, layer in network.adapted.items()}
    with watched(layers):
        for i in range(0, len(rows), 32):
            states = network(rows.hidden[i : i + 32], rows.mask[i : i + 32])
            cross_entropy(logits(states, head), rows.label[i : i + 32], reduction="sum").backward()
    network.zero_grad()
    return {module: torch.cat(found) for module, found in parts.items()}


@torch.no_grad()
def loaded(adapter: Adapter) -> Network:
    """The PEFT network with an adapter's weights."""
    network = Network(0)
    for module, layer in network.adapted.items():
        layer.lora_A["default"].weight.copy_(adapter.tensors[f"{module}.a"])
        layer.lora_B["default"].weight.copy_(adapter.tensors[f"{module}.b"])
    return network


if __name__ == "__main__":
    main()
