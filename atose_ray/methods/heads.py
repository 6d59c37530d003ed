"""The dense heads on an encoder's embedding: into the joint space, and to tags.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002 (WaveProjector, SupervisedClassifier). The linear head is the
usual one of tagging and of probing; with few steps it learns faster than the published one, whose unit norm keeps the
logits small until the last layer's weights have grown.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from atose_ray.tags.autoencoder import DenseLeaky, init_dense, unit_norm
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
        self.dense3 = init_dense(nn.Linear(hidden, tags))

    def forward(self, embed_BE: torch.Tensor) -> torch.Tensor:
        unit_BX = unit_norm(self.dense2(self.dense(embed_BE)))
        logits_BC: torch.Tensor = self.dense3(self.dropout(unit_BX))
        return logits_BC


class LinearClassifier(nn.Sequential):
    """[B, E] -> [B, C] logits: dropout, dense."""

    def __init__(self, embed: int, tags: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Dropout(dropout), init_dense(nn.Linear(embed, tags)))


class MLPHeadConfig(Config):
    """The published classifier. hidden: width of its two dense layers. dropout: before the output."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=256, ge=1, le=8192)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def build(self, embed: int, tags: int) -> nn.Module:
        """The head on `embed` features for `tags` tags."""
        return Classifier(embed, tags, hidden=self.hidden, dropout=self.dropout)


class LinearHeadConfig(Config):
    """One dense layer on the embedding. dropout: before it."""

    kind: Literal["linear"] = "linear"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, embed: int, tags: int) -> nn.Module:
        """The head on `embed` features for `tags` tags."""
        return LinearClassifier(embed, tags, dropout=self.dropout)


HeadConfigs = Annotated[MLPHeadConfig | LinearHeadConfig, Field(discriminator="kind")]
