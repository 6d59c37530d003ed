"""The tag autoencoder: a clip's tags to a unit vector of the joint space, and a vector of that space to tags.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002. Its unit norm divides 0 by 0 for a clip without tags as long as
the biases are zero, which is how they start; here such a row stays zero, and gets a finite gradient."""

from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn import functional

LEAKY_SLOPE = 0.3
ZERO_NORM = 1e-12
LayerT = TypeVar("LayerT", bound=nn.Linear | nn.Conv1d | nn.Conv2d)


def glorot(layer: LayerT) -> LayerT:
    """The layer with glorot_uniform weights and zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # made with bias=True
    return layer


class DenseLeaky(nn.Linear):
    """[B, in] -> [B, out]: dense, then LeakyReLU of slope 0.3; glorot_uniform, zero bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        glorot(self)

    def forward(self, x_BX: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(super().forward(x_BX), LEAKY_SLOPE)


def unit_norm(x_BD: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B, D] rows of length 1: x / ||x||. A row shorter than 1e-12 stays as it is, its gradient finite."""
    square_B1 = x_BD.square().sum(dim=-1, keepdim=True)
    norm_B1 = torch.where(square_B1 > ZERO_NORM**2, square_B1, torch.ones_like(square_B1)).sqrt()
    return x_BD / norm_B1


def probabilities(logits_BC: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """[B, C] -> [B, C]: softmax where exactly one tag holds, else a sigmoid per tag."""
    return torch.softmax(logits_BC, dim=-1) if exclusive else torch.sigmoid(logits_BC)


class TagEncoder(nn.Module):
    """[B, C] tags -> [B, D] of unit length."""

    def __init__(self, tags: int, latent: int) -> None:
        super().__init__()
        self.hidden1 = DenseLeaky(tags, latent)
        self.hidden2 = DenseLeaky(latent, latent)

    def forward(self, tags_BC: torch.Tensor) -> torch.Tensor:
        return unit_norm(self.hidden2(self.hidden1(tags_BC)))


class TagDecoder(nn.Module):
    """[B, D] of the joint space -> [B, C] logits; `probabilities` makes them scores."""

    def __init__(self, latent: int, tags: int) -> None:
        super().__init__()
        self.dense = DenseLeaky(latent, latent)
        self.dense2 = glorot(nn.Linear(latent, tags))

    def forward(self, embed_BD: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.dense2(self.dense(embed_BD)))
