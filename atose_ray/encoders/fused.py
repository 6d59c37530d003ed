"""BatchNorm and what follows it as one operator on a GPU: excitation, sum with a shortcut, ReLU, dropout, max-pooling.

A block's convolutions are matrix products, which a GPU does at once; what stands between them moves the same numbers
through memory again and again, and takes most of a step (docs/LOG.md has the profile). Here a normalised tensor is read
for its statistics, and once more for all the rest; the gradient reads it twice and writes it once.

The bias of a convolution in front of BatchNorm is left out: the mean takes it away again, its gradient is zero, and
only the running mean hears of it. Kernels: encoders/kernels.py, in Triton (Tillet, Kung, Cox, MAPL 2019)."""

import importlib
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from atose_ray.encoders.norm import BiasedBatchNorm
from atose_ray.gpu import takes_kernels

LARGEST_WINDOW = 12  # values that one output may look at: the loop over them is unrolled
TILE = 2048  # values that a program holds of a tensor
PROGRAMS = 1056  # that a reduction is cut into at least, eight for each processor of an H100
PARTIAL = {"BP": 256, "BC": 16, "num_warps": 8}  # how their results are added up


@dataclass(frozen=True)
class After:
    """What follows the normalisation. pool: window and stride, in rows and columns. dropout: between 0 and 1."""

    relu: bool = True
    pool: tuple[int, int] = (1, 1)
    dropout: float = 0.0


def kernels() -> ModuleType:
    """encoders/kernels.py, for which Triton must be there."""
    return importlib.import_module("atose_ray.encoders.kernels")


def fuses(x_BCHW: torch.Tensor, norm: nn.Module, pool: tuple[int, int] = (1, 1)) -> bool:
    """Whether `normalise` takes over: on a GPU, for BatchNorms of this package that keep running statistics, training
    or without gradients. A synchronised BatchNorm and an odd pooling stay with PyTorch."""
    if not takes_kernels(x_BCHW):
        return False
    plain = type(norm) in (nn.BatchNorm2d, BiasedBatchNorm) and norm.momentum is not None and norm.affine
    values = x_BCHW.numel() // x_BCHW.shape[1]
    possible = (norm.training and values > 1) or (not norm.training and not torch.is_grad_enabled())
    fits = pool[0] * pool[1] <= LARGEST_WINDOW and pool[0] <= x_BCHW.shape[2] and pool[1] <= x_BCHW.shape[3]
    return bool(plain and possible and fits and x_BCHW.is_floating_point() and norm.track_running_stats)


def normalise(
    x_BCHW: torch.Tensor,
    norm: nn.Module,
    bias_C: torch.Tensor | None,
    after: After,
    short_BCHW: torch.Tensor | None = None,
    excite: tuple[nn.Linear, nn.Linear] | None = None,
) -> torch.Tensor:
    """[B, C, H, W] -> [B, C, H // p, W // q]: pool(dropout(relu(gate * norm(x + bias) + short))), channels last.

    excite: two dense layers whose gate, sigmoid(two(relu(one(mean over H and W)))), scales the normalised x.
    What `fuses` refuses is an error here. Under autocast the output is in its precision, else in that of x."""
    device = x_BCHW.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BCHW.dtype
    dense = () if excite is None else tuple(one for layer in excite for one in (layer.weight, layer.bias))
    norm = cast(_BatchNorm, norm)
    after = after if norm.training else After(after.relu, after.pool)
    return cast(
        torch.Tensor, _Normalise.apply(x_BCHW, short_BCHW, norm.weight, norm.bias, bias_C, norm, after, dtype, *dense)
    )


