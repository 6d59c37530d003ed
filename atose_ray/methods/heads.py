"""The dense heads on an encoder's embedding: into the joint space, and to tags.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002 (WaveProjector, SupervisedClassifier). The linear head is the
usual one of tagging and of probing; with few steps it learns faster than the published one, whose unit norm keeps the
logits small until the last layer's weights have grown."""

from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import nn

from atose_ray.tags.autoencoder import DenseLeaky, glorot, unit_norm
from atose_ray.types import Config


class Projector(nn.Module):
    """[B, E] -> [B, D] of unit length."""

    def __init__(self, embed: int, latent: int) -> None:
        super().__init__()
        self.dense = DenseLeaky(embed, latent)
        self.dense2 = DenseLeaky(latent, latent)

    def forward(self, embed_BE: torch.Tensor) -> torch.Tensor:
        return unit_norm(self.dense2(self.dense(embed_BE)))


class Classifier(nn.Module):
    """[B, E] -> [B, C] logits: two dense layers, unit norm, dropout, dense."""

    def __init__(self, embed: int, tags: int, hidden: int = 256, dropout: float = 0.5) -> None:
        super().__init__()
        self.dense = DenseLeaky(embed, hidden)
        self.dense2 = DenseLeaky(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.dense3 = glorot(nn.Linear(hidden, tags))

    def forward(self, embed_BE: torch.Tensor) -> torch.Tensor:
        unit_BX = unit_norm(self.dense2(self.dense(embed_BE)))
        return cast(torch.Tensor, self.dense3(self.dropout(unit_BX)))


class MLPHeadConfig(Config):
    """The published classifier. hidden: width of its two dense layers. dropout: before the output."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=256, ge=1, le=8192)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def build(self, embed: int, tags: int) -> nn.Module:
        return Classifier(embed, tags, hidden=self.hidden, dropout=self.dropout)


class LinearHeadConfig(Config):
    """[B, E] -> [B, C] logits: one dense layer on the embedding. dropout: before it."""

    kind: Literal["linear"] = "linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, embed: int, tags: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(self.dropout), glorot(nn.Linear(embed, tags)))


HeadConfigs = Annotated[MLPHeadConfig | LinearHeadConfig, Field(discriminator="kind")]
