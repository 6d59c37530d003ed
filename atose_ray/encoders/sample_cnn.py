"""SampleCNN: convolutions of width 3 on the waveform, up to nine blocks deep, with optional shortcuts and excitation.

Papers: Lee, Park, Kim, Nam, "Sample-level Deep Convolutional Neural Networks for Music Auto-tagging Using Raw
Waveforms", SMC 2017, and "SampleCNN", Appl. Sci. 2018, 8(1), 150; Kim, Lee, Nam, "Comparison and Analysis of SampleCNN
Architectures for Audio Classification", IEEE JSTSP 2019 (se, res, rese). In the form of ATOSE / JETATAG, Appl. Sci.
2023, 13(15), 9002: global max-pooling of the last three blocks, then dense, BN, ReLU.

Depth follows the clip: stem and blocks shorten by 3 each, so a clip of T samples carries n blocks where
3^(n + 1) <= T, from three up to the published nine, which 59049 = 3^10 samples fill exactly. A one-second keyword
(16000 samples) passes seven blocks and not padded. What is longer goes to the global pooling. The stem is
`channels` wide; so are two blocks, the last has 4 times and the others twice as many."""

from abc import abstractmethod
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.blocks import BlockKind, Stem1d, block_1d
from atose_ray.encoders.norm import batch_norm_1d
from atose_ray.tags.autoencoder import glorot
from atose_ray.types import DataSpec

MIN_BLOCKS, MAX_BLOCKS = 3, 9
POOLED_BLOCKS = 3


class SampleBodyConfig(EncoderConfig):
    """block: what stands between two pools. channels: width of the stem; the embedding is 8 times as wide.

    se_ratio: hidden units per channel of the excitation in se and rese (published: 16).
    dropout: between the two convolutions of res and rese."""

    least_length: ClassVar[int] = 3 ** (MIN_BLOCKS + 1)
    published_length: ClassVar[int] = 59049

    block: BlockKind
    channels: int = Field(default=128, ge=4, le=1024)
    se_ratio: int = Field(default=16, ge=1, le=64)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class SampleCNNConfig(SampleBodyConfig):
    """SampleCNN with its own stem, a convolution of three samples."""

    kind: Literal["sample_cnn"] = "sample_cnn"
    block: BlockKind = "se"

    def build(self, spec: DataSpec) -> "SampleCNN":
        return self.with_momentum(SampleCNN(self, spec.input.length))


def samples_for(blocks: int) -> int:
    """The shortest audio that the stem and `blocks` blocks leave a value of: 3^(blocks + 1) samples."""
    return int(3 ** (blocks + 1))


def blocks_for(clip_samples: int) -> int:
    """The number of blocks, 3 to 9: as many as leave a value of `clip_samples`."""
    return max(n for n in range(MIN_BLOCKS, MAX_BLOCKS + 1) if n == MIN_BLOCKS or samples_for(n) <= clip_samples)


class SampleBody(Encoder):
    """[B, T] -> [B, 8 * channels]: a stem that shortens by 3, then the blocks, pooling and dense layer of SampleCNN."""

    has_kernels: ClassVar[bool] = True

    def __init__(self, config: SampleBodyConfig, clip_samples: int, stem: nn.Module) -> None:
        super().__init__()
        depth = blocks_for(clip_samples)
        base = config.channels
        widths = [base, base] + [2 * base] * (depth - 3) + [4 * base]
        self.embed_dim = 8 * base
        self.min_length = samples_for(depth)
        self.stem = stem
        self.block_names = [f"block{i}" for i in range(1, depth + 1)]
        for name, before, width in zip(self.block_names, [base, *widths[:-1]], widths, strict=True):
            self.add_module(name, block_1d(config.block, before, width, config.se_ratio, config.dropout))
        self.fc = glorot(nn.Linear(sum(widths[-POOLED_BLOCKS:]), self.embed_dim))
        self.fc_bn = batch_norm_1d(self.embed_dim)

    @abstractmethod
    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, channels, 1, F]: audio through the stem, a third of its length or a little more."""

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, channels, 1, F] -> [B, 1, 8 * channels]."""
        x_BC1T = features
        last: list[torch.Tensor] = []
        for name in self.block_names:
            x_BC1T = self.get_submodule(name)(x_BC1T)
            last = [*last[1 - POOLED_BLOCKS :], x_BC1T]
        joined_BX = torch.cat([x_BC1T.amax(dim=(2, 3)) for x_BC1T in last], dim=1)
        return functional.relu(cast(torch.Tensor, self.fc_bn(self.fc(joined_BX))))[:, None]


class SampleCNN(SampleBody):
    """[B, T] -> [B, 8 * channels], from the bare waveform."""

    def __init__(self, config: SampleCNNConfig, clip_samples: int) -> None:
        super().__init__(config, clip_samples, Stem1d(config.channels))

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, channels, 1, T // 3]."""
        return cast(torch.Tensor, self.stem(inputs))