class _Normalise(torch.autograd.Function):
    """The operator and its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        short: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        conv_bias: torch.Tensor | None,
        norm: _BatchNorm,
        after: After,
        dtype: torch.dtype,
        *dense: torch.Tensor,
    ) -> torch.Tensor:
        x = channels_last(x.detach())
        short = None if short is None else channels_last(short.detach())
        plan = Plan.of(x, after)
        sums = plan.sums(x) if norm.training or dense else None
        stats = plan.finish(x, sums, norm, conv_bias) if norm.training else plan.fold(norm, conv_bias, x)
        gate, hidden, mean = None, None, None
        if dense:
            assert sums is not None
            mean = clip_means(x, sums, plan)
            hidden, gate = excitation(torch.addcmul(stats[3], mean, stats[2]), dense, dtype)
        seed = None
        if after.dropout:
            seed = torch.randint(2**31 - 1, (1,), device=x.device, dtype=torch.int64)
        y = plan.apply(Given(x, short, stats, gate), seed, dtype)
        if norm.training:
            kept = y if after.dropout else None
            ctx.save_for_backward(x, short, stats, gate, hidden, mean, kept, *dense)
            ctx.plan, ctx.has_bias = plan, conv_bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, short, stats, gate, hidden, mean, y, *dense = ctx.saved_tensors
        plan: Plan = ctx.plan
        dy = channels_last(dy)
        given = Given(x, short, stats, gate, y)
        partial = plan.grad_sums(given, dy)
        clips, means, dense_grads = None, None, list[torch.Tensor]()
        if dense:
            dgate = partial[:, :, 2].sum(dim=1)
            dmean, dense_grads = excitation_grad(dgate, stats[2] * mean + stats[3], hidden, gate, dense)
            normal_BC = (mean - stats[0]) * stats[1]
            clips = torch.stack([dmean.sum(dim=0), (dmean * normal_BC).sum(dim=0)])
            means = dmean / (plan.height * plan.width)
        grads = plan.grad_finish(partial, clips)
        dx, dshort = plan.grad_input(given, dy, grads, means)
        dbias = torch.zeros_like(grads[0]) if ctx.has_bias else None
        return dx, dshort, grads[1], grads[0], dbias, None, None, None, *dense_grads


def channels_last(x_BCHW: torch.Tensor) -> torch.Tensor:
    """With the channels of a place side by side in memory; how the places lie does not matter."""
    if x_BCHW.stride(1) == 1 or x_BCHW.shape[1] == 1:
        return x_BCHW
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def clip_means(x: torch.Tensor, sums: torch.Tensor, plan: "Plan") -> torch.Tensor:
    """[B, C] float32: mean of every clip and channel of x."""
    return x[0, :, 0, 0].float() + sums[:, :, 0].sum(dim=1) / (plan.height * plan.width)


def excitation(
    mean_BC: torch.Tensor, dense: tuple[torch.Tensor, ...], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden units and gate [B, C] of two dense layers, (weight, bias, weight, bias), computed in `dtype`."""
    one, one_bias, two, two_bias = (tensor.detach().to(dtype) for tensor in dense)
    hidden = torch.relu(torch.addmm(one_bias, mean_BC.to(dtype), one.T))
    return hidden, torch.sigmoid(torch.addmm(two_bias, hidden, two.T).float())


