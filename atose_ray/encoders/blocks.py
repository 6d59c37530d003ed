"""The convolution blocks that the encoders are made of, in plain NCW and NCHW layouts.

1-D: Lee et al. 2017 (basic), Lee et al. 2018 and Kim et al. 2019 (se, res, rese), in the form of ATOSE / JETATAG.
2-D: Won et al. 2020. Initialisation, biases in front of BatchNorm, BN's eps 1e-3 and momentum 0.01 as published; its
running variance is torch's unbiased one, where the published 1-D blocks kept the biased one.
Every convolution keeps the length; every block ends in a max-pool without padding, which drops the remainder.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

BlockKind = Literal["basic", "se", "res", "rese"]
POOL_1D = 3
BN_EPS, BN_MOMENTUM = 1e-3, 0.01


def batch_norm_1d(channels: int) -> nn.BatchNorm1d:
    """BatchNorm over [B, C] or [B, C, T] with the published constants."""
    return nn.BatchNorm1d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def batch_norm_2d(channels: int) -> nn.BatchNorm2d:
    """BatchNorm over [B, C, H, W] with the published constants."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def conv_1d(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Conv1d:
    """he_uniform, zero bias; keeps the length at stride 1, has no padding at a larger one."""
    conv = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2 if stride == 1 else 0)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a Conv1d with bias=True has one
    return conv


def glorot(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> nn.Linear | nn.Conv1d | nn.Conv2d:
    """The layer with glorot_uniform weights and zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # made with bias=True
    return layer


class Stem1d(nn.Module):
    """[B, T] -> [B, C, T // 3]: convolution of width and stride 3, BN, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv_1d(1, channels, kernel=3, stride=3)
        self.bn = batch_norm_1d(channels)

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.bn(self.conv(audio_BT[:, None])))


class Block1d(nn.Module):
    """What the 1-D blocks share: squeeze and excitation, its two dense layers directly in the block.

    se_ratio: hidden units per channel; 16 is published (an amplification, where Hu et al. 2018 reduce). 0 is without.
    """

    def __init__(self, channels: int, se_ratio: int) -> None:
        super().__init__()
        self.se_ratio = se_ratio
        if se_ratio:
            self.fc1 = glorot(nn.Linear(channels, se_ratio * channels))
            self.fc2 = glorot(nn.Linear(se_ratio * channels, channels))

    def excite(self, x_BCT: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]: every channel times a gate in (0, 1) that has seen the mean of all channels."""
        if not self.se_ratio:
            return x_BCT
        gate_BC = torch.sigmoid(self.fc2(functional.relu(self.fc1(x_BCT.mean(dim=2)))))
        return x_BCT * gate_BC[:, :, None]


class PlainBlock1d(Block1d):
    """[B, C, T] -> [B, C', T // 3]: conv, BN, ReLU, pool; with se_ratio the excitation follows the pool."""

    def __init__(self, in_channels: int, out_channels: int, se_ratio: int) -> None:
        super().__init__(out_channels, se_ratio)
        self.conv = conv_1d(in_channels, out_channels)
        self.bn = batch_norm_1d(out_channels)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        return self.excite(functional.max_pool1d(functional.relu(self.bn(self.conv(x_BCT))), POOL_1D))


class ResidualBlock1d(Block1d):
    """[B, C, T] -> [B, C', T // 3]: shortcut + [conv, BN, ReLU, dropout, conv, BN, excitation], ReLU, pool.

    The shortcut is the input, or a 1 x 1 convolution and BN where the number of channels changes.
    """

    def __init__(self, in_channels: int, out_channels: int, se_ratio: int, dropout: float) -> None:
        super().__init__(out_channels, se_ratio)
        self.changes_channels = in_channels != out_channels
        if self.changes_channels:
            self.sc_conv = glorot(nn.Conv1d(in_channels, out_channels, 1))
            self.sc_bn = batch_norm_1d(out_channels)
        self.conv1 = conv_1d(in_channels, out_channels)
        self.bn1 = batch_norm_1d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv_1d(out_channels, out_channels)
        self.bn2 = batch_norm_1d(out_channels)

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        shortcut_BCT = self.sc_bn(self.sc_conv(x_BCT)) if self.changes_channels else x_BCT
        main_BCT = self.dropout(functional.relu(self.bn1(self.conv1(x_BCT))))
        main_BCT = self.excite(self.bn2(self.conv2(main_BCT)))
        return functional.max_pool1d(functional.relu(shortcut_BCT + main_BCT), POOL_1D)


def block_1d(kind: BlockKind, in_channels: int, out_channels: int, se_ratio: int, dropout: float) -> Block1d:
    """The 1-D block of a kind; `se_ratio` acts in se and rese, `dropout` in res and rese."""
    ratio = se_ratio if kind in ("se", "rese") else 0
    if kind in ("res", "rese"):
        return ResidualBlock1d(in_channels, out_channels, ratio, dropout)
    return PlainBlock1d(in_channels, out_channels, ratio)


class ConvBlock2d(nn.Module):
    """[B, C, H, W] -> [B, C', H // p, W // q]: conv, BN, ReLU, pool (p, q)."""

    def __init__(self, in_channels: int, out_channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv = glorot(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.bn = batch_norm_2d(out_channels)
        self.pool = pool

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return functional.max_pool2d(functional.relu(self.bn(self.conv(x_BCHW))), self.pool)


class ResidualBlock2d(nn.Module):
    """[B, C, H, W] -> [B, C, H // p, W // q]: x + [conv, BN, ReLU, conv, BN], ReLU, pool (p, q)."""

    def __init__(self, channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv_1 = glorot(nn.Conv2d(channels, channels, 3, padding=1))
        self.bn_1 = batch_norm_2d(channels)
        self.conv_2 = glorot(nn.Conv2d(channels, channels, 3, padding=1))
        self.bn_2 = batch_norm_2d(channels)
        self.pool = pool

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        main_BCHW = self.bn_2(self.conv_2(functional.relu(self.bn_1(self.conv_1(x_BCHW)))))
        return functional.max_pool2d(functional.relu(x_BCHW + main_BCHW), self.pool)
