"""Band-passes made of two numbers each, and a fast way to hear them through the convolution that follows.

Paper: Ravanelli and Bengio, "Speaker Recognition from Raw Waveform with SincNet", SLT 2018, equations 4 to 8; here in
the form of ATOSE / JETATAG's MusicSinc1D (Appl. Sci. 2023, 13(15), 9002), whose numbers `published=True` reproduces:

- Edges start mel-spaced from 80 *mel* (51.5 Hz) to half the rate, and a band spans two steps, so neighbours overlap by
  half. Parameters are in cycles per sample; 50 Hz are added to the lower edge and to the width.
- The published low-pass is 2 f sin(2 f t) / (2 f t): the pi is missing, and so all bands lie a factor of pi lower than
  their parameters say. It is built for 22050 Hz, also for audio of another rate. `published=False` is the honest bank:
  it has the pi, is built for the rate of the audio, and a filter passes what its parameters say.
- Every filter is divided by its largest tap, which is the middle one, and windowed by a Hamming window whose
  denominator is L, not L - 1: it is slightly asymmetric.

Sinc bank and stem are both linear and nothing stands between them, so they are one convolution of L + 2 taps and
stride 3 (`compose`). Long kernels go by FFT (`fft_conv`), with the stride folded in: cut into three phases (every third
sample), a convolution of stride 3 is the sum of three of stride 1 and a third of the length, so the inverse transform
has a third of the length too. The bank's own S x T output, a hundred times the audio, never exists.

Letters here: S sinc filters, L taps, C channels of the stem, P the three phases, J taps of a phase, K frequencies.
"""

import importlib
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy.fft import next_fast_len
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from atose_ray.gpu import takes_kernels

PUBLISHED_RATE_HZ = 22050
LOWEST_MEL = 80.0
FIRST_LOW_HZ = 30.0  # lower edge of the first band
TOP_MARGIN_HZ = 100.0  # the last band ends this far below half the rate
MIN_HZ = 50.0  # lowest edge, and narrowest band
STRIDE = 3
# Kernels of fewer taps are faster without FFT: on one thread of an AMD EPYC (Zen 5), forward and backward, direct took
# 0.7 to 1.1 of FFT's time at 67 taps, 1.1 to 1.7 at 131, 1.5 to 2.9 at 259, 3 to 6 at 515 (8 to 128 channels).
FFT_FROM_TAPS = 128
BLOCK_PHASE_KERNELS, MIN_BLOCK_FRAMES = 4, 2048


