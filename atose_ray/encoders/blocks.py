"""The convolution blocks that the encoders are made of.

1-D: Lee et al. 2017 (basic), Lee et al. 2018 and Kim et al. 2019 (se, res, rese), in the form of ATOSE / JETATAG.
2-D: Won et al. 2020. Initialisation, biases in front of BatchNorm, BN's eps 1e-3 and momentum 0.01 as published; so is
BN's running variance: the biased one in the 1-D blocks and behind dense layers, the unbiased one in the 2-D blocks.
Every convolution keeps the length; every block ends in a max-pool without padding, which drops the remainder.

The 1-D blocks run as 2-D ones of height 1, [B, C, 1, T], channels last in memory; encoders/convolution.py says why.
What follows a BatchNorm or a sum works in place: at these sizes a new tensor costs more than the arithmetic."""

from typing import Any, Literal, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from atose_ray.encoders.convolution import FlatConv1d, SameConv2d
from atose_ray.encoders.fused import After, fuses, normalise
from atose_ray.encoders.norm import batch_norm_1d, batch_norm_2d
from atose_ray.tags.autoencoder import glorot

BlockKind = Literal["basic", "se", "res", "rese"]
POOL_1D = 3


def conv_1d(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> FlatConv1d:
    """he_uniform, zero bias; keeps the length at stride 1, has no padding at a larger one."""
    conv = FlatConv1d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2 if stride == 1 else 0)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # a Conv1d with bias=True has one
    return conv


class ReluDropout(nn.Module):
    """ReLU, then dropout with probability p, in place where it trains on a CPU. It has neither weights nor buffers."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return functional.relu(x, inplace=True)
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(functional.relu(x, inplace=True), self.p)
        return cast(torch.Tensor, _ReluDropout.apply(x, self.p))


class _ReluDropout(torch.autograd.Function):
    """Dropout from 16 random bits a value: a quarter of the time of torch's, which draws one number each.
    An output is positive just where its input is and was kept, so the backward pass needs no mask."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        dropped = min(round(p * 65536), 65535)
        ctx.scale = 65536 / (65536 - dropped)
        bits_N = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        bits = bits_N[: x.numel()].as_strided(x.shape, x.stride())
        x.masked_fill_(bits < dropped - 32768, 0).relu_().mul_(ctx.scale)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(ctx.scale), None


def conv_norm(
    x: torch.Tensor,
    conv: FlatConv1d | SameConv2d,
    norm: nn.Module,
    pool: tuple[int, int] = (1, 1),
    relu: bool = True,
    dropout: ReluDropout | None = None,
    short: torch.Tensor | None = None,
    excite: tuple[nn.Linear, nn.Linear] | None = None,
) -> torch.Tensor:
    """[B, C, H, W] -> [B, C', H // p, W // q]: pool(dropout(relu(gate * norm(conv(x)) + short))).

    excite: the dense layers of the gate, which stands with a shortcut only. On a GPU all behind the convolution is one
    operator (encoders/fused.py)."""
    if fuses(x, norm, pool):
        after = After(relu, pool, dropout.p if dropout is not None else 0.0)
        return normalise(conv.without_bias(x), norm, conv.bias, after, short, excite)
    x = norm(conv(x))
    if excite is not None:
        assert short is not None
        x = torch.addcmul(short, x, gate_of(x, *excite))
    elif short is not None:
        x = x.add_(short)
    if dropout is not None:
        x = dropout(x)
    elif relu:
        x = functional.relu(x, inplace=True)
    return x if pool == (1, 1) else functional.max_pool2d(x, pool)


