"""More than one process under DDP: noise of its own on every rank, and a check that replicas are equal.

By default every rank draws the same noise. DDP then averages gradients taken at one draw, ``noise * grad`` of the
average is exact, replicas stay bit-identical, and nothing more is sent than for any optimizer. With
``IVON(noise="per_rank")`` and ``use_per_rank_noise`` each of W ranks draws its own noise, which makes W draws per
step and a Hessian estimate of lower variance:

    g = mean_r g_r        product = mean_r (noise_r * g_r)        (or mean_r g_r^2)

The product needs the gradients before they are averaged, so a DDP communication hook reduces both in one message.
Rank r of step t uses draw number ``t W + r``: what one process does with W ``sampled_params`` contexts per step.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlora.errors import ConfigError, TrainingError
from vlora.ivon.draws import DrawAverages

if TYPE_CHECKING:
    from vlora.ivon.optimizer import IVON

__all__ = ["NoiseRanks", "require_equal_replicas", "unwrap_optimizer", "use_per_rank_noise"]


class NoiseRanks:
    """Whose noise this process draws: number ``rank`` of ``size`` draws of a step; 0 of 1 when it is shared."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self._reduced: DrawAverages | None = None
        self._repeated = False

    @property
    def per_rank(self) -> bool:
        """Whether draws differ between ranks, their products being reduced by a hook."""
        return self._reduced is not None

    def attach(self, rank: int, size: int) -> None:
        """Draw number ``rank`` of ``size`` from now on, and expect reduced products at every step."""
        self.rank, self.size, self._reduced = rank, size, DrawAverages()

    def prepare(self, groups: list[dict[str, Any]], noise: str) -> None:
        """Get ready for a draw: forget products whose gradients were cleared, as those of a batch that was dropped.

        Raises:
            TrainingError: If ``noise`` is ``"per_rank"`` on several processes without ``use_per_rank_noise``.
        """
        if self.per_rank and all(param.grad is None for group in groups for param in group["params"]):
            self.drop()
        if noise == "per_rank" and not self.per_rank and dist.is_initialized() and dist.get_world_size() > 1:
            raise TrainingError(
                'IVON(noise="per_rank") needs its hook on the DDP model: call '
                "vlora.ivon.distributed.use_per_rank_noise(model, optimizer) after wrapping the model"
            )

    def record(self, param: Tensor, grad: Tensor, product: Tensor) -> None:
        """Keep the product of a parameter, reduced over the ranks along with its gradient."""
        assert self._reduced is not None
        self._repeated |= param in self._reduced
        self._reduced.record(param, grad, product)

    def drop(self) -> None:
        """Forget what was reduced: its gradients were cleared, or used."""
        if self._reduced is not None:
            self._reduced, self._repeated = DrawAverages(), False

    def reduced(self) -> DrawAverages | None:
        """Products of the coming step; None when noise is shared.

        Raises:
            TrainingError: If there are none, or those of more than one reduction.
        """
        if self._reduced is None:
            return None
        if not self._reduced.count:
            raise TrainingError(
                'step() with noise="per_rank" found no reduced products: run forward and backward of the last '
                "micro-batch through the DDP model and outside no_sync()"
            )
        if self._repeated:
            raise TrainingError(
                'noise="per_rank" reduces gradients once per step, but they were reduced for every micro-batch: '
                "accumulate under model.no_sync() (accelerator.accumulate does), or use the shared noise"
            )
        return self._reduced


def use_per_rank_noise(model: nn.Module, optimizer: Any) -> None:
    """Let every rank draw its own noise: registers the hook that reduces gradients and products together.

    Sends twice the gradients, in float32. On one process nothing changes. Squared gradients
    (``hess_approx="gradsq"``) are then those of one rank, so ``grad_batch_size`` is the number of examples that one
    rank averages per step, not that of all.

    Args:
        model: The model after wrapping by ``DistributedDataParallel`` (``accelerator.prepare``), without a
            communication hook of its own.
        optimizer: ``IVON(..., noise="per_rank")``, or accelerate's wrapper around it.

    Raises:
        ConfigError: If the optimizer was made for shared noise, or the model is not a DDP model or has a hook.
    """
    ivon = unwrap_optimizer(optimizer)
    if ivon.defaults["noise"] != "per_rank":
        raise ConfigError(
            f'use_per_rank_noise needs IVON(..., noise="per_rank"), got noise={ivon.defaults["noise"]!r}'
        )
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        raise ConfigError(
            f"per-rank noise needs a DistributedDataParallel model, got {type(model).__name__}: wrap it first; with "
            "FSDP use the shared noise"
        )
    group = model.process_group
    try:
        model.register_comm_hook((ivon, group), _reduce_bucket)
    except RuntimeError as error:
        raise ConfigError(
            f"per-rank noise needs DDP's communication hook for itself: {' '.join(str(error).split())}"
        ) from error
    ivon.noise_ranks.attach(dist.get_rank(group), dist.get_world_size(group))


