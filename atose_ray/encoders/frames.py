"""Frames: features that were computed before and lie in the shards, as a sequence; with or without a GRU over them.

Stored bytes are (u - 128) / 128, as AudioTagger and its relatives (Kong et al. 2018, Yu et al. 2018) read the 128
numbers a second that AudioSet publishes of VGGish; stored float32 is taken as it is. The GRU is that of the recurrent
baseline in Kong et al., ICASSP 2018: both directions, and no claim to their settings."""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn

from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.types import DataSpec

BYTE_MIDDLE = 128.0


class FramesConfig(EncoderConfig):
    """context: none passes the frames on; gru adds what stands before and behind them. width: of each direction."""

    INPUT: ClassVar[Literal["audio", "frames"]] = "frames"
    least_length: ClassVar[int] = 1
    published_length: ClassVar[int] = 10

    kind: Literal["frames"] = "frames"
    context: Literal["none", "gru"] = "none"
    width: int = Field(default=128, ge=1, le=4096)

    def build(self, spec: DataSpec) -> "Frames":
        return Frames(self, spec)


class Frames(Encoder):
    """[B, F, M] -> [B, E], the mean over frames; the sequence is [B, F, E] with E = M, or 2 * width behind a GRU."""

    def __init__(self, config: FramesConfig, spec: DataSpec) -> None:
        super().__init__()
        bins = spec.frames.bins
        self.bytes = spec.frames.dtype == "uint8"
        self.min_length, self.hop_seconds = config.least_length, spec.frames.frame_hop_seconds
        self.embed_dim = bins if config.context == "none" else 2 * config.width
        if config.context == "gru":
            self.gru = nn.GRU(bins, config.width, batch_first=True, bidirectional=True)

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, F, M]: bytes become numbers around 0."""
        return from_bytes(inputs) if self.bytes else inputs

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, F, E]."""
        return cast(torch.Tensor, self.gru(features)[0]) if hasattr(self, "gru") else features

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        """[B, F, E] -> [B, E]: the mean."""
        return seq_BSE.mean(dim=1)


def from_bytes(bytes_BFM: torch.Tensor) -> torch.Tensor:
    """0 to 255, float32 -> -1 to 0.9921875."""
    return (bytes_BFM - BYTE_MIDDLE) / BYTE_MIDDLE
