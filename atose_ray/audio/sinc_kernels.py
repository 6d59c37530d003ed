"""Triton kernels of audio/sinc.py: products of spectra, each in one pass. Importing this file needs Triton.

Letters as there. Complex numbers lie as pairs of float32."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

import torch
import triton
import triton.language as tl

TILE_CHANNELS, TILE_BINS = 4, 128
CLIPS = 16  # that one program of `product` goes through


@triton.jit
def load_complex(at, k, K, BK: tl.constexpr):
    """K frequencies of a row -> real and imaginary parts [1, BK]."""
    two = k * 2 + tl.arange(0, 2 * BK)
    return tl.split(tl.reshape(tl.load(at + two, mask=two < 2 * K, other=0.0), (1, BK, 2)))


@triton.jit
def load_rows(at, c, C, step, k, K, BC: tl.constexpr, BK: tl.constexpr):
    """Rows c, `step` complex numbers apart -> real and imaginary parts [BC, BK]."""
    two = k * 2 + tl.arange(0, 2 * BK)
    live = (c < C)[:, None] & (two < 2 * K)[None, :]
    values = tl.load(at + (c * step * 2)[:, None] + two[None, :], mask=live, other=0.0)
    return tl.split(tl.reshape(values, (BC, BK, 2)))


@triton.jit(do_not_specialize=["B", "K"])
def product_kernel(
    audio, kernel, out, B, C, K,
    P: tl.constexpr, CLIPS: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out [B, C, K] = the sum over P of audio [B, P, K] times the conjugate of kernel [C, P, K]."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    k = tl.program_id(1) * BK
    two = k * 2 + tl.arange(0, 2 * BK)
    live = (c < C)[:, None] & (two < 2 * K)[None, :]
    first = tl.program_id(2) * CLIPS
    audio += first.to(tl.int64) * P * K * 2
    out += first.to(tl.int64) * C * K * 2
    for _ in range(first, tl.minimum(first + CLIPS, B)):
        real = tl.zeros((BC, BK), tl.float32)
        imag = tl.zeros((BC, BK), tl.float32)
        for p in tl.static_range(P):
            kr, ki = load_rows(kernel + p * K * 2, c, C, P * K, k, K, BC, BK)
            ar, ai = load_complex(audio + p * K * 2, k, K, BK)
            real += ar * kr + ai * ki
            imag += ai * kr - ar * ki
        to = out + (c * K * 2)[:, None] + two[None, :]
        tl.store(to, tl.reshape(tl.join(real, imag), (BC, 2 * BK)), mask=live)
        audio += P * K * 2
        out += C * K * 2


@triton.jit(do_not_specialize=["B", "K"])
def correlation_kernel(grad, audio, total, B, C, K, P: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr):
    """total [C, P, K] += the sum over B of audio [B, P, K] times the conjugate of grad [B, C, K]; one phase a program,
    and the clips one after the other, so the sum is the same each time."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    k = tl.program_id(1) * BK
    p = tl.program_id(2)
    two = k * 2 + tl.arange(0, 2 * BK)
    live = (c < C)[:, None] & (two < 2 * K)[None, :]
    real = tl.zeros((BC, BK), tl.float32)
    imag = tl.zeros((BC, BK), tl.float32)
    audio += p * K * 2
    for _ in range(0, B):
        gr, gi = load_rows(grad, c, C, K, k, K, BC, BK)
        ar, ai = load_complex(audio, k, K, BK)
        real += ar * gr + ai * gi
        imag += ai * gr - ar * gi
        grad += C * K * 2
        audio += P * K * 2
    at = total + p * K * 2 + (c * P * K * 2)[:, None] + two[None, :]
    sums = tl.load(at, mask=live, other=0.0) + tl.reshape(tl.join(real, imag), (BC, 2 * BK))
    tl.store(at, sums, mask=live)


def product(audio_BPK: torch.Tensor, kernel_CPK: torch.Tensor) -> torch.Tensor:
    """[B, P, K] and [C, P, K], complex64 -> [B, C, K]: the sum over P of audio times conj(kernel)."""
    clips, phases, bins = audio_BPK.shape
    channels = kernel_CPK.shape[0]
    out_BCK = audio_BPK.new_empty(clips, channels, bins)
    grid = -(-channels // TILE_CHANNELS), -(-bins // TILE_BINS), -(-clips // CLIPS)
    product_kernel[grid](
        *(real(audio_BPK), real(kernel_CPK), torch.view_as_real(out_BCK), clips, channels, bins),
        *(phases, CLIPS, TILE_CHANNELS, TILE_BINS),
    )
    return out_BCK


def correlate_(total_CPK: torch.Tensor, grad_BCK: torch.Tensor, audio_BPK: torch.Tensor) -> None:
    """Add the sum over B of conj(grad) [B, C, K] times audio [B, P, K] to total [C, P, K], contiguous; complex64."""
    channels, phases, bins = total_CPK.shape
    grid = -(-channels // TILE_CHANNELS), -(-bins // TILE_BINS), phases
    correlation_kernel[grid](
        *(real(grad_BCK), real(audio_BPK), torch.view_as_real(total_CPK), grad_BCK.shape[0], channels, bins),
        *(phases, TILE_CHANNELS, TILE_BINS),
    )


def real(spectrum: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs, one row behind the other."""
    return torch.view_as_real(spectrum.resolve_conj().contiguous())