def mel_bands_hz(filters: int, rate_hz: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper edges [S] in Hz, float64, of overlapping bands. Raises ValueError for a rate too low."""
    lowest_hz = 700 * (10 ** (LOWEST_MEL / 2595) - 1)
    if rate_hz / 2 - TOP_MARGIN_HZ <= lowest_hz:
        raise ValueError(
            f"the sinc bank needs sample_rate_hz of at least {math.ceil(2 * (lowest_hz + TOP_MARGIN_HZ))}, so that its "
            f"bands from {lowest_hz:.1f} Hz lie below half of it, but got {rate_hz}; resample, 22050 is published"
        )
    top_mel = 2595 * math.log10(1 + rate_hz / 2 / 700)
    edge_mel = torch.linspace(LOWEST_MEL, top_mel, filters, dtype=torch.float64)
    edge_hz = 700 * (10 ** (edge_mel / 2595) - 1)
    low_hz = torch.cat([torch.tensor([FIRST_LOW_HZ], dtype=torch.float64), edge_hz[:-1]])
    high_hz = torch.cat([edge_hz[1:], torch.tensor([rate_hz / 2 - TOP_MARGIN_HZ], dtype=torch.float64)])
    return low_hz, high_hz


class SincBank(nn.Module):
    """() -> [S, L] filters, in the order in which a convolution of torch reads them.

    rate_hz: the rate that the bank is built for; L must be odd. Parameters: `filt_b1`, lower edges, and `filt_band`,
    widths, both [S, 1] in cycles per sample. A band that reaches above half the rate folds back to below it."""

    window: torch.Tensor

    def __init__(self, filters: int, length: int, rate_hz: int, published: bool) -> None:
        super().__init__()
        assert length % 2 == 1, "a filter has a middle tap"
        low_hz, high_hz = mel_bands_hz(filters, rate_hz)
        self.rate_hz = rate_hz
        self.angle = 2.0 if published else 2 * math.pi
        self.filt_b1 = nn.Parameter((low_hz / rate_hz).float()[:, None])
        self.filt_band = nn.Parameter(((high_hz - low_hz) / rate_hz).float()[:, None])
        tap = torch.arange(length, dtype=torch.float64)
        window = 0.54 - 0.46 * torch.cos(2 * math.pi * tap / length)
        self.register_buffer("window", window.float(), persistent=False)

    def edges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lower and upper edges [S, 1] in cycles per sample: true ones, or pi times too high in the published bank."""
        least = MIN_HZ / self.rate_hz
        low_S1 = self.filt_b1.abs() + least
        return low_S1, low_S1 + (self.filt_band.abs() + least)

    def forward(self) -> torch.Tensor:
        low_S1, high_S1 = self.edges()
        half = self.window.numel() // 2
        time_s = torch.arange(1, half + 1, dtype=low_S1.dtype, device=low_S1.device) / self.rate_hz
        right_SX = self._low_pass(high_S1, time_s) - self._low_pass(low_S1, time_s)
        middle_S1 = 2 * high_S1 - 2 * low_S1
        right_SX = right_SX / middle_S1
        return torch.cat([right_SX.flip(1), torch.ones_like(middle_S1), right_SX], dim=1) * self.window

    def _low_pass(self, edge_S1: torch.Tensor, time_s: torch.Tensor) -> torch.Tensor:
        """[S, L // 2] right half of an ideal low-pass, in the published order of operations (its rounding is 1e-5)."""
        angle_SX = self.angle * ((edge_S1 * self.rate_hz) * time_s)
        return 2 * edge_S1 * (torch.sin(angle_SX) / angle_SX)


def compose(bank_SL: torch.Tensor, stem_CS3: torch.Tensor) -> torch.Tensor:
    """[S, L] filters, then the stem's kernel [C, S, 3] -> the one kernel [C, L + 2] that does both."""
    channels, filters, taps = stem_CS3.shape
    parts = (stem_CS3.permute(2, 0, 1).reshape(-1, filters) @ bank_SL).view(taps, channels, -1)
    return torch.stack([functional.pad(part, (j, taps - 1 - j)) for j, part in enumerate(parts)]).sum(dim=0)


def sinc_stem(audio_BT: torch.Tensor, bank_SL: torch.Tensor, stem: nn.Conv1d) -> torch.Tensor:
    """[B, T] -> [B, C, (T + L - 1) // 3]: the bank, keeping the length, then the stem of width and stride 3.

    L // 2 zeros are put on both sides first, as published, and again by the bank's own padding. Always in at least
    float32, also under autocast: sums of thousands of products need more than bfloat16's 8 bits."""
    with torch.autocast(audio_BT.device.type, enabled=False):
        kernel_CL = compose(bank_SL, stem.weight)
        zeros = bank_SL.shape[1] - 1
        padded_BT = functional.pad(audio_BT.to(kernel_CL.dtype), (zeros, zeros))
        conv = fft_conv if kernel_CL.shape[1] >= FFT_FROM_TAPS else direct_conv
        return conv(padded_BT, kernel_CL, cast(torch.Tensor, stem.bias))


def direct_conv(audio_BT: torch.Tensor, kernel_CL: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """[B, T] -> [B, C, (T - L) // 3 + 1]: convolution of stride 3 without padding."""
    return functional.conv1d(audio_BT[:, None], kernel_CL[:, None], bias_C, stride=STRIDE)


def fft_conv(audio_BT: torch.Tensor, kernel_CL: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """[B, T] -> [B, C, (T - L) // 3 + 1]: the same as `direct_conv`, by FFT."""
    return cast(torch.Tensor, _FFTConv.apply(audio_BT, kernel_CL, bias_C))


@dataclass(frozen=True)
class _Blocks:
    """How an output of `frames` is cut: `count` blocks of `step` frames, each by one FFT of `size` points per phase."""

    frames: int
    count: int
    step: int
    size: int

    def span(self, block: int) -> slice:
        return slice(block * self.step, min((block + 1) * self.step, self.frames))


def _blocks(samples: int, taps: int) -> _Blocks:
    frames = (samples - taps) // STRIDE + 1
    phase_taps = -(-taps // STRIDE)
    count = -(-frames // max(BLOCK_PHASE_KERNELS * phase_taps, MIN_BLOCK_FRAMES))
    step = -(-frames // count)
    size = 8 * int(next_fast_len(-(-(step + phase_taps - 1) // 8), real=True))  # no prime factor above 5: fast
    return _Blocks(frames, -(-frames // step), step, size)


def _kernel_spectrum(kernel_CL: torch.Tensor, size: int) -> torch.Tensor:
    """[C, L] -> [C, P, K]: phase p of a kernel is its taps p, p + 3, p + 6, ..."""
    channels, taps = kernel_CL.shape
    phases_CJP = functional.pad(kernel_CL, (0, -taps % STRIDE)).view(channels, -1, STRIDE)
    spectrum_CPK: torch.Tensor = torch.fft.rfft(phases_CJP.transpose(1, 2), n=size)
    return spectrum_CPK


def _audio_spectrum(audio_BT: torch.Tensor, blocks: _Blocks) -> torch.Tensor:
    """[B, T] -> [blocks, B, P, K]: overlapping pieces of the audio, each cut into its three phases."""
    ends = STRIDE * ((blocks.count - 1) * blocks.step + blocks.size)
    padded_BT = functional.pad(audio_BT, (0, ends - audio_BT.shape[1]))  # or cut, where no kernel reaches
    pieces = padded_BT.unfold(1, STRIDE * blocks.size, STRIDE * blocks.step)
    phases = pieces.reshape(*pieces.shape[:2], blocks.size, STRIDE).permute(1, 0, 3, 2)
    spectrum: torch.Tensor = torch.fft.rfft(phases)
    return spectrum


class _FFTConv(torch.autograd.Function):
    """Block by block, so that the largest intermediate is one block of the output. One derivative, by hand."""

    @staticmethod
    def forward(ctx: Any, audio_BT: torch.Tensor, kernel_CL: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
        ctx.blocks = blocks = _blocks(audio_BT.shape[1], kernel_CL.shape[1])
        audio_spectrum = _audio_spectrum(audio_BT, blocks)
        ctx.save_for_backward(audio_spectrum, kernel_CL)
        ctx.samples = audio_BT.shape[1]
        kernel_CPK = _kernel_spectrum(kernel_CL, blocks.size)
        out_BCF = audio_BT.new_empty(audio_BT.shape[0], kernel_CL.shape[0], blocks.frames)
        for block, audio_BPK in enumerate(audio_spectrum):
            product_BCK = _product(audio_BPK, kernel_CPK)
            part_BCF = out_BCF[:, :, blocks.span(block)]
            whole_BCF = torch.fft.irfft(product_BCK, n=blocks.size)
            torch.add(whole_BCF[:, :, : part_BCF.shape[2]], bias_C[:, None], out=part_BCF)
        return out_BCF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCF: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        audio_spectrum, kernel_CL = ctx.saved_tensors
        wants_audio, wants_kernel, wants_bias = ctx.needs_input_grad
        grad_audio = _grad_audio(grad_BCF, kernel_CL, ctx.blocks, ctx.samples) if wants_audio else None
        grad_kernel = _grad_kernel(grad_BCF, audio_spectrum, ctx.blocks, kernel_CL) if wants_kernel else None
        return grad_audio, grad_kernel, grad_BCF.sum(dim=(0, 2)) if wants_bias else None


def _product(audio_BPK: torch.Tensor, kernel_CPK: torch.Tensor) -> torch.Tensor:
    """[B, C, K]: the sum over the phases of audio times conj(kernel), so a correlation, as all of torch's."""
    if takes_kernels(audio_BPK) and audio_BPK.dtype == torch.complex64:
        return cast(torch.Tensor, _kernels().product(audio_BPK, kernel_CPK))
    kernel_CPK = kernel_CPK.conj_physical()
    product_BCK = audio_BPK[:, None, 0] * kernel_CPK[:, 0]
    for phase in range(1, STRIDE):
        product_BCK.addcmul_(audio_BPK[:, None, phase], kernel_CPK[:, phase])
    return product_BCK


def _correlate_(total_CPK: torch.Tensor, grad_BCK: torch.Tensor, audio_BPK: torch.Tensor) -> None:
    """Add the sum over the clips of audio times conj(grad). A clip at a time on a CPU, which stays in its cache."""
    if takes_kernels(grad_BCK) and grad_BCK.dtype == torch.complex64:
        _kernels().correlate_(total_CPK, grad_BCK, audio_BPK)
        return
    for audio_PK, grad_CK in zip(audio_BPK, grad_BCK.conj_physical_(), strict=True):
        total_CPK.addcmul_(grad_CK[:, None], audio_PK)


def _kernels() -> Any:
    """audio/sinc_kernels.py, for which Triton must be there."""
    return importlib.import_module("atose_ray.audio.sinc_kernels")


def _grad_kernel(
    grad_BCF: torch.Tensor, audio_spectrum: torch.Tensor, blocks: _Blocks, kernel_CL: torch.Tensor
) -> torch.Tensor:
    """[C, L]: the audio correlated with the gradient of the output, summed over clips and blocks."""
    channels, taps = kernel_CL.shape
    total_CPK = audio_spectrum.new_zeros(channels, STRIDE, audio_spectrum.shape[-1])
    for block, audio_BPK in enumerate(audio_spectrum):
        _correlate_(total_CPK, torch.fft.rfft(grad_BCF[:, :, blocks.span(block)], n=blocks.size), audio_BPK)
    phases_CPJ: torch.Tensor = torch.fft.irfft(total_CPK, n=blocks.size)[:, :, : -(-taps // STRIDE)]
    return phases_CPJ.transpose(1, 2).reshape(channels, -1)[:, :taps]


def _grad_audio(grad_BCF: torch.Tensor, kernel_CL: torch.Tensor, blocks: _Blocks, samples: int) -> torch.Tensor:
    """[B, T]: every frame's gradient spread over the samples it heard; blocks overlap and add up."""
    kernel_CPK = _kernel_spectrum(kernel_CL, blocks.size)
    length = max(samples, STRIDE * ((blocks.count - 1) * blocks.step + blocks.size))
    total_BT = grad_BCF.new_zeros(grad_BCF.shape[0], length)
    for block in range(blocks.count):
        grad_BCK = torch.fft.rfft(grad_BCF[:, :, blocks.span(block)], n=blocks.size)
        phases_BPK = torch.stack([(grad_BCK * kernel_CPK[:, phase]).sum(dim=1) for phase in range(STRIDE)], dim=1)
        piece_BT = torch.fft.irfft(phases_BPK, n=blocks.size).transpose(1, 2).flatten(1)
        first = STRIDE * block * blocks.step
        total_BT[:, first : first + piece_BT.shape[1]] += piece_BT
    return total_BT[:, :samples]
