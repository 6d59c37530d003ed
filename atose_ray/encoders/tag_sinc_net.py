"""TagSincNet: a bank of sinc band-passes on the waveform, then SampleCNN.

Papers: Ravanelli and Bengio, SLT 2018 (sinc filters, see `audio/sinc.py`); Kim, Lee, Nam, IEEE JSTSP 2019 (the blocks,
see `sample_cnn.py`); in the form of ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002, which calls it MS.

The audio is padded with half a filter of zeros on both sides and filtered; a stem of width and stride 3 follows, so
59049 samples give 20516 frames. Published: 256 filters of 2501 taps, then `rese` blocks. Depth follows the clip as in
SampleCNN. Departures: bank and stem run as one operator, equal up to rounding and many times faster (`audio/sinc.py`).
"""

from typing import Literal, cast

import torch
from pydantic import Field, field_validator
from torch import nn

from atose_ray.audio.sinc import PUBLISHED_RATE_HZ, SincBank, mel_bands_hz, sinc_stem
from atose_ray.encoders.blocks import BlockKind, conv_1d, norm_relu
from atose_ray.encoders.norm import batch_norm_1d
from atose_ray.encoders.sample_cnn import SampleBody, SampleBodyConfig
from atose_ray.types import DataSpec


class TagSincNetConfig(SampleBodyConfig):
    """filters, filter_length: of the sinc bank; the length, in samples, is odd. The rest as in SampleCNN.

    published_filters: true is the published bank: it lacks a pi and is built for 22050 Hz, whatever the rate of the
    audio, so its 256 bands cover 18 Hz to 2.55 kHz of audio at 16 kHz. false is the honest bank, built for the rate of
    the audio, whose bands go up to half of it."""

    kind: Literal["tag_sinc_net"] = "tag_sinc_net"
    block: BlockKind = "rese"
    filters: int = Field(default=256, ge=2, le=4096)
    filter_length: int = Field(default=2501, ge=3, le=16383)
    published_filters: bool = True

    @field_validator("filter_length")
    @classmethod
    def _is_odd(cls, length: int) -> int:
        if length % 2 == 0:
            raise ValueError(f"filter_length must be odd, so that a filter has a middle tap, but got {length}")
        return length

    def build(self, spec: DataSpec) -> "TagSincNet":
        return self.with_momentum(TagSincNet(self, spec.input.length, self.bank_rate_hz(spec)))

    def check(self, spec: DataSpec) -> None:
        super().check(spec)
        mel_bands_hz(self.filters, self.bank_rate_hz(spec))

    def bank_rate_hz(self, spec: DataSpec) -> int:
        return PUBLISHED_RATE_HZ if self.published_filters else spec.audio.sample_rate_hz


class SincStem(nn.Module):
    """[B, T] and filters [S, L] -> [B, C, 1, (T + L - 1) // 3]: both convolutions as one, BN, ReLU."""

    def __init__(self, filters: int, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = conv_1d(filters, channels, kernel=3, stride=3), batch_norm_1d(channels)

    def forward(self, audio_BT: torch.Tensor, bank_SL: torch.Tensor) -> torch.Tensor:
        x_BC1F = sinc_stem(audio_BT, bank_SL, self.conv)[:, :, None]
        device = audio_BT.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BC1F.dtype
        x_BC1F = x_BC1F.to(dtype, memory_format=torch.channels_last)  # the front end is float32, the blocks are not
        return norm_relu(x_BC1F, self.bn)


class TagSincNet(SampleBody):
    """[B, T] -> [B, 8 * channels]. bank_rate_hz: the rate that the filters are built for."""

    def __init__(self, config: TagSincNetConfig, clip_samples: int, bank_rate_hz: int) -> None:
        super().__init__(config, clip_samples, SincStem(config.filters, config.channels))
        self.sinc = SincBank(config.filters, config.filter_length, bank_rate_hz, config.published_filters)

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, channels, 1, (T + L - 1) // 3]."""
        return cast(torch.Tensor, self.stem(inputs, self.sinc()))
