"""HarmonicCNN: the harmonic STFT and seven stages of 2-D convolutions on it.

Paper: Won, Chun, Nieto, Serra, "Data-driven Harmonic Filters for Audio Representation Learning", ICASSP 2020; front end
and stages in the form of ATOSE / JETATAG (Appl. Sci. 2023, 13(15), 9002), with global max-pooling of the last three
stages and no dense layer behind it.

Published: 80000 samples at 16 kHz, which are 128 rows by 312 frames; the stages pool them by 2 2 2 2 2 2 2 in frequency
and by 2 2 2 2 2 3 3 in time, down to one cell. Other lengths and rates keep all seven stages, and so all widths and
weights: a stage pools by the published factor, or by as many rows or frames as are left where these are fewer.
62 frames (a second at 16 kHz) are thus pooled 2 2 2 2 3->1, and the last two stages do not pool in time. The plan is
made once, for the clips the encoder is built for; longer audio goes to the global pooling. The shortest clip is
4096 samples (16 frames), which the first four stages still pool in full."""

import math
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field

from atose_ray.audio.harmonic import HARMONICS, HOP_SAMPLES, HarmonicSTFT, Layout, frames_of, levels_of
from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.blocks import ConvBlock2d, ResidualBlock2d
from atose_ray.encoders.fused import After, fuses, normalise
from atose_ray.encoders.norm import batch_norm_2d
from atose_ray.types import DataSpec

ROW_POOLS = (2, 2, 2, 2, 2, 2, 2)
FRAME_POOLS = (2, 2, 2, 2, 2, 3, 3)
MIN_FRAMES = 16


class HarmonicCNNConfig(EncoderConfig):
    """channels: width of the first three stages; the embedding is 8 times as wide.

    layout: what the front end's six channels are. "published": six neighbouring centres of one harmonic, as the
    published code has it. "harmonic": the six harmonics of one centre, as the paper means."""

    least_length: ClassVar[int] = MIN_FRAMES * HOP_SAMPLES
    published_length: ClassVar[int] = 80000

    kind: Literal["harmonic_cnn"] = "harmonic_cnn"
    channels: int = Field(default=128, ge=4, le=1024)
    layout: Layout = "published"

    def build(self, spec: DataSpec) -> "HarmonicCNN":
        return self.with_momentum(HarmonicCNN(self, spec.audio.sample_rate_hz, spec.input.length))

    def check(self, spec: DataSpec) -> None:
        super().check(spec)
        levels_of(spec.audio.sample_rate_hz)


def pool_plan(size: int, published: tuple[int, ...]) -> list[int]:
    """The pooling factor of every stage: the published one, or what is left of `size` where that is less."""
    plan = []
    for factor in published:
        plan.append(min(factor, size))
        size //= plan[-1]
    return plan


class HarmonicCNN(Encoder):
    """[B, T] -> [B, 8 * channels], all values >= 0."""

    has_kernels: ClassVar[bool] = True

    def __init__(self, config: HarmonicCNNConfig, sample_rate_hz: int, clip_samples: int) -> None:
        super().__init__()
        base = config.channels
        frame_pools = pool_plan(frames_of(clip_samples), FRAME_POOLS)
        pools = list(zip(pool_plan(levels_of(sample_rate_hz), ROW_POOLS), frame_pools, strict=True))
        self.embed_dim = 8 * base
        self.min_length = HOP_SAMPLES * math.prod(frame_pools)
        self.hstft = HarmonicSTFT(sample_rate_hz, config.layout)
        self.hstft_bn = batch_norm_2d(HARMONICS)
        self.res1 = ConvBlock2d(HARMONICS, base, pools[0])
        self.res2 = ResidualBlock2d(base, pools[1])
        self.res3 = ResidualBlock2d(base, pools[2])
        self.res4 = ConvBlock2d(base, 2 * base, pools[3])
        self.res5 = ResidualBlock2d(2 * base, pools[4])
        self.res6 = ResidualBlock2d(2 * base, pools[5])
        self.res7 = ConvBlock2d(2 * base, 4 * base, pools[6])

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, 6, rows, frames]."""
        heard_BCHW = self.hstft(inputs)
        if fuses(heard_BCHW, self.hstft_bn):
            return normalise(heard_BCHW, self.hstft_bn, None, After(relu=False))
        return cast(torch.Tensor, self.hstft_bn(heard_BCHW))

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, 6, rows, frames] -> [B, 1, 8 * channels]."""
        x_BCHW = self.res4(self.res3(self.res2(self.res1(features))))
        fifth_BCHW = self.res5(x_BCHW)
        sixth_BCHW = self.res6(fifth_BCHW)
        seventh_BCHW = self.res7(sixth_BCHW)
        pooled = [x.amax(dim=(2, 3)) for x in (fifth_BCHW, sixth_BCHW, seventh_BCHW)]
        return torch.cat(pooled, dim=1)[:, None]
