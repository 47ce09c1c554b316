"""What the distributed IVON tests run in each process."""

from contextlib import nullcontext

import torch
import torch.distributed as dist
from ivon_problems import batch, loss_of, make
from torch.nn.parallel import DistributedDataParallel

from vlora import IVON
from vlora.errors import VloraError
from vlora.ivon.distributed import require_equal_replicas, use_per_rank_noise


def shard(data, rank, size):
    """This process's share of a batch."""
    return tuple(part.chunk(size)[rank] for part in data)


def state_of(optimizer):
    """Copies of mean, momentum and h of every parameter, in order."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{k: whole(optimizer.state[p][k]).clone() for k in ("mean", "momentum", "hess")} for p in params]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def plain_loop(model, optimizer, steps, micro=1, rank=0, size=1, double=False):
    for step in range(steps):
        optimizer.zero_grad()
        data = shard(batch(step, size=16, dtype=torch.float64 if double else torch.float32), rank, size)
        parts = list(zip(*(part.chunk(micro) for part in data), strict=True))
        for i, part in enumerate(parts):
            optimizer.train()
            if i + 1 < len(parts) and hasattr(model, "no_sync"):
                with model.no_sync():
                    (loss_of(model, part) / micro).backward()
            else:
                (loss_of(model, part) / micro).backward()
        optimizer.step()
    return state_of(optimizer)


def ddp_loop(steps, micro=1, dtype=torch.float32, **settings):
    model, optimizer = make(dtype=dtype, **settings)
    wrapped = DistributedDataParallel(model)
    return plain_loop(wrapped, optimizer, steps, micro, dist.get_rank(), dist.get_world_size())


class Quadratic(torch.nn.Module):
    """Mean loss 1.5 |w - x|^2 over entries' own data: its Hessian is 3 in every entry."""

    def __init__(self, size=4000):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return (1.5 * (self.w - x).square()).sum(-1).mean()


def quadratic_hess(optimizer_of, steps=600):
    """Mean h after training, and the largest difference of w between the ranks."""
    model = Quadratic()
    wrapped = DistributedDataParallel(model)
    optimizer, forward_backward = optimizer_of(model.parameters())
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(steps):
        forward_backward(wrapped, optimizer, 0.03 * torch.randn(2, len(model.w), generator=generator))
    other = [torch.empty_like(model.w) for _ in range(2)]
    dist.all_gather(other, model.w.detach())
    groups = optimizer.param_groups[0]
    hess = groups["hess"] if "hess" in groups else optimizer.state[model.w]["hess"]
    return float(hess.mean()), float((other[0] - other[1]).abs().max())


QUADRATIC = {"lr": 0.03, "ess": 100.0, "hess_init": 1.0, "beta2": 0.99, "weight_decay": 1e-3}


def ours(params, **kwargs):
    def forward_backward(model, optimizer, x):
        optimizer.zero_grad()
        optimizer.train()
        model(x).backward()
        optimizer.step()

    return IVON(params, **QUADRATIC, **kwargs), forward_backward


def theirs(params):
    import ivon

    def forward_backward(model, optimizer, x):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            model(x).backward()
        optimizer.step()

    torch.manual_seed(dist.get_rank())  # ivon-opt draws from the global state
    return ivon.IVON(params, **QUADRATIC), forward_backward


def accelerate_loop(steps, micro):
    """An accelerate training loop with accumulation, on the batches of ``plain_loop``."""
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=micro, cpu=True)
    model, inner = make()
    wrapped, optimizer = accelerator.prepare(model, inner)
    assert isinstance(wrapped, DistributedDataParallel)
    for step in range(steps):
        data = shard(batch(step, size=16), accelerator.process_index, accelerator.num_processes)
        for part in zip(*(part.chunk(micro) for part in data), strict=True):
            with accelerator.accumulate(wrapped):
                optimizer.train()
                accelerator.backward(loss_of(wrapped, part))
                optimizer.step()
                optimizer.zero_grad()
    return state_of(inner)


def trainer_run(folder, batch_size, micro=1):
    """An unmodified Trainer on a PEFT model; weights and state after it."""
    from test_ivon_trainer import train, trainables

    model, optimizer, trainer = train(
        folder, per_device_train_batch_size=batch_size, gradient_accumulation_steps=micro
    )
    return trainables(model), state_of(optimizer), trainer.args.world_size


def per_rank_loop(
    steps, micro=1, find_unused=False, unused=False, dtype=torch.float64, clip=None, **settings
):
    """DDP with noise of its own on every rank."""
    model, optimizer = make(dtype=dtype, noise="per_rank", **settings)
    if unused:
        model = Half(model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=find_unused)
    use_per_rank_noise(wrapped, optimizer)
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(steps):
        optimizer.zero_grad()
        data = shard(batch(step, size=16, dtype=dtype), rank, size)
        for i, part in enumerate(zip(*(part.chunk(micro) for part in data), strict=True)):
            optimizer.train()
            with wrapped.no_sync() if i + 1 < micro else nullcontext():
                (loss_of(wrapped, part) / micro).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), clip)
        optimizer.step()
    require_equal_replicas(optimizer)
    return state_of(optimizer)


class Half(torch.nn.Module):
    """Uses one of two linear layers: on rank 0 the first, elsewhere the second."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        hidden = self.inner[1](self.inner[0](x))
        return self.inner[2](hidden) if dist.get_rank() == 0 else hidden[:, :2]


def contexts_loop(steps, draws, dtype=torch.float64, half=False, clip=None, **settings):
    """One process with one ``sampled_params`` context per rank."""
    model, optimizer = make(dtype=dtype, **settings)
    for step in range(steps):
        optimizer.zero_grad()
        data = batch(step, size=16, dtype=dtype)
        for rank in range(draws):
            with optimizer.sampled_params(train=True):
                x, y = shard(data, rank, draws)
                hidden = model[1](model[0](x))
                logits = hidden[:, :2] if half and rank else model[2](hidden)
                torch.nn.functional.cross_entropy(logits.float(), y).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return state_of(optimizer)


def expect_error(function, *args, **kwargs):
    """The message of the vlora error that ``function`` ends with."""
    try:
        function(*args, **kwargs)
    except VloraError as error:
        return str(error)
    return None


def without_hook():
    model, optimizer = make(noise="per_rank")
    DistributedDataParallel(model)
    return expect_error(optimizer.train)


def hook_on(model_of, **settings):
    model, optimizer = make(**{"noise": "per_rank", **settings})
    return expect_error(use_per_rank_noise, model_of(model), optimizer)


def as_it_is(model):
    return model


def hooked(model):
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, allreduce_hook)
    return wrapped


def step_after(kind):
    """A step whose products were never reduced, were reduced twice, or belong to a batch that was dropped."""
    model, optimizer = make(noise="per_rank")
    wrapped = DistributedDataParallel(model)
    use_per_rank_noise(wrapped, optimizer)
    optimizer.train()
    if kind == "context":
        optimizer.eval()
        return expect_error(optimizer.sampled_params(train=True).__enter__)
    with wrapped.no_sync() if kind == "never" else nullcontext():
        loss_of(wrapped, batch(0)).backward()
    if kind == "dropped":
        optimizer.zero_grad()
        optimizer.train()
    if kind != "never":
        loss_of(wrapped, batch(0)).backward()
    return expect_error(optimizer.step)


def replicas_with(seeds):
    """Whether replicas with these seeds pass for equal."""
    model, optimizer = make(0)
    optimizer = IVON(model.parameters(), lr=0.1, ess=100.0, seed=seeds[dist.get_rank()])
    return expect_error(require_equal_replicas, optimizer)
