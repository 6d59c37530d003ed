"""Losses: tensors to a scalar. Those that tie audio to tags share one signature and have a config beside them.

All take tag_embed_BD and audio_embed_BD, row i of both from clip i, and tags_BC in {0, 1}; D is the joint space.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn import functional

from atose_ray.types import Config

ZERO_NORM = 1e-12


class PairwiseMarginConfig(Config):
    """The published objective. margin: below it, a coordinate that the tag vector does not ask for costs."""

    kind: Literal["pairwise_margin"] = "pairwise_margin"
    margin: float = Field(default=0.4, ge=0, le=2)

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        return pairwise_margin(tag_embed_BD, audio_embed_BD, tags_BC, self.margin)


def pairwise_margin(
    tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor, margin: float
) -> torch.Tensor:
    """[B, D], [B, D], [B, C] -> scalar: mean over B and D of y p^2 + (1 - y) max(margin - p, 0)^2.

    y is the tag embedding, p the audio embedding. Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002: the
    contrastive loss of Hadsell et al. 2006, taken coordinate by coordinate with a soft y. For unit vectors of at
    least 50 dimensions its minimum is the constant 1 / sqrt(D) on both sides: it hardly rewards p = y.
    """
    y, p = tag_embed_BD, audio_embed_BD
    return (y * p.square() + (1 - y) * (margin - p).clamp_min(0).square()).mean()


class CosineConfig(Config):
    """Audio and tag vector of a clip in one direction; nothing keeps clips apart."""

    kind: Literal["cosine"] = "cosine"

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        return cosine(tag_embed_BD, audio_embed_BD, tags_BC)


def cosine(tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
    """[B, D], [B, D], [B, C] -> scalar in [0, 2]: mean over B of 1 - cos(tag, audio). A zero row counts 1."""
    cos_B = (tag_embed_BD * audio_embed_BD).sum(dim=1) / (_length(tag_embed_BD) * _length(audio_embed_BD))
    return (1 - cos_B).mean()


def _length(x_BD: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B]: the length of every row, 1 for a zero row, so that its cosine is 0 and its gradient finite."""
    square_B = x_BD.square().sum(dim=1)
    return torch.where(square_B > ZERO_NORM**2, square_B, torch.ones_like(square_B)).sqrt()


class InfoNCEConfig(Config):
    """Every clip against all others of the batch. temperature: divides the cosines; small looks at hard pairs only."""

    kind: Literal["info_nce"] = "info_nce"
    temperature: float = Field(default=0.1, ge=0.005, le=10)

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        return info_nce(tag_embed_BD, audio_embed_BD, tags_BC, self.temperature)


def info_nce(
    tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor, temperature: float
) -> torch.Tensor:
    """[B, D], [B, D], [B, C] -> scalar: cross-entropy of cos / temperature, audio -> tags and tags -> audio, halved.

    Source: van den Oord et al. 2018, in the symmetric form of Radford et al. 2021. Departure: clips with the same tag
    set are all positives of each other, the target is uniform over them. Where the tag vector is a function of the
    tag set, as in a joint embedding, this equals one-hot targets: k clips of one set then cost at least log k.
    """
    same_BB = (tags_BC[:, None] == tags_BC[None]).all(dim=2).to(audio_embed_BD.dtype)
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    return _contrast(tag_embed_BD, audio_embed_BD, target_BB, temperature)


def _contrast(
    tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, target_BB: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of cos(audio, tag) / temperature against target rows, audio -> tags and tags -> audio, halved."""
    lengths_BB = torch.outer(_length(audio_embed_BD), _length(tag_embed_BD))
    logits_BB = audio_embed_BD @ tag_embed_BD.T / lengths_BB / temperature
    return (functional.cross_entropy(logits_BB, target_BB) + functional.cross_entropy(logits_BB.T, target_BB)) / 2


class SoftTargetsConfig(Config):
    """Every clip against all others of the batch; the more alike their tags, the closer. temperature: as in InfoNCE."""

    kind: Literal["soft_targets"] = "soft_targets"
    temperature: float = Field(default=0.1, ge=0.005, le=10)

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        return soft_targets(tag_embed_BD, audio_embed_BD, tags_BC, self.temperature)


def soft_targets(
    tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor, temperature: float
) -> torch.Tensor:
    """[B, D], [B, D], [B, C] -> scalar: as `info_nce`, with targets in proportion to the Jaccard index of the tag sets.

    Two clips that share some tags are neither positives nor negatives: they attract each other by |both| / |either|.
    Two clips without a tag count as alike. Ours, after the graded targets of SoftCLIP (Gao et al. 2023).
    """
    both_BB = tags_BC @ tags_BC.T
    count_B = tags_BC.sum(dim=1)
    either_BB = count_B[:, None] + count_B[None] - both_BB
    alike_BB = torch.where(either_BB > 0, both_BB / either_BB.clamp_min(1), torch.ones_like(both_BB))
    target_BB = alike_BB / alike_BB.sum(dim=1, keepdim=True).clamp_min(ZERO_NORM)
    return _contrast(tag_embed_BD, audio_embed_BD, target_BB, temperature)


ObjectiveConfigs = Annotated[
    PairwiseMarginConfig | CosineConfig | InfoNCEConfig | SoftTargetsConfig, Field(discriminator="kind")
]


def tagging_loss(logits_BC: torch.Tensor, tags_BC: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """[B, C], [B, C] -> scalar: cross-entropy of the tags under the logits.

    Not exclusive: binary, mean over B and C. Exclusive: -sum over C of tag * log softmax, mean over B; a row without
    a tag adds 0 and counts in the mean (as published: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002).
    """
    if exclusive:
        return -(tags_BC * functional.log_softmax(logits_BC, dim=1)).sum(dim=1).mean()
    return functional.binary_cross_entropy_with_logits(logits_BC, tags_BC)


def reconstruction_loss(probabilities_BC: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
    """[B, C], [B, C] -> scalar: mean over B and C of (probability - tag)^2, the tag autoencoder's loss."""
    return functional.mse_loss(probabilities_BC, tags_BC)
