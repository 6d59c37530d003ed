"""PannCNN: a 2-D CNN on a log-mel spectrogram, narrow enough for a few hundred clips.

Paper: Kong, Cao, Iqbal, Wang, Wang, Plumbley, "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern
Recognition", IEEE/ACM TASLP 2020: a BatchNorm of every mel band; four blocks of width 1, 2, 4, 8 times `channels`,
each of two 3 x 3 convolutions (CNN10) or one of 5 x 5 (CNN6), BatchNorm and ReLU, then a pool of 2 x 2 and dropout;
the mean over frequency; 64 bands of a window of 1,024 samples, every 320.

Reduced: 16 channels where 64 are published, so 0.3 million weights instead of 4.9 (both layouts). Departures: pools
take the maximum, as all blocks here do (encoders/blocks.py), not the mean; over time an average with learned weights
(encoders/pooling.py) where theirs adds mean and maximum; 16,000 Hz are as good as their 32,000, of which the window
and the hop then last twice as long: a step every 0.32 s. The dense layer behind is that of the method's head."""

import math
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn

from atose_ray.audio.mel import LogMel, LogMelConfig
from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.blocks import conv_norm
from atose_ray.encoders.convolution import SameConv2d
from atose_ray.encoders.harmonic_cnn import pool_plan
from atose_ray.encoders.norm import batch_norm_1d, batch_norm_2d
from atose_ray.encoders.pooling import PoolingConfig
from atose_ray.encoders.spec_augment import SpecAugmentConfig
from atose_ray.tags.autoencoder import glorot
from atose_ray.types import DataSpec

SPECTRUM = LogMelConfig(hop_samples=320, mels=64, log="ln", floor=1e-4)
WIDTHS, POOLS = (1, 2, 4, 8), (2, 2, 2, 2)
MIN_FRAMES = 16


class PannCNNConfig(EncoderConfig):
    """channels: of the first block; the embedding is 8 times as wide. layout: the blocks of CNN10 or of CNN6.
    mels: bands of the spectrogram. hop_samples: from one frame to the next, of which a step is 16; twice as many halve
    the time of everything. dropout: behind every block. pooling: over time. spec_augment: what is hidden of the
    spectrogram in training."""

    least_length: ClassVar[int] = SPECTRUM.samples_for(MIN_FRAMES)  # a longer hop makes fewer frames of it
    published_length: ClassVar[int] = 80000

    kind: Literal["pann_cnn"] = "pann_cnn"
    channels: int = Field(default=16, ge=2, le=256)
    layout: Literal["cnn10", "cnn6"] = "cnn10"
    mels: int = Field(default=64, ge=16, le=512)
    hop_samples: int = Field(default=320, ge=16, le=1024)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    bn_momentum: float = Field(default=0.1, gt=0, le=1)
    pooling: PoolingConfig = PoolingConfig(kind="attention")
    spec_augment: SpecAugmentConfig | None = None

    def build(self, spec: DataSpec) -> "PannCNN":
        return self.with_momentum(PannCNN(self, spec.audio.sample_rate_hz, spec.input.length))


class PannCNN(Encoder):
    """[B, T] -> [B, 8 * channels]."""

    has_kernels: ClassVar[bool] = True

    def __init__(self, config: PannCNNConfig, sample_rate_hz: int, clip_samples: int) -> None:
        super().__init__()
        mel = SPECTRUM.model_copy(update={"mels": config.mels, "hop_samples": config.hop_samples})
        pools = pool_plan(mel.frames_of(clip_samples), POOLS)
        self.embed_dim = WIDTHS[-1] * config.channels
        self.min_length = mel.samples_for(math.prod(pools))
        self.hop_seconds = math.prod(pools) * mel.hop_samples / sample_rate_hz
        self.spec_augment = config.spec_augment
        self.log_mel = LogMel(mel, sample_rate_hz)
        self.mel_bn = batch_norm_1d(config.mels)
        widths = [1, *(times * config.channels for times in WIDTHS)]
        self.blocks = nn.ModuleList(
            PannBlock(before, after, config.layout, (pool, 2), config.dropout)
            for before, after, pool in zip(widths, widths[1:], pools, strict=False)
        )
        self.pooling = config.pooling.build(self.embed_dim)

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, M]: the log-mel spectrogram, every band scaled; in training with its masks."""
        scaled_BMF = self.mel_bn(self.log_mel(inputs).transpose(1, 2))
        features_BFM = cast(torch.Tensor, scaled_BMF.transpose(1, 2))
        if self.training and self.spec_augment is not None:
            return self.spec_augment.masked(features_BFM)
        return features_BFM

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, S, E]."""
        x_BCFM = features[:, None]
        for block in self.blocks:
            x_BCFM = block(x_BCFM)
        return x_BCFM.mean(dim=3).transpose(1, 2)

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        """[B, S, E] -> [B, E]."""
        return cast(torch.Tensor, self.pooling(seq_BSE))


class PannBlock(nn.Module):
    """[B, C, F, M] -> [B, C', F // p, M // q]: one or two times conv, BN, ReLU; pool (p, q), dropout."""

    def __init__(self, in_channels: int, out_channels: int, layout: str, pool: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.pool, self.dropout, self.twice = pool, nn.Dropout(dropout), layout == "cnn10"
        kernel = 3 if self.twice else 5
        self.conv1, self.bn1 = same(in_channels, out_channels, kernel), batch_norm_2d(out_channels)
        if self.twice:
            self.conv2, self.bn2 = same(out_channels, out_channels, kernel), batch_norm_2d(out_channels)

    def forward(self, x_BCFM: torch.Tensor) -> torch.Tensor:
        if self.twice:
            x_BCFM = conv_norm(conv_norm(x_BCFM, self.conv1, self.bn1), self.conv2, self.bn2, self.pool)
        else:
            x_BCFM = conv_norm(x_BCFM, self.conv1, self.bn1, self.pool)
        return cast(torch.Tensor, self.dropout(x_BCFM))


def same(in_channels: int, out_channels: int, kernel: int) -> SameConv2d:
    """A convolution that keeps the size, initialised as published (Glorot)."""
    return glorot(SameConv2d(in_channels, out_channels, kernel, padding=kernel // 2))