def excitation_grad(
    dgate: torch.Tensor, mean_BC: torch.Tensor, hidden: torch.Tensor, gate: torch.Tensor, dense: list[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Gradient of the mean, and of (weight, bias, weight, bias)."""
    dtype = hidden.dtype
    dout = dgate * gate * (1 - gate)
    low = dout.to(dtype)
    dhidden = (low @ dense[2].to(dtype)) * (hidden > 0)
    dtwo, done = low.T @ hidden, dhidden.T @ mean_BC.to(dtype)
    dmean = dhidden @ dense[0].to(dtype)
    dbiases = dhidden.float().sum(dim=0), dout.sum(dim=0)
    return dmean.float(), [done.float(), dbiases[0], dtwo.float(), dbiases[1]]


@dataclass(frozen=True)
class Plan:
    """The launches for tensors of one size."""

    clips: int
    channels: int
    height: int
    width: int
    after: After

    @classmethod
    def of(cls, x: torch.Tensor, after: After) -> "Plan":
        """For this x."""
        clips, channels, height, width = x.shape
        return cls(clips, channels, height, width, after)

    @property
    def out(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return self.height // self.after.pool[0], self.width // self.after.pool[1]

    @property
    def tile(self) -> tuple[int, int]:
        """Places and channels that a program holds."""
        wide = min(128, 1 << (self.channels - 1).bit_length())
        window = self.after.pool[0] * self.after.pool[1]
        return max(8, TILE // wide // (2 if window > 1 else 1)), wide

    def grid(self, places: int, tile: tuple[int, int]) -> tuple[int, int]:
        """Programs for so many places."""
        return -(-places // tile[0]), -(-self.channels // tile[1])

    def cut(self, places: int, tile: tuple[int, int]) -> tuple[int, int]:
        """How the places of a clip are reduced: so many by one program, in so many programs."""
        wanted = -(-PROGRAMS // (self.clips * -(-self.channels // tile[1])))
        tiles = -(-places // tile[0])
        chunk = tile[0] * -(-tiles // min(wanted, tiles))
        return chunk, -(-places // chunk)

    def flags(self, given: "Given", tile: tuple[int, int]) -> dict[str, Any]:
        """What a kernel is made for."""
        after = self.after
        does = {"RELU": after.relu, "DROP": after.dropout > 0}
        there = {"SHORT": given.short is not None, "GATE": given.gate is not None}
        return {"PH": after.pool[0], "PW": after.pool[1], **does, **there, "BR": tile[0], "BC": tile[1]}

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """[B, chunks, 2, C]: see kernels.sums."""
        tile = max(16, TILE // self.tile[1]), self.tile[1]
        chunk, chunks = self.cut(self.height * self.width, tile)
        partial = torch.empty(self.clips, chunks, 2, self.channels, device=x.device, dtype=torch.float32)
        kernels().sums[(self.clips * chunks, -(-self.channels // tile[1]))](
            *(x, partial, self.height, self.width, self.channels, *places(x), chunk, chunks), BR=tile[0], BC=tile[1]
        )
        return partial

    def finish(
        self, x: torch.Tensor, sums: torch.Tensor | None, norm: _BatchNorm, conv_bias: torch.Tensor | None
    ) -> torch.Tensor:
        """[4, C]: mean, 1 / std, scale, shift of this batch; the running statistics of `norm` go on."""
        assert sums is not None
        stats = torch.empty(4, self.channels, device=x.device, dtype=torch.float32)
        count = self.clips * self.height * self.width
        correction = 1.0 if isinstance(norm, BiasedBatchNorm) else count / (count - 1)
        kernels().finish[(-(-self.channels // 16),)](
            *(x, sums, sums.shape[0] * sums.shape[1], self.channels, float(count), norm.weight, norm.bias),
            *(norm.bias if conv_bias is None else conv_bias, norm.running_mean, norm.running_var),
            *(norm.num_batches_tracked, norm.momentum, norm.eps, correction, stats),
            **{"HAS_BIAS": conv_bias is not None, **PARTIAL},
        )
        return stats

    def fold(self, norm: _BatchNorm, conv_bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        """[4, C], of which scale and shift are there: from the running statistics."""
        stats = torch.empty(4, self.channels, device=x.device, dtype=torch.float32)
        kernels().fold[(-(-self.channels // 128),)](
            *(norm.weight, norm.bias, norm.bias if conv_bias is None else conv_bias),
            *(norm.running_mean, norm.running_var, norm.eps, stats, self.channels),
            **{"HAS_BIAS": conv_bias is not None, "BC": 128},
        )
        return stats

    def apply(self, given: "Given", seed: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """The output."""
        x, p = given.x, self.after.dropout
        y = empty_places(x, (self.clips, self.channels, *self.out), dtype)
        total, tile = self.clips * self.out[0] * self.out[1], self.tile
        per_program = (tile[0] * (4 if p else 1), tile[1])
        kernels().apply[self.grid(total, per_program)](
            *(x, y, given.or_x(given.short), given.stats, given.or_x(given.gate), given.or_x(seed), total),
            *(self.height, self.width, self.channels, *self.out, *places(x), *places(given.or_x(given.short))),
            *(math.ldexp(p, 32), 1 / (1 - p)),
            **self.flags(given, tile),
        )
        return y

    def grad_sums(self, given: "Given", dy: torch.Tensor) -> torch.Tensor:
        """[B, chunks, 3, C]: see kernels.grad_sums."""
        tile = self.tile
        chunk, chunks = self.cut(self.out[0] * self.out[1], tile)
        partial = torch.empty(self.clips, chunks, 3, self.channels, device=dy.device, dtype=torch.float32)
        kernels().grad_sums[(self.clips * chunks, -(-self.channels // tile[1]))](
            *(given.x, given.or_x(given.y), dy, given.or_x(given.short), given.stats, given.or_x(given.gate), partial),
            *(self.channels, *self.out, *places(given.x), *places(given.or_x(given.short)), *places(dy)),
            *(chunk, chunks, 1 / (1 - self.after.dropout)),
            **self.flags(given, tile),
        )
        return partial

    def grad_finish(self, partial: torch.Tensor, clips: torch.Tensor | None) -> torch.Tensor:
        """[2, C]: gradients of bias and weight."""
        grads = torch.empty(2, self.channels, device=partial.device, dtype=torch.float32)
        kernels().grad_finish[(-(-self.channels // 16),)](
            *(partial, partial.shape[0] * partial.shape[1], self.channels, grads, grads if clips is None else clips),
            **{"HAS_CLIPS": clips is not None, **PARTIAL},
        )
        return grads

    def grad_input(
        self, given: "Given", dy: torch.Tensor, grads: torch.Tensor, means: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradients of x and of the shortcut."""
        x, short, tile = given.x, given.short, self.tile
        windows = -(-self.height // self.after.pool[0]), -(-self.width // self.after.pool[1])
        total = self.clips * windows[0] * windows[1]
        dx = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        dshort = None if short is None else empty_places(short, tuple(short.shape), short.dtype)
        kernels().grad_input[self.grid(total, tile)](
            *(x, given.or_x(given.y), dy, given.or_x(short), given.stats, given.or_x(given.gate), grads),
            *(given.or_x(means), dx, dx if dshort is None else dshort, total),
            *(float(self.clips * self.height * self.width), self.height, self.width, self.channels),
            *(*self.out, *windows),
            *(*places(x), *places(given.or_x(short)), *places(dy), 1 / (1 - self.after.dropout)),
            **self.flags(given, tile),
        )
        return dx, dshort


class Given(NamedTuple):
    """What the kernels read. stats [4, C]; gate [B, C]; y: the output, where values of it were dropped."""

    x: torch.Tensor
    short: torch.Tensor | None
    stats: torch.Tensor
    gate: torch.Tensor | None
    y: torch.Tensor | None = None

    def or_x(self, tensor: torch.Tensor | None) -> torch.Tensor:
        """It, or where it is not there something that a kernel can be given and will not read."""
        return self.x if tensor is None else tensor


def places(x_BCHW: torch.Tensor) -> tuple[int, int, int]:
    """Strides of clip, row and column, in values."""
    return x_BCHW.stride(0), x_BCHW.stride(2), x_BCHW.stride(3)


def empty_places(x: torch.Tensor, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Memory for [B, C, H, W], channels last."""
    clips, channels, height, width = size
    return torch.empty(clips, height, width, channels, device=x.device, dtype=dtype).permute(0, 3, 1, 2)
