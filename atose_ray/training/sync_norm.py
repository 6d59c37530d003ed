"""BatchNorm and contrastive losses over the batches of all workers, so that a run in W workers is the run in one.

Each worker of a DDP run sees batch_size / W crops. With its own statistics over so few, a search on two workers finds
lower scores than one on one worker (demo set, batch 8: 0.569 against 0.606, three seeds each). On CUDA this is torch's
SyncBatchNorm; that has no CPU form, so the same is done here with differentiable all-reduces, over gloo. A contrastive
loss that saw only its own worker's crops would have fewer negatives with every worker."""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from atose_ray.encoders.norm import BiasedBatchNorm, biased_variance_
from atose_ray.methods.base import Method
from atose_ray.ranks import sum_over_all_ranks


class _SumOverRanks(torch.autograd.Function):
    """All-reduce (sum) whose gradient is the all-reduce (sum) of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return sum_over_all_ranks(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> torch.Tensor:
        return sum_over_ranks(grads[0])


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, differentiable on each."""
    return cast(torch.Tensor, _SumOverRanks.apply(tensor))


def rows_of_all_ranks(rows_BX: torch.Tensor) -> torch.Tensor:
    """[B, X] of this rank -> [W B, X] of all W ranks, in their order, differentiable; B is the same on each."""
    placed_WBX = rows_BX.new_zeros(dist.get_world_size(), *rows_BX.shape)
    placed_WBX[dist.get_rank()] = rows_BX
    return sum_over_ranks(placed_WBX).flatten(0, 1)


class CrossRankBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all workers. biased: its running variance is, as in BiasedBatchNorm."""

    biased = False

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None and self.weight is not None
        given, input = input.dtype, input.to(self.weight.dtype)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = sum_over_ranks(torch.tensor(float(input.numel() // input.shape[1])))
        mean_C = sum_over_ranks(input.sum(dims)) / count
        centred = input - mean_C.view(shape)
        var_C = sum_over_ranks(centred.square().sum(dims)) / count
        factor = 1.0 if self.biased else float(count) / max(float(count) - 1, 1)  # torch tracks the unbiased variance
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C.detach(), self.momentum)
        self.running_var.lerp_(var_C.detach() * factor, self.momentum)
        scale_C = self.weight * (var_C + self.eps).rsqrt()
        return (centred * scale_C.view(shape) + self.bias.view(shape)).to(given)


class BiasedSyncBatchNorm(nn.SyncBatchNorm):
    """torch's SyncBatchNorm with the biased running variance. All ranks have batches of one size."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_var is not None and self.momentum is not None
        kept_C, self.running_var = self.running_var, self.running_var.clone()
        out = super().forward(input)
        unbiased_C, self.running_var = self.running_var, kept_C
        biased_variance_(kept_C, unbiased_C, self.momentum, input.numel() // input.shape[1] * dist.get_world_size())
        return out


def ddp(device: torch.device, world: int) -> Callable[[Method], nn.Module]:
    """How a method is wrapped for `world` workers: BatchNorm and contrastive losses go over all of them, and so do
    gradients, on GPUs by DDP, on CPUs by the step itself (training/step.py)."""

    def wrap(method: Method) -> nn.Module:
        if world == 1:
            return method
        synchronise(method, device)
        if device.type == "cuda":
            return DistributedDataParallel(method, device_ids=[device])
        begin_alike(method)
        return method

    return wrap


def synchronise(method: Method, device: torch.device) -> None:
    """Make BatchNorm and the losses between clips see the batches of all ranks, in place."""
    synchronise_batch_norm(method, device)
    method.gather = rows_of_all_ranks


def begin_alike(method: Method) -> None:
    """Give all ranks the weights and buffers of rank 0, in place."""
    for tensor in method.state_dict().values():
        dist.broadcast(tensor, 0)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Replace every BatchNorm below `module`, in place, by one over all ranks; parameters and buffers stay the same."""
    for name, child in module.named_children():
        if isinstance(child, (CrossRankBatchNorm, nn.SyncBatchNorm)):
            continue
        if isinstance(child, _BatchNorm):
            setattr(module, name, _synchronised(child, device))
        else:
            synchronise_batch_norm(child, device)


def _synchronised(norm: _BatchNorm, device: torch.device) -> nn.Module:
    biased = isinstance(norm, BiasedBatchNorm)
    on_cuda = BiasedSyncBatchNorm if biased else nn.SyncBatchNorm
    kind = on_cuda if device.type == "cuda" else CrossRankBatchNorm
    other = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    if isinstance(other, CrossRankBatchNorm):
        other.biased = biased
    other.weight, other.bias, other._buffers, other.training = norm.weight, norm.bias, norm._buffers, norm.training
    return other
