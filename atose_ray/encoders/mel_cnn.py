"""MelCNN: five 1-D convolutions over the frames of a log-mel spectrogram.

Paper: Choi, Lee, Park, Nam, "Zero-shot Learning for Audio-based Music Classification and Tagging", ISMIR 2019, and
its published code: 128 Slaney mels of the magnitude at 22,050 Hz as log10(1 + 10 x), scaled by one mean and one
deviation; convolutions of width 4 4 4 2 over time, each with ReLU and a pool of 4 4 4 2, then one of width 1 without
activation. No BatchNorm and no dropout: it computes the same in training and in evaluation. 242,788 parameters.

Published: 130 frames (3.02 s), of which 128 are left after pooling, as one step. Here a crop is 66,048 samples of
audio, whose 130 frames are those of the track but for the two at the ends of the crop (published: of the file). Longer
audio gives a step every 128 frames, and their mean; of shorter audio each pool takes as many frames as are left."""

import math
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.audio.mel import CHOI, LogMel, LogMelConfig, Padding
from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.harmonic_cnn import pool_plan
from atose_ray.encoders.spec_augment import SpecAugmentConfig
from atose_ray.types import DataSpec

WIDTHS, POOLS = (4, 4, 4, 2), (4, 4, 4, 2)
MIN_FRAMES = 4
MEAN, DEVIATION = 0.2262, 0.2579  # of the published log-mels


class MelCNNConfig(EncoderConfig):
    """channels: of the four convolutions. embedding: of the last one. mels: bands of the spectrogram. padding: of the
    crop's ends. spec_augment: what is hidden of the spectrogram in training, nothing as published. The published rate
    is 22,050 Hz: prepare with `--option sample_rate_hz=22050`."""

    least_length: ClassVar[int] = CHOI.model_copy(update={"padding": "none"}).samples_for(MIN_FRAMES)
    published_length: ClassVar[int] = CHOI.samples_for(130)

    kind: Literal["mel_cnn"] = "mel_cnn"
    channels: int = Field(default=128, ge=4, le=2048)
    embedding: int = Field(default=100, ge=2, le=4096)
    mels: int = Field(default=128, ge=4, le=512)
    padding: Padding = "reflect"
    spec_augment: SpecAugmentConfig | None = None

    @property
    def front_end(self) -> LogMelConfig:
        """The published spectrogram with these settings."""
        return CHOI.model_copy(update={"mels": self.mels, "padding": self.padding})

    def build(self, spec: DataSpec) -> "MelCNN":
        return MelCNN(self, spec.audio.sample_rate_hz, spec.input.length)


class MelCNN(Encoder):
    """[B, T] -> [B, embedding]."""

    def __init__(self, config: MelCNNConfig, sample_rate_hz: int, clip_samples: int) -> None:
        super().__init__()
        mel, width = config.front_end, config.channels
        self.pools = pool_plan(mel.frames_of(clip_samples), POOLS)
        self.embed_dim = config.embedding
        self.min_length = mel.samples_for(max(MIN_FRAMES, math.prod(self.pools)))
        self.hop_seconds = math.prod(self.pools) * mel.hop_samples / sample_rate_hz
        self.spec_augment = config.spec_augment
        self.log_mel = LogMel(mel, sample_rate_hz)
        sizes = [(config.mels, width), *[(width, width)] * 3]
        for number, ((before, after), taps) in enumerate(zip(sizes, WIDTHS, strict=True), 1):
            self.add_module(f"conv{number}", he_uniform(nn.Conv1d(before, after, taps)))
        self.conv5 = he_uniform(nn.Conv1d(width, config.embedding, 1))

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, M]: the log-mel spectrogram, scaled as published; in training with its masks."""
        scaled_BFM = cast(torch.Tensor, (self.log_mel(inputs) - MEAN) / DEVIATION)
        if self.training and self.spec_augment is not None:
            return self.spec_augment.masked(scaled_BFM)
        return scaled_BFM

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, S, E]."""
        x_BCF = features.transpose(1, 2)
        for number, (taps, factor) in enumerate(zip(WIDTHS, self.pools, strict=True), 1):
            before = (taps - 1) // 2  # as TensorFlow's padding "same" has it: the odd one behind
            x_BCF = functional.pad(x_BCF, (before, taps - 1 - before))
            x_BCF = functional.relu(self.get_submodule(f"conv{number}")(x_BCF))
            x_BCF = functional.max_pool1d(x_BCF, factor)
        return cast(torch.Tensor, self.conv5(x_BCF)).transpose(1, 2)

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        """[B, S, E] -> [B, E]: the mean."""
        return seq_BSE.mean(dim=1)


def he_uniform(conv: nn.Conv1d) -> nn.Conv1d:
    """The convolution with weights within sqrt(6 / fan_in) and zero bias."""
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
