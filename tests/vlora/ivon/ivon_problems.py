"""Small problems that the IVON tests share."""

import io

import torch

from vlora import IVON


def make(seed=0, dtype=torch.float32, **kwargs):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).to(dtype)
    settings = {"lr": 0.1, "ess": 1000.0, "hess_init": 0.5, "beta2": 0.99, **kwargs}
    return model, IVON(model.parameters(), **settings)


def batch(step, size=12, dtype=torch.float32):
    g = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 4, generator=g).to(dtype), torch.randint(2, (size,), generator=g)


def loss_of(model, data):
    return torch.nn.functional.cross_entropy(model(data[0]).float(), data[1])


def one_step(model, optimizer, step, micro=1):
    optimizer.zero_grad()
    data = batch(step, dtype=next(model.parameters()).dtype)
    for part in zip(data[0].chunk(micro), data[1].chunk(micro), strict=True):
        optimizer.train()
        (loss_of(model, part) / micro).backward()
    optimizer.step()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def snapshot(optimizer):
    return {id(p): {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}


def through_disk(state):
    """What torch.save and a weights_only torch.load leave of a state dict."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


SETTINGS = {"lr": 0.1, "ess": 100.0}  # of the defect tests


def param(*shape, dtype=torch.float32):
    return torch.nn.Parameter(torch.zeros(*shape or (3,), dtype=dtype))


def backward(w, scale=1.0):
    (scale * (w - 1).square().sum()).backward()


def oracle_step(optimizer, w, **kwargs):
    with optimizer.sampled_params(train=True):
        optimizer.zero_grad()
        backward(w, **kwargs)
    optimizer.step()


def our_step(optimizer, w, **kwargs):
    optimizer.zero_grad()
    optimizer.train()
    backward(w, **kwargs)
    optimizer.step()
