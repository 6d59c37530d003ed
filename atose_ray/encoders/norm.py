"""BatchNorm as the published blocks have it: eps 1e-3, momentum 0.01, in 1-D blocks a biased running variance."""

import torch
from torch import nn
from torch.nn import functional

BN_EPS, BN_MOMENTUM = 1e-3, 0.01


class BiasedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over [B, C, ...] whose running variance is the biased one: divided by n, not by n - 1, values."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of dimensions; torch.batch_norm itself refuses less than two."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_var is not None and self.momentum is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        unbiased_C = self.running_var.clone()
        out = functional.batch_norm(
            input, self.running_mean, unbiased_C, self.weight, self.bias, True, self.momentum, self.eps
        )
        biased_variance_(self.running_var, unbiased_C, self.momentum, input.numel() // input.shape[1])
        return out


@torch.no_grad()
def biased_variance_(running_C: torch.Tensor, unbiased_C: torch.Tensor, momentum: float, count: int) -> None:
    """Update the biased `running_C` in place; `unbiased_C` is torch's after the same `count` values a channel."""
    running_C.mul_((1 - momentum) / count).add_(unbiased_C, alpha=(count - 1) / count)


def batch_norm_1d(channels: int) -> BiasedBatchNorm:
    """BatchNorm over [B, C] or [B, C, 1, T] with the published constants."""
    return BiasedBatchNorm(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def batch_norm_2d(channels: int) -> nn.BatchNorm2d:
    """BatchNorm over [B, C, H, W] with the published constants."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)
