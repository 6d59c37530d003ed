"""Convolutions that keep the length, channels last in memory, in the form that is fastest on a CPU.

1-D ones run as 2-D ones of height 1, [B, C, 1, T]; weights keep their 1-D shape. Output and gradient of the input are
faster in this form than in [B, C, T] on every CPU that was measured: in float32 by a quarter with AVX2, in bfloat16 by
half with AVX512-BF16. The gradient of a float32 weight is not, along wide rows, and so it is computed here. Seconds on
one core of an Intel Xeon for oneDNN channels last, for oneDNN in [B, C, H, W], and for products:

    [4, 128, 1, 19683]   AVX2 0.92  0.18  0.13   AVX512 0.24  0.14  0.07
    [4, 128, 64, 156]    AVX2 0.35  0.19  0.20   AVX512 0.09  0.10  0.10

Which form it is depends on shape, precision and instruction set, never on a clock: a resumed run is the same bits."""

from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

WIDE, MANY_CHANNELS = 100, 64


class FlatConv1d(nn.Conv1d):
    """[B, C, 1, T] -> [B, C', 1, T']: a 1-D convolution, with the weights of one, run as a 2-D one of height 1."""

    def forward(self, x_BC1T: torch.Tensor) -> torch.Tensor:
        if self.stride == (1,):
            return same_convolution(x_BC1T, self.weight[:, :, None], self.bias)
        return functional.conv2d(x_BC1T, self.weight[:, :, None], self.bias, (1, self.stride[0]))

    def without_bias(self, x_BC1T: torch.Tensor) -> torch.Tensor:
        """`forward` at stride 1 on a GPU, without the bias."""
        return dense_convolution(x_BC1T, self.weight[:, :, None])


class SameConv2d(nn.Conv2d):
    """[B, C, H, W] -> [B, C', H, W]: a convolution that keeps the size."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return same_convolution(input, self.weight, self.bias)

    def without_bias(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """`forward` on a GPU, without the bias."""
        return dense_convolution(x_BCHW, self.weight)


def same_convolution(x_BCHW: torch.Tensor, weight_DCIJ: torch.Tensor, bias_D: torch.Tensor | None) -> torch.Tensor:
    """[B, C, H, W] -> [B, D, H, W]: zeros around, stride 1, kernels of 1 x J or J x J, J odd."""
    if x_BCHW.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return functional.conv2d(x_BCHW, weight_DCIJ, bias_D, padding=padding_of(weight_DCIJ))
    return cast(torch.Tensor, _SameConvolution.apply(x_BCHW, weight_DCIJ, bias_D))


def dense_convolution(x_BCHW: torch.Tensor, weight_DCIJ: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, D, H, W] on a GPU: zeros are added to the channels until 8 divides them, as cuDNN's fast
    kernels need (six channels of HarmonicCNN at batch 128 took 4.3 ms of 54, H100)."""
    if missing := -x_BCHW.shape[1] % 8:
        x_BCHW = functional.pad(x_BCHW, (0, 0, 0, 0, 0, missing))
        weight_DCIJ = functional.pad(weight_DCIJ, (0, 0, 0, 0, 0, missing))
    return functional.conv2d(x_BCHW, weight_DCIJ, padding=padding_of(weight_DCIJ))


def padding_of(weight_DCIJ: torch.Tensor) -> list[int]:
    """Zeros above and below, left and right, so that the size stays."""
    return [weight_DCIJ.shape[2] // 2, weight_DCIJ.shape[3] // 2]


class _SameConvolution(torch.autograd.Function):
    """conv2d, and its gradients; that of the weight by matrix products where they are faster."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: torch.Tensor, weight_DCIJ: torch.Tensor, bias_D: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_BCHW, weight_DCIJ)
        return functional.conv2d(x_BCHW, weight_DCIJ, bias_D, padding=padding_of(weight_DCIJ))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BDHW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_BCHW, weight_DCIJ = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        products = wants_weight and products_are_faster(x_BCHW, weight_DCIJ)
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *(grad_BDHW, x_BCHW, weight_DCIJ, [weight_DCIJ.shape[0]], [1, 1], padding_of(weight_DCIJ), [1, 1]),
            *(False, [0, 0], 1, [wants_x, wants_weight and not products, wants_bias and not products]),
        )
        if products:
            by_products = gradient_1d if weight_DCIJ.shape[2] == 1 else gradient_2d
            grad_weight = by_products(grad_BDHW, x_BCHW, weight_DCIJ.shape[3])
            grad_bias = grad_BDHW.sum(dim=(0, 2, 3)) if wants_bias else None
        return grad_x, grad_weight, grad_bias


def products_are_faster(x_BCHW: torch.Tensor, weight_DCIJ: torch.Tensor) -> bool:
    """Whether oneDNN is slower than matrix products at the gradient of this weight."""
    if x_BCHW.shape[3] < WIDE or weight_DCIJ.shape[2] == 1:
        return x_BCHW.shape[3] >= WIDE
    return x_BCHW.shape[1] >= MANY_CHANNELS and not onednn_has_avx512()


def onednn_has_avx512() -> bool:
    """Whether oneDNN computes with AVX512: the processor has it, and ONEDNN_MAX_CPU_ISA does not forbid it."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def gradient_1d(grad_BD1T: torch.Tensor, x_BC1T: torch.Tensor, taps: int) -> torch.Tensor:
    """[D, C, 1, J]: a product for each tap and clip."""
    grad_BDT, x_BTC, length = grad_BD1T.squeeze(2), x_BC1T.squeeze(2).transpose(1, 2), x_BC1T.shape[3]
    products_DC = []
    for shift in range(-(taps // 2), taps // 2 + 1):
        back, ahead = max(-shift, 0), max(shift, 0)
        product_BDC = grad_BDT[:, :, back : length - ahead] @ x_BTC[:, ahead : length - back]
        products_DC.append(product_BDC.sum(dim=0))
    return torch.stack(products_DC, dim=2)[:, :, None]


def gradient_2d(grad_BDHW: torch.Tensor, x_BCHW: torch.Tensor, taps: int) -> torch.Tensor:
    """[D, C, J, J]: a clip at a time, which stays in the cache, and a product for each tap.

    A clip's rows lie one behind the other, with zeros between them, so that a tap is a shift of that line."""
    half, width = taps // 2, x_BCHW.shape[3]
    total_KDC = x_BCHW.new_zeros(taps * taps, grad_BDHW.shape[1], x_BCHW.shape[1])
    for grad_HWD, x_HWC in zip(grad_BDHW.permute(0, 2, 3, 1), x_BCHW.permute(0, 2, 3, 1), strict=True):
        grad_ND = functional.pad(grad_HWD, (0, 0, 0, half)).flatten(0, 1)
        x_MC = functional.pad(x_HWC, (0, 0, 0, half, half, half)).flatten(0, 1)
        x_MC = functional.pad(x_MC, (0, 0, half, half))
        for tap, total_DC in enumerate(total_KDC):
            start = tap // taps * (width + half) + tap % taps
            total_DC.addmm_(grad_ND.T, x_MC[start : start + grad_ND.shape[0]])
    return total_KDC.view(taps, taps, *total_KDC.shape[1:]).permute(2, 3, 0, 1)