def norm_relu(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """[B, C, H, W] -> the same: BatchNorm, ReLU."""
    if fuses(x, norm):
        return normalise(x, norm, None, After())
    return functional.relu(norm(x), inplace=True)


def gate_of(x_BC1T: torch.Tensor, one: nn.Linear, two: nn.Linear) -> torch.Tensor:
    """[B, C, 1, T] -> [B, C, 1, 1]: a factor in (0, 1) for every channel, from the mean of all channels."""
    mean_BC = x_BC1T.squeeze(2).transpose(1, 2).mean(dim=1)  # over [B, T, C]: so its gradient is channels last
    return torch.sigmoid(two(functional.relu(one(mean_BC))))[:, :, None, None]


class Stem1d(nn.Module):
    """[B, T] -> [B, C, 1, T // 3]: convolution of width and stride 3, BN, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = conv_1d(1, channels, kernel=3, stride=3), batch_norm_1d(channels)

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """The convolution is a dense layer over every three samples, which is several times as fast."""
        frames = audio_BT.shape[1] // 3
        triples_BF3 = audio_BT[:, : 3 * frames].reshape(-1, frames, 3)
        x_BFC = functional.linear(triples_BF3, self.conv.weight.squeeze(1), self.conv.bias)
        x_BC1F = x_BFC.transpose(1, 2)[:, :, None]
        return norm_relu(x_BC1F, self.bn)


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

    @property
    def dense(self) -> tuple[nn.Linear, nn.Linear] | None:
        """The layers of the gate, where there is one."""
        return (self.fc1, self.fc2) if self.se_ratio else None


class PlainBlock1d(Block1d):
    """[B, C, 1, T] -> [B, C', 1, T // 3]: conv, BN, ReLU, pool; with se_ratio the excitation follows the pool."""

    def __init__(self, in_channels: int, out_channels: int, se_ratio: int) -> None:
        super().__init__(out_channels, se_ratio)
        self.conv, self.bn = conv_1d(in_channels, out_channels), batch_norm_1d(out_channels)

    def forward(self, x_BC1T: torch.Tensor) -> torch.Tensor:
        x_BC1T = conv_norm(x_BC1T, self.conv, self.bn, (1, POOL_1D))
        return x_BC1T if self.dense is None else x_BC1T * gate_of(x_BC1T, *self.dense)


class ResidualBlock1d(Block1d):
    """[B, C, 1, T] -> [B, C', 1, T // 3]: shortcut + [conv, BN, ReLU, dropout, conv, BN, excitation], ReLU, pool.
    The shortcut is the input, or a 1 x 1 convolution and BN where the number of channels changes."""

    def __init__(self, in_channels: int, out_channels: int, se_ratio: int, dropout: float) -> None:
        super().__init__(out_channels, se_ratio)
        self.changes_channels = in_channels != out_channels
        if self.changes_channels:
            self.sc_conv, self.sc_bn = glorot(FlatConv1d(in_channels, out_channels, 1)), batch_norm_1d(out_channels)
        self.conv1, self.bn1 = conv_1d(in_channels, out_channels), batch_norm_1d(out_channels)
        self.relu_dropout = ReluDropout(dropout)
        self.conv2, self.bn2 = conv_1d(out_channels, out_channels), batch_norm_1d(out_channels)

    def forward(self, x_BC1T: torch.Tensor) -> torch.Tensor:
        short_BC1T = conv_norm(x_BC1T, self.sc_conv, self.sc_bn, relu=False) if self.changes_channels else x_BC1T
        main_BC1T = conv_norm(x_BC1T, self.conv1, self.bn1, dropout=self.relu_dropout)
        return conv_norm(main_BC1T, self.conv2, self.bn2, (1, POOL_1D), short=short_BC1T, excite=self.dense)


def block_1d(kind: BlockKind, in_channels: int, out_channels: int, se_ratio: int, dropout: float) -> Block1d:
    """The 1-D block of a kind; `se_ratio` acts in se and rese, `dropout` in res and rese."""
    ratio = se_ratio if kind in ("se", "rese") else 0
    if kind in ("basic", "se"):
        return PlainBlock1d(in_channels, out_channels, ratio)
    return ResidualBlock1d(in_channels, out_channels, ratio, dropout)


class ConvBlock2d(nn.Module):
    """[B, C, H, W] -> [B, C', H // p, W // q]: conv, BN, ReLU, pool (p, q)."""

    def __init__(self, in_channels: int, out_channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.bn = glorot(SameConv2d(in_channels, out_channels, 3, padding=1)), batch_norm_2d(out_channels)
        self.pool = pool

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return conv_norm(x_BCHW, self.conv, self.bn, self.pool)


class ResidualBlock2d(nn.Module):
    """[B, C, H, W] -> [B, C, H // p, W // q]: x + [conv, BN, ReLU, conv, BN], ReLU, pool (p, q)."""

    def __init__(self, channels: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv_1, self.bn_1 = glorot(SameConv2d(channels, channels, 3, padding=1)), batch_norm_2d(channels)
        self.conv_2, self.bn_2 = glorot(SameConv2d(channels, channels, 3, padding=1)), batch_norm_2d(channels)
        self.pool = pool

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        main_BCHW = conv_norm(x_BCHW, self.conv_1, self.bn_1)
        return conv_norm(main_BCHW, self.conv_2, self.bn_2, self.pool, short=x_BCHW)
