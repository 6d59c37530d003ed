"""Every form of a convolution is the convolution: outputs and gradients of conv2d, whatever computes them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from atose_ray.encoders import convolution
from atose_ray.encoders.blocks import ConvBlock2d, PlainBlock1d
from atose_ray.encoders.convolution import WIDE, products_are_faster, same_convolution

SHAPES = {  # input [B, C, H, W], kernel [I, J]
    "1-D": ((3, 5, 1, WIDE + 1), (1, 3)),
    "1-D, one tap": ((3, 5, 1, WIDE), (1, 1)),
    "1-D, five taps": ((2, 3, 1, WIDE), (1, 5)),
    "1-D, one clip": ((1, 5, 1, WIDE), (1, 3)),
    "1-D, short": ((3, 5, 1, 9), (1, 3)),
    "2-D": ((3, 64, 6, WIDE + 1), (3, 3)),
    "2-D, one row": ((2, 64, 1, WIDE), (3, 3)),
    "2-D, five taps": ((2, 64, 4, WIDE), (5, 5)),
    "2-D, few channels": ((2, 5, 4, WIDE), (3, 3)),
}
BY_PRODUCTS = {name for name in SHAPES if "short" not in name and "few" not in name}


def inputs(name: str, layout: torch.memory_format) -> tuple[torch.Tensor, ...]:
    """x, weight and bias in float64, which takes gradients; and the gradient of the output."""
    (clips, channels, rows, width), kernel = SHAPES[name]
    made = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made, dtype=torch.float64)

    x, grad = (noise(clips, n, rows, width).contiguous(memory_format=layout) for n in (channels, 4))
    return x.requires_grad_(), noise(4, channels, *kernel).requires_grad_(), noise(4).requires_grad_(), grad


@pytest.fixture
def onednn_without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "onednn_has_avx512", lambda: False)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", SHAPES)
def test_gradients_are_those_of_conv2d(name: str, layout: torch.memory_format, onednn_without_avx512: None) -> None:
    *leaves, grad = inputs(name, layout)
    x, weight, bias = leaves
    assert products_are_faster(x, weight) == (name in BY_PRODUCTS)
    out, want = same_convolution(x, weight, bias), functional.conv2d(x, weight, bias, padding="same")
    assert torch.allclose(out, want, rtol=0, atol=1e-12)
    for got, wanted in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True
    ):
        assert torch.allclose(got, wanted, rtol=0, atol=1e-11)


def test_only_what_is_asked_for(onednn_without_avx512: None) -> None:
    """A frozen weight, a frozen input and no bias each get no gradient, and the others theirs."""
    x, weight, bias, grad = inputs("1-D", torch.channels_last)
    (want,) = torch.autograd.grad(same_convolution(x, weight, bias), weight, grad)
    alone = same_convolution(x.detach(), weight, None)
    assert torch.equal(torch.autograd.grad(alone, weight, grad)[0], want)
    for leaf in (x, bias):
        assert same_convolution(x, weight.detach(), bias).requires_grad
        (got,) = torch.autograd.grad(same_convolution(x, weight.detach(), bias), leaf, grad)
        assert got.shape == leaf.shape


def test_a_tap_that_sees_only_zeros_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly none: Adam would make whole steps of a rounding error."""
    monkeypatch.setattr(convolution, "WIDE", 1)
    x, weight = torch.randn(4, 8, 1, 1), torch.randn(8, 8, 1, 3, requires_grad=True)
    assert products_are_faster(x, weight)
    (got,) = torch.autograd.grad(same_convolution(x, weight, None).sum(), weight)
    assert got[..., 1].abs().min() > 0 and got[..., [0, 2]].abs().max() == 0


def test_with_avx512_only_one_dimension_goes_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "onednn_has_avx512", lambda: True)
    for name in BY_PRODUCTS:
        x, weight, *_ = inputs(name, torch.channels_last)
        assert products_are_faster(x, weight) == name.startswith("1-D")


def test_bfloat16_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its units are faster than any product in float32; so autocast goes past what is written by hand."""
    monkeypatch.setattr(convolution, "products_are_faster", lambda x, weight: pytest.fail("asked in bfloat16"))
    blocks = PlainBlock1d(4, 4, se_ratio=0), ConvBlock2d(4, 4, (1, 1))
    for block, rows in zip(blocks, (1, 3), strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            out = block(torch.randn(2, 4, rows, WIDE))
        out.sum().backward()


@pytest.mark.parametrize(("block", "rows"), [(PlainBlock1d(4, 4, se_ratio=0), 1), (ConvBlock2d(4, 4, (1, 1)), 3)])
def test_blocks_ask_which_form_is_faster(block: torch.nn.Module, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(convolution, "products_are_faster", lambda x, weight: asked.append(x.shape))
    block(torch.randn(2, 4, rows, WIDE)).sum().backward()
    assert asked == [(2, 4, rows, WIDE)]


def test_onednn_is_asked_what_it_may_use() -> None:
    """ONEDNN_MAX_CPU_ISA is read once, at the start of a process."""
    code = "from atose_ray.encoders.convolution import onednn_has_avx512 as has; print(has())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout.strip() == "False"