def unwrap_optimizer(optimizer: Any) -> "IVON":
    """IVON inside accelerate's wrappers.

    Raises:
        ConfigError: If there is none.
    """
    inner = optimizer
    while not hasattr(inner, "noise_ranks"):
        inner = getattr(inner, "optimizer", None)
        if inner is None:
            raise ConfigError(
                f"expected vlora.IVON or accelerate's wrapper of it, got {type(optimizer).__name__}"
            )
    return inner


@torch.no_grad()
def _reduce_bucket(
    state: tuple["IVON", dist.ProcessGroup],
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]  DDP looks for this very annotation
) -> torch.futures.Future[Tensor]:
    """DDP's hook: average the gradients of a bucket, and the products of those parameters that hold a draw."""
    ivon, group = state
    params, grads = bucket.parameters(), bucket.gradients()
    dtype = torch.promote_types(bucket.buffer().dtype, torch.float32)
    local = [grad.to(dtype) for grad in grads]
    held = {g["params"][position]: g for g in ivon.param_groups for position in g["sampled"]}
    products = [_product(ivon, held, param, grad) for param, grad in zip(params, local, strict=True)]
    flat = torch.cat([t.reshape(-1) for t in (*local, *products)]).div_(dist.get_world_size(group))
    work: Any = dist.all_reduce(flat, group=group, async_op=True)

    def finish(future: torch.futures.Future[Any]) -> Tensor:
        pieces = future.value()[0].split([grad.numel() for grad in (*grads, *grads)])
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            grad.copy_(pieces[i].view_as(grad))
            if param in held:
                product = pieces[len(params) + i].view_as(grad)
                ivon.noise_ranks.record(param, pieces[i], product)
        return bucket.buffer()

    return work.get_future().then(finish)


def _product(ivon: "IVON", held: dict[Tensor, dict[str, Any]], param: Tensor, grad: Tensor) -> Tensor:
    """``noise * grad`` or ``grad^2`` of this rank; zeros where the parameter holds no draw."""
    if param not in held:
        return torch.zeros_like(grad)
    if held[param]["hess_approx"] == "gradsq":
        return grad * grad
    mean = ivon.state[param]["mean"]
    return (param.detach().to(mean.dtype) - mean) * grad


@torch.no_grad()
def require_equal_replicas(optimizer: Any, group: dist.ProcessGroup | None = None) -> None:
    """Refuse replicas that would draw, or hold, different things; every rank must call it between steps.

    Compares seed, counters, hyper-parameters, parameters and state bit by bit, through one hash per rank. For DDP:
    shards differ by design.

    Raises:
        TrainingError: If any rank differs from the first.
    """
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return
    ivon = unwrap_optimizer(optimizer)
    digest = hashlib.blake2b(digest_size=16)
    for param_group in ivon.param_groups:
        settings = sorted((key, str(value)) for key, value in param_group.items() if key != "params")
        digest.update(repr(settings).encode())
        for param in param_group["params"]:
            for tensor in (param, *(v for _, v in sorted(ivon.state.get(param, {}).items()))):
                digest.update(
                    torch.as_tensor(tensor).detach().cpu().reshape(-1).view(torch.uint8).numpy().data
                )
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, digest.hexdigest(), group=group)
    others = [rank for rank, value in enumerate(found) if value != found[0]]
    if others:
        raise TrainingError(
            f"the replicas of ranks {others} differ from rank 0's in seed, settings, parameters or state: give every "
            "rank the same seed and the same start (DDP wraps the model before training)"
        )
