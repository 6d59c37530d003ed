"""The contract of an encoder: audio of any length the config allows in, one vector per clip out.

A new encoder is one file with an `EncoderConfig` and an `Encoder`, and one line in `encoders/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from atose_ray.types import Config, DataSpec


class Encoder(nn.Module, ABC):
    """embed_dim: size E of what comes out. min_samples: the shortest audio that `forward` takes; longer is fine.

    autocast_dtype: what `encode` computes in where that is safe (training/precision.py sets it); None is as it comes.
    Parts of an encoder that need float32 say so themselves. What comes out is float32 either way.
    """

    embed_dim: int
    min_samples: int
    autocast_dtype: torch.dtype | None = None

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] float32 in [-1, 1] -> [B, E]. Raises ValueError for T < min_samples."""
        samples = audio_BT.shape[1]
        if samples < self.min_samples:
            raise ValueError(
                f"this {type(self).__name__} needs at least {self.min_samples} samples, but got {samples}; "
                "pad the audio with zeros, or build the encoder for a shorter clip_samples"
            )
        if self.autocast_dtype is None:
            return self.encode(audio_BT)
        with torch.autocast(audio_BT.device.type, self.autocast_dtype):
            embed_BE = self.encode(audio_BT)
        return embed_BE.to(audio_BT.dtype)

    @abstractmethod
    def encode(self, audio_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, E], for T >= min_samples."""


EncoderT = TypeVar("EncoderT", bound=Encoder)


class EncoderConfig(Config):
    """Base of every encoder's config. published_clip_samples: the crop it was published with.

    bn_momentum: share of a batch in BatchNorm's running statistics (published: 0.01, Keras' 0.99). With fewer than a
    few hundred steps these lag far behind the weights and validation scores with them: then take 0.1.
    """

    published_clip_samples: ClassVar[int]

    kind: str
    bn_momentum: float = Field(default=0.01, gt=0, le=1)

    def min_clip_samples(self) -> int:
        """The shortest clip an encoder of this config can be built for, in samples."""
        raise NotImplementedError

    def build(self, spec: DataSpec) -> Encoder:
        """A freshly initialised encoder for clips of `spec`. Raises ValueError when these are too short."""
        raise NotImplementedError

    def require_length(self, spec: DataSpec) -> None:
        """Raises ValueError when the clips of `spec` are too short for this encoder."""
        least = self.min_clip_samples()
        if spec.input.length < least:
            raise ValueError(
                f"{self.kind} needs clip_samples of at least {least} "
                f"({least / spec.input.rate_hz:.3g} s at {spec.input.rate_hz:g} Hz), but got {spec.input.length}; "
                f"use longer crops (published: {self.published_clip_samples})"
            )

    def with_momentum(self, encoder: EncoderT) -> EncoderT:
        """The encoder with this config's momentum in every BatchNorm."""
        for module in encoder.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = self.bn_momentum
        return encoder
