"""What the FSDP2 tests of IVON run in each process."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_problems import expect_error, shard, state_of, whole
from ivon_problems import batch, loss_of
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vlora import IVON

HYPER = {"lr": 0.1, "ess": 1000.0, "hess_init": 0.5, "beta2": 0.99}


class Net(torch.nn.Module):
    """Two sharded layers, a parameter of the root, an odd shape, a scalar, and a bias shorter than the world."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 7), torch.nn.Linear(7, 2)
        self.scale = torch.nn.Parameter(torch.ones(1, 7))
        self.shift = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)) * self.scale) + self.shift


def net(sharded, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = Net().to(dtype)
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (model.first, model.second):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model, IVON(model.parameters(), **{**HYPER, **settings})


def loop(model, optimizer, steps, sharded, start=0, micro=1, contexts=0, clip=None):
    rank, size = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    dtype = next(model.parameters()).dtype
    for step in range(start, start + steps):
        optimizer.zero_grad()
        data = shard(batch(step, size=16, dtype=dtype), rank, size)
        for _ in range(contexts):
            with optimizer.sampled_params(train=True):
                loss_of(model, data).backward()
        for part in zip(*(p.chunk(micro) for p in data), strict=True) if not contexts else ():
            optimizer.train()
            (loss_of(model, part) / micro).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def run(sharded, steps=6, dtype=torch.float32, how=None, **settings):
    model, optimizer = net(sharded, dtype, **settings)
    loop(model, optimizer, steps, sharded, **(how or {}))
    return state_of(optimizer)


def draws(sharded, stream="train"):
    """The whole of every parameter while it holds a draw, and what posterior_state says."""
    model, optimizer = net(sharded)
    optimizer.train()
    drawn = [whole(p.detach()).clone() for p in model.parameters()]
    optimizer.eval()
    return drawn


def large_draw(sharded, shape):
    """One parameter of several noise blocks."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(shape))
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = IVON(model.parameters(), **HYPER)
    optimizer.train()
    return whole(model.w.detach()).clone()


def predictions(sharded):
    """Outputs at the mean, at an eval draw, at the mean again, at a training draw: each without a backward pass."""
    model, optimizer = net(sharded)
    loop(model, optimizer, 2, sharded)
    x = batch(0)[0]
    found = []
    with torch.no_grad():
        found.append(model(x))
        with optimizer.sampled_params():
            found.append(model(x))
        found.append(model(x))
        optimizer.train()
        found.append(model(x))
        optimizer.eval()
        found.append(model(x))
    return found


def nonfinite(where, **settings):
    """A gradient that is not finite on one rank only: what every rank says, and whether its state is as before."""
    model, optimizer = net(True, **settings)
    loop(model, optimizer, 2, True)
    before = state_of(optimizer)
    optimizer.zero_grad()
    optimizer.train()
    loss_of(model, batch(5)).backward()
    if dist.get_rank() == where:
        model.first.weight.grad.to_local()[0, 0] = float("nan")
    error = expect_error(optimizer.step)
    after = state_of(optimizer)
    same = all(torch.equal(a[k], b[k]) for a, b in zip(before, after, strict=True) for k in a)
    return error, same, optimizer.skipped_steps, optimizer.holds_sample


def lowered_prior(where):
    """A weight decay lowered below -h, which is negative on one rank only: what every rank says, and its draw."""
    model, optimizer = net(True, weight_decay=0.05)
    loop(model, optimizer, 2, True)
    if dist.get_rank() == where:
        optimizer.state[model.first.weight]["hess"].to_local()[0, 0] = -0.045
    before = state_of(optimizer)
    optimizer.param_groups[0]["weight_decay"] = 1e-4
    error = expect_error(optimizer.train)
    after = state_of(optimizer)
    same = all(torch.equal(a[k], b[k]) for a, b in zip(before, after, strict=True) for k in a)
    return error, same, optimizer.holds_sample


def save(folder, steps):
    model, optimizer = net(True)
    loop(model, optimizer, steps, True)
    dcp.save({"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)},
             checkpoint_id=folder)  # fmt: skip


def resume(folder, sharded, start, steps):
    model, optimizer = net(sharded)
    parts = {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)}
    dcp.load(parts, checkpoint_id=folder, no_dist=not sharded)
    set_model_state_dict(model, parts["model"])
    set_optimizer_state_dict(model, optimizer, parts["optim"])
    loop(model, optimizer, steps, sharded, start=start)
    return state_of(optimizer)


def save_alone(folder, steps):
    model, optimizer = net(False)
    loop(model, optimizer, steps, False)
    dcp.save({"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)},
             checkpoint_id=folder, no_dist=True)  # fmt: skip


def load_parts(model, optimizer, folder):
    """A ``SHARDED_STATE_DICT`` folder of accelerate on whatever processes are here, as docs/processes.md does."""
    weights = get_model_state_dict(model)
    dcp.load({"model": weights}, checkpoint_id=f"{folder}/pytorch_model_fsdp_0")
    set_model_state_dict(model, weights)
    state = get_optimizer_state_dict(model, optimizer)
    dcp.load({"optimizer": state}, checkpoint_id=f"{folder}/optimizer_0")
    set_optimizer_state_dict(model, optimizer, state)


def accelerate_run(
    kind, steps, save=None, load=None, start=0, state_dict_type="SHARDED_STATE_DICT", parts=False
):
    """A PEFT model in an accelerate loop, under the FSDP2 plugin ("fsdp"), DDP or alone; its posterior."""
    import contextlib

    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from test_ivon_trainer import rows, tiny_model

    from vlora import Posterior

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = None
    if kind == "fsdp":
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap",
                                                transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
                                                state_dict_type=state_dict_type)  # fmt: skip
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    if (
        kind == "fsdp"
    ):  # accelerate turns its FSDP on for accelerators only; what it does then runs on CPUs too
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState().distributed_type = DistributedType.FSDP
    model = tiny_model()
    model, optimizer = accelerator.prepare(model, IVON.auto(model, num_steps=4, grad_batch_size=12))
    assert any(hasattr(p, "device_mesh") for p in model.parameters()) == (kind == "fsdp")
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel) == (kind == "ddp")
    if load and parts:
        load_parts(model, optimizer.optimizer, load)
    elif load:
        accelerator.load_state(load)
    for step in range(start, start + steps):
        some = rows(64)[12 * step : 12 * step + 12]
        mine = some[accelerator.process_index :: accelerator.num_processes]
        data = {key: torch.stack([row[key] for row in mine]) for key in mine[0]}
        optimizer.train()
        accelerator.backward(model(**data).loss)
        optimizer.step()
        optimizer.zero_grad()
    if save:
        accelerator.save_state(save)
    with contextlib.redirect_stdout(None):
        posterior = Posterior.from_optimizer(model, optimizer, num_examples=64)
    AcceleratorState._reset_state(reset_partial_state=True)
    tensors = [{"mean": posterior.mean[k], "hess": posterior.hess[k]} for k in sorted(posterior.hess)]
    return [*tensors, {"ess": torch.tensor(posterior.meta.ess)}]
