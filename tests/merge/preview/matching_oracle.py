"""The quadratics of a module's small basis, written out one weighting at a time."""

import torch


def _merge(core, weights):
    return weights[core.owner].unsqueeze(-1) * core.solved(weights.unsqueeze(0))[0]


def _gap(core, found, t):
    return found - torch.where((core.owner == t).unsqueeze(-1), core.plain, torch.zeros_like(core.plain))


def losses(core, coefficients, scale):
    """Loss increase of every adapter: <X - W_t, c_t S_t (X - W_t) G_t> / 2. Shape ``(k, P)``."""
    rows = []
    for weights in coefficients:
        gaps = [_gap(core, scale * _merge(core, weights), t) for t in range(len(core.adapters))]
        parts = zip(gaps, core.grams, core.outputs, strict=True)
        rows.append(torch.stack([((gap @ gram @ gap.mT) * output).sum() for gap, gram, output in parts]))
    return torch.stack(rows)


def matched(core, coefficients):
    """What the merge minimises: 1/2 |X -+ W_s|^2 under I (x) (G_s + tau I) per adapter, and 1/2 tau |X|^2."""
    rows, priors = [], []
    for weights in coefficients:
        found = _merge(core, weights)
        prior = core.tau * ((found @ found.mT) * core.left).sum()
        own = []
        for t, gram in enumerate(core.grams):
            mine = (core.owner == t).to(found.dtype).unsqueeze(-1)
            sign = -1.0 if weights[t].signbit() else 1.0
            crossed = ((found @ (mine * core.damped).mT) * core.left).sum()  # a_s = A_s (G_s + tau I) V
            alone = (((mine * core.plain) @ (mine * core.damped).mT) * core.left).sum()
            own.append(((found @ gram @ found.mT) * core.left).sum() + prior - 2 * sign * crossed + alone)
        rows.append(torch.stack(own))
        priors.append(prior)
    return torch.stack(rows), torch.stack(priors)
