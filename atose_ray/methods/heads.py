"""The dense heads on an encoder's embedding: into the joint space, and to tags.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002 (WaveProjector, SupervisedClassifier).
"""

from __future__ import annotations

import torch
from torch import nn

from atose_ray.tags.autoencoder import DenseLeaky, init_dense, unit_norm


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
