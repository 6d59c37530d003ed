"""The harmonic STFT: a spectrogram seen through a trainable bank of harmonically placed band-passes.

Paper: Won, Chun, Nieto, Serra, "Data-driven Harmonic Filters for Audio Representation Learning", ICASSP 2020; here in
the form that ATOSE / JETATAG (Appl. Sci. 2023, 13(15), 9002) trained, whose numbers this file reproduces:

- 256 zeros in front, none behind: frame f ends at sample 256 (f + 1), so T samples give floor(T / 256) frames.
- The magnitude (not the power) is filtered, and goes to decibels as 10 log10: the floor of 1e-5 is -50 dB.
- Layout: the filters lie harmonic-major (all levels of harmonic 1, then of harmonic 2, ...), and the published code
  cuts that line into rows of six. So channel c of row a is filter 6 a + c: the six channels are six neighbouring
  centres of one harmonic. `layout="harmonic"` is what the paper means: row a is level a, channel c its harmonic c + 1.
- Centres are two per semitone from C1 (MIDI 24) up to, not including, the note nearest to sample_rate / 12, so that
  the sixth harmonic stays below Nyquist: 128 levels at 16 kHz (published), 104 at 8 kHz, 164 at 44.1 kHz.
- The FFT has 512 points at every rate. A filter narrower than the bin spacing may hold no bin; it is then constant
  (one of 768 at 16 kHz).
"""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

N_FFT = 512
HOP_SAMPLES = 256
HARMONICS = 6
LOWEST_NOTE = 24  # C1, 32.7 Hz
LEVELS_PER_SEMITONE = 2
BW_ALPHA, BW_BETA = 0.1079, 24.7  # bandwidth in Hz of a centre f: (0.1079 f + 24.7) / Q, Won et al. 2020, equation 3
FLOOR = 1e-5
RANGE_DB = 80.0
Layout = Literal["published", "harmonic"]


def frames_of(samples: int) -> int:
    """How many frames `samples` of audio give."""
    return samples // HOP_SAMPLES


def levels_of(sample_rate_hz: int) -> int:
    """How many centres per harmonic fit under Nyquist. Raises ValueError where none does."""
    highest_hz = sample_rate_hz / (2 * HARMONICS)
    highest_note = round(69 + 12 * math.log2(highest_hz / 440))
    levels = (highest_note - LOWEST_NOTE) * LEVELS_PER_SEMITONE
    if levels < 1:
        raise ValueError(
            f"the harmonic STFT needs sample_rate_hz of at least 404, so that harmonic 6 of C1 is below half of it, "
            f"but got {sample_rate_hz}; resample the audio, 16000 is the published rate"
        )
    return levels


def harmonic_centres_hz(sample_rate_hz: int) -> torch.Tensor:
    """[6 * levels] centre frequencies in Hz: all levels of harmonic 1, then of harmonic 2, up to 6."""
    note = LOWEST_NOTE + torch.arange(levels_of(sample_rate_hz), dtype=torch.float64) / LEVELS_PER_SEMITONE
    base_hz = 440 * 2 ** ((note - 69) / 12)
    harmonic = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    return torch.outer(harmonic, base_hz).flatten().float()


def decibel(magnitude_BXXX: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B, ...]: 10 log10 of at least 1e-5, and no value more than 80 dB below the clip's maximum."""
    db = 10 * torch.log10(magnitude_BXXX.clamp_min(FLOOR))
    peak_db = db.flatten(1).amax(dim=1).reshape(-1, *[1] * (db.dim() - 1))
    return torch.maximum(db, peak_db - RANGE_DB)


class HarmonicSTFT(nn.Module):
    """[B, T] audio -> [B, 6, levels, F] decibels. One parameter: `bw_Q`, the sharpness of all filters.

    layout: which filter is channel c of row a, see the head of this file.
    Always in float32, also under autocast: sums of a magnitude spectrum need more than bfloat16's 8 bits."""

    bin_hz: torch.Tensor
    centre_hz: torch.Tensor
    window: torch.Tensor

    def __init__(self, sample_rate_hz: int, layout: Layout = "published") -> None:
        super().__init__()
        self.levels = levels_of(sample_rate_hz)
        self.layout = layout
        self.bw_Q = nn.Parameter(torch.ones(1))
        bin_hz = torch.arange(N_FFT // 2 + 1) * (sample_rate_hz / N_FFT)
        self.register_buffer("bin_hz", bin_hz, persistent=False)
        self.register_buffer("centre_hz", harmonic_centres_hz(sample_rate_hz), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT, periodic=True), persistent=False)

    def filterbank(self) -> torch.Tensor:
        """[257, 6 * levels] triangles of height 1 on the FFT bins, as wide at the foot as bw_Q says."""
        width_hz = (BW_ALPHA * self.centre_hz + BW_BETA) / self.bw_Q
        rise, centre = self.bin_hz[:, None] * (2 / width_hz), 2 * self.centre_hz / width_hz
        # Published order of operations: its rounding is 5e-4 dB near a filter's foot, and this repeats it bit by bit.
        return torch.minimum(rise + 1 - centre, -rise + 1 + centre).clamp_min(0)

    def magnitude(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, 257] magnitude of the STFT (periodic Hann window)."""
        padded_BT = functional.pad(audio_BT, (N_FFT - HOP_SAMPLES, 0))
        spectrum = torch.stft(padded_BT, N_FFT, HOP_SAMPLES, window=self.window, center=False, return_complex=True)
        return spectrum.abs().transpose(1, 2)

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, 6, levels, F] decibels."""
        with torch.autocast(audio_BT.device.type, enabled=False):
            filtered = self.magnitude(audio_BT) @ self.filterbank()
            clips, frames, _ = filtered.shape
            if self.layout == "harmonic":
                return decibel(filtered.reshape(clips, frames, HARMONICS, self.levels).permute(0, 2, 3, 1))
            return decibel(filtered.reshape(clips, frames, self.levels, HARMONICS).permute(0, 3, 2, 1))
