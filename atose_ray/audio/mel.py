"""Log-mel spectrograms of every convention that a published system used: one module, its settings beside it.

Conventions differ in the window and its padding, in the mel scale and how its triangles are made, and in the logarithm:

    Choi et al. 2019 (zero-shot)   22,050 Hz, 1024 / 512, reflect, 128 Slaney, log10(1 + 10 x)
    COALA (Favory et al. 2020)     22,000 Hz, 1024 / 512, reflect, 96 Slaney, ln(x + 2^-23), spectrum in float64
    VGGish (Hershey et al. 2017)   16,000 Hz, 400 of 512 / 160, none, 64 HTK triangles that are straight in mel, 125 to
                                   7,500 Hz, ln(x + 0.01)

All filter the magnitude, not the power. librosa <= 0.8 reflects the ends of a file, >= 0.9 pads them with zeros: only
the first and the last frame differ."""

import math
from typing import Literal

import torch
import torchaudio.functional
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from atose_ray.types import Config

Padding = Literal["reflect", "zeros", "none"]
HTK_SCALE, HTK_BREAK_HZ = 1127.0, 700.0  # mel = 1127 ln(1 + f / 700)


class LogMelConfig(Config):
    """window_samples: of a periodic Hann window, in an FFT of fft_samples (None: as long). padding: half a window on
    both sides, so that frame f is centred on sample f * hop, or none. bank: triangles on the Slaney scale with area 1,
    or on the HTK scale, straight in Hz or (VGGish, without the bin at 0 Hz) in mel, of height 1. highest_hz: None is
    half the rate. log: log10(1 + gain x), or the natural logarithm of x + floor. double: the spectrum in float64, for
    logarithms that go deeper than float32's rounding."""

    window_samples: int = Field(default=1024, ge=2)
    fft_samples: int | None = Field(default=None, ge=2)
    hop_samples: int = Field(default=512, ge=1)
    padding: Padding = "reflect"
    mels: int = Field(default=128, ge=1)
    bank: Literal["slaney", "htk", "htk_in_mel"] = "slaney"
    lowest_hz: float = Field(default=0.0, ge=0)
    highest_hz: float | None = Field(default=None, gt=0)
    log: Literal["log10_1p", "ln"] = "log10_1p"
    gain: float = Field(default=10.0, gt=0)
    floor: float = Field(default=2.0**-23, gt=0)
    double: bool = False

    @model_validator(mode="after")
    def _window_fits(self) -> "LogMelConfig":
        if self.fft < self.window_samples:
            raise ValueError(f"fft_samples must hold the window, but got {self.fft} for {self.window_samples} samples")
        return self

    @property
    def fft(self) -> int:
        """Points of the FFT."""
        return self.fft_samples or self.window_samples

    def frames_of(self, samples: int) -> int:
        """How many frames so much audio gives; 0 or less where it is too short."""
        return 1 + (samples if self.padding != "none" else samples - self.window_samples) // self.hop_samples

    def samples_for(self, frames: int) -> int:
        """The shortest audio that gives so many frames. Reflected ends need more than half a window."""
        samples = (frames - 1) * self.hop_samples + (self.window_samples if self.padding == "none" else 0)
        return max(samples, self.window_samples // 2 + 1) if self.padding == "reflect" else max(samples, 1)


CHOI = LogMelConfig()
COALA = LogMelConfig(mels=96, log="ln", double=True)
VGGISH = LogMelConfig(
    window_samples=400, fft_samples=512, hop_samples=160, padding="none", mels=64, bank="htk_in_mel",
    lowest_hz=125.0, highest_hz=7500.0, log="ln", floor=0.01,
)  # fmt: skip


def mel_bank(config: LogMelConfig, sample_rate_hz: int) -> torch.Tensor:
    """[bins, M]. Raises ValueError where the highest frequency is not between the lowest and half the rate."""
    bins, nyquist_hz = config.fft // 2 + 1, sample_rate_hz / 2
    highest_hz = nyquist_hz if config.highest_hz is None else config.highest_hz
    if not config.lowest_hz < highest_hz <= nyquist_hz:
        raise ValueError(
            f"mel bands must lie in 0 to {nyquist_hz:g} Hz at a rate of {sample_rate_hz} Hz, but go from "
            f"{config.lowest_hz:g} to {highest_hz:g}; set highest_hz, or resample the audio"
        )
    if config.bank == "htk_in_mel":
        return _straight_in_mel(torch.linspace(0, nyquist_hz, bins), config.lowest_hz, highest_hz, config.mels)
    norm = "slaney" if config.bank == "slaney" else None
    scale, place = config.bank, (config.lowest_hz, highest_hz, config.mels, sample_rate_hz)
    bank_XM: torch.Tensor = torchaudio.functional.melscale_fbanks(bins, *place, norm=norm, mel_scale=scale)
    return bank_XM


def _straight_in_mel(bin_hz: torch.Tensor, lowest_hz: float, highest_hz: float, mels: int) -> torch.Tensor:
    """[bins] -> [bins, M]: triangles whose sides are straight lines over the mel axis."""
    bin_mel = HTK_SCALE * torch.log1p(bin_hz.double() / HTK_BREAK_HZ)
    low, high = (HTK_SCALE * math.log1p(edge / HTK_BREAK_HZ) for edge in (lowest_hz, highest_hz))
    edges = torch.linspace(low, high, mels + 2, dtype=torch.float64)
    rise = (bin_mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bin_mel[:, None]) / (edges[2:] - edges[1:-1])
    bank_XM = torch.minimum(rise, fall).clamp_min(0)
    bank_XM[0] = 0
    return bank_XM.to(bin_hz.dtype)


class LogMel(nn.Module):
    """[B, T] audio -> [B, F, M]. No parameters. In float32 (or float64) also under autocast."""

    window: torch.Tensor
    bank_XM: torch.Tensor

    def __init__(self, config: LogMelConfig, sample_rate_hz: int) -> None:
        super().__init__()
        self.config = config
        dtype = torch.float64 if config.double else torch.get_default_dtype()
        window = torch.hann_window(config.window_samples, periodic=True, dtype=torch.float64)
        self.register_buffer("window", window.to(dtype), persistent=False)
        self.register_buffer("bank_XM", mel_bank(config, sample_rate_hz).to(dtype), persistent=False)

    def magnitude(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, bins]: the magnitude of every frame's spectrum."""
        config, audio_BT = self.config, audio_BT.to(self.window.dtype)
        if config.padding != "none":
            half, mode = config.window_samples // 2, "reflect" if config.padding == "reflect" else "constant"
            audio_BT = functional.pad(audio_BT, (half, half), mode=mode)
        frames_BFX = audio_BT.unfold(1, config.window_samples, config.hop_samples) * self.window
        magnitude_BFX: torch.Tensor = torch.fft.rfft(frames_BFX, n=config.fft).abs()
        return magnitude_BFX

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, M], in the precision of the audio."""
        with torch.autocast(audio_BT.device.type, enabled=False):
            mel_BFM: torch.Tensor = self.magnitude(audio_BT) @ self.bank_XM
            natural = self.config.log == "ln"
            inside_BFM = mel_BFM + self.config.floor if natural else 1 + self.config.gain * mel_BFM
            log_BFM: torch.Tensor = inside_BFM.log() if natural else inside_BFM.log10()
        return log_BFM.to(audio_BT.dtype)
