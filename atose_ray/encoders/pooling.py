"""A sequence of vectors to one: the mean, the maximum, or an average whose weights are learned.

Attention: each of H heads weighs the S steps by a softmax over a linear score, separately for its share of the E
values (Lin et al., "A Structured Self-attentive Sentence Embedding", ICLR 2017, without the hidden layer); its scores
begin at zero, so that an untrained one is the mean."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from atose_ray.types import Config


class PoolingConfig(Config):
    """kind: mean, max or attention. heads: of the attention; they must divide the width of the sequence."""

    kind: Literal["mean", "max", "attention"] = "mean"
    heads: int = Field(default=1, ge=1, le=64)

    def build(self, embed_dim: int) -> nn.Module:
        """[B, S, E] -> [B, E] for E = embed_dim. Raises ValueError where the heads do not divide it."""
        if self.kind == "attention" and embed_dim % self.heads:
            raise ValueError(f"heads must divide the width of the sequence, but got {self.heads} and {embed_dim}")
        return Pooling(self, embed_dim)


class Pooling(nn.Module):
    """[B, S, E] -> [B, E]: mean or maximum over the steps, or a mean with its own weights in each of H shares of E."""

    def __init__(self, config: PoolingConfig, embed_dim: int) -> None:
        super().__init__()
        self.kind = config.kind
        if self.kind == "attention":
            self.score = nn.Linear(embed_dim, config.heads)
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        if self.kind != "attention":
            return seq_BSE.mean(dim=1) if self.kind == "mean" else seq_BSE.amax(dim=1)
        weight_BSH = torch.softmax(self.score(seq_BSE), dim=1)
        pooled_BHX: torch.Tensor = (weight_BSH[..., None] * seq_BSE.view(*weight_BSH.shape, -1)).sum(dim=1)
        return pooled_BHX.flatten(1)
