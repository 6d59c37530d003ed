"""The network that all contenders train: CNN6 on log-mels, from audio to logits. Nobody's lines: a user has a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from atose_ray.encoders.pann_cnn import PannCNNConfig
from atose_ray.methods.heads import LinearHeadConfig
from atose_ray.types import AudioInput, DataSpec

RATE_HZ, SAMPLES = 16_000, 59_200  # 3.7 s


def network(channels: int, dropout: float, tags: Sequence[str]) -> nn.Module:
    """[B, T] -> [B, C] logits, as ours.yaml builds it: same weights' shapes, initialisation and memory layout."""
    audio = AudioInput(sample_rate_hz=RATE_HZ, clip_samples=SAMPLES)
    spec = DataSpec(input=audio, tags=tuple(tags), exclusive=False)
    encoder = PannCNNConfig(layout="cnn6", hop_samples=640, channels=channels, dropout=0.0).build(spec)
    encoder.to(memory_format=torch.channels_last)
    return nn.Sequential(encoder, LinearHeadConfig(dropout=dropout).build(encoder.embed_dim, len(tags)))
