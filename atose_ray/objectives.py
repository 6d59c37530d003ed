"""Losses: tensors to a scalar. Those that tie audio to tags share one signature and have a config beside them.

All take tag_embed_BD and audio_embed_BD, row i of both from clip i, and tags_BC in {0, 1}; D is the joint space."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.types import Config

ZERO_NORM = 1e-12
KL_CONSTANT = 1e-5
ContrastT = TypeVar("ContrastT", bound="ContrastConfig")


class PairwiseMarginConfig(Config):
    """The published objective: mean over B and D of y p^2 + (1 - y) max(margin - p, 0)^2.

    y is the tag embedding, p the audio embedding. margin: below it, a coordinate that the tag vector does not ask for
    costs. Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002: the contrastive loss of Hadsell et al. 2006, taken
    coordinate by coordinate with a soft y. For unit vectors of at least 50 dimensions its minimum is the constant
    1 / sqrt(D) on both sides: it hardly rewards p = y."""

    kind: Literal["pairwise_margin"] = "pairwise_margin"
    margin: float = Field(default=0.4, ge=0, le=2)

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        y, p = tag_embed_BD, audio_embed_BD
        return (y * p.square() + (1 - y) * (self.margin - p).clamp_min(0).square()).mean()


class CosineConfig(Config):
    """Audio and tag vector of a clip in one direction; nothing keeps clips apart."""

    kind: Literal["cosine"] = "cosine"

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar in [0, 2]: mean over B of 1 - cos(tag, audio). A zero row counts 1."""
        cos_B = (tag_embed_BD * audio_embed_BD).sum(dim=1) / (_length(tag_embed_BD) * _length(audio_embed_BD))
        return (1 - cos_B).mean()


def _length(x_BD: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B]: the length of every row, 1 for a zero row, so that its cosine is 0 and its gradient finite."""
    square_B = x_BD.square().sum(dim=1)
    return torch.where(square_B > ZERO_NORM**2, square_B, torch.ones_like(square_B)).sqrt()


class ContrastConfig(Config):
    """Every clip against all others of the batch: cross-entropy of cos(audio, tag) / temperature against rows of
    targets, audio -> tags and tags -> audio, halved. temperature: small looks at hard pairs only."""

    temperature: float = Field(default=0.1, ge=0.005, le=10)

    def at(self: ContrastT, temperature: torch.Tensor) -> ContrastT:
        """The same with a temperature that is learned, a scalar."""
        return self.model_copy(update={"temperature": temperature})

    @abstractmethod
    def targets(self, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, C] -> [B, B], rows of sum 1: which clips of the batch belong together."""

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        target_BB = self.targets(tags_BC)
        lengths_BB = torch.outer(_length(audio_embed_BD), _length(tag_embed_BD))
        logits_BB = audio_embed_BD @ tag_embed_BD.T / lengths_BB / self.temperature
        return (functional.cross_entropy(logits_BB, target_BB) + functional.cross_entropy(logits_BB.T, target_BB)) / 2


class InfoNCEConfig(ContrastConfig):
    """Clips with the same tag set are all positives of each other, the target is uniform over them.

    Source: van den Oord et al. 2018, in the symmetric form of Radford et al. 2021. The targets are a departure: where
    the tag vector is a function of the tag set, as in a joint embedding, they equal one-hot ones, but k clips of one
    set then cost at least log k."""

    kind: Literal["info_nce"] = "info_nce"

    def targets(self, tags_BC: torch.Tensor) -> torch.Tensor:
        same_BB = (tags_BC[:, None] == tags_BC[None]).all(dim=2).to(tags_BC.dtype)
        return same_BB / same_BB.sum(dim=1, keepdim=True)


class SoftTargetsConfig(ContrastConfig):
    """The more alike the tags of two clips, the closer: targets in proportion to the Jaccard index of the tag sets.

    Two clips that share some tags are neither positives nor negatives: they attract each other by |both| / |either|.
    Two clips without a tag count as alike. Ours, after the graded targets of SoftCLIP (Gao et al. 2023)."""

    kind: Literal["soft_targets"] = "soft_targets"

    def targets(self, tags_BC: torch.Tensor) -> torch.Tensor:
        both_BB = tags_BC @ tags_BC.T
        count_B = tags_BC.sum(dim=1)
        either_BB = count_B[:, None] + count_B[None] - both_BB
        alike_BB = torch.where(either_BB > 0, both_BB / either_BB.clamp_min(1), torch.ones_like(both_BB))
        return alike_BB / alike_BB.sum(dim=1, keepdim=True).clamp_min(ZERO_NORM)


class NTXentConfig(ContrastConfig):
    """All 2B vectors of a batch in one heap: each looks for its partner among the 2B - 1 others, those of its own kind
    among them; mean over 2B of -ln(softmax of cosine / temperature + constant).

    Source: NT-Xent (Chen et al. 2020) with the constant of COALA (Favory et al. 2020), which bounds a clip's loss by
    -ln(constant) = 11.5. Computed from logarithms: the published code gives NaN below a temperature of 0.0113 and for a
    zero row; the same elsewhere. duplicates: what other clips with the same tag set are, negatives as published, or
    positives, over which the loss of a row is then averaged."""

    kind: Literal["nt_xent"] = "nt_xent"
    constant: float = Field(default=1e-5, ge=0, le=1e-2)
    duplicates: Literal["negatives", "positives"] = "negatives"

    def targets(self, tags_BC: torch.Tensor) -> torch.Tensor:
        if self.duplicates == "negatives":
            return torch.eye(len(tags_BC), dtype=tags_BC.dtype, device=tags_BC.device)
        return (tags_BC[:, None] == tags_BC[None]).all(dim=2).to(tags_BC.dtype)

    def loss(self, tag_embed_BD: torch.Tensor, audio_embed_BD: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, D], [B, D], [B, C] -> scalar."""
        all_ND = torch.cat([audio_embed_BD, tag_embed_BD])
        unit_ND = all_ND / _length(all_ND)[:, None]
        itself_NN = torch.eye(len(unit_ND), dtype=torch.bool, device=unit_ND.device)
        logits_NN = (unit_ND @ unit_ND.T / self.temperature).masked_fill(itself_NN, -torch.inf)
        positive_NN = self.targets(tags_BC).to(torch.bool).repeat(2, 2) & ~itself_NN
        share_NN = functional.log_softmax(logits_NN, dim=1)
        if self.constant:
            share_NN = torch.logaddexp(share_NN, share_NN.new_tensor(self.constant).log())
        return -(share_NN.masked_fill(~positive_NN, 0).sum(dim=1) / positive_NN.sum(dim=1)).mean()


CONTRASTS = InfoNCEConfig | SoftTargetsConfig | NTXentConfig
ContrastConfigs = Annotated[CONTRASTS, Field(discriminator="kind")]
ObjectiveConfigs = Annotated[PairwiseMarginConfig | CosineConfig | CONTRASTS, Field(discriminator="kind")]


MOST_WEIGHT = 100.0  # of one clip with a rare tag


class TaggingConfig(Config):
    """What the cross-entropy of a classifier looks at more.

    focal: gamma of the focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017): a tag counts
        (1 - p)^gamma, p being the probability of what is true, so that what is known already counts little.
    class_weights: balanced gives the clips of rare tags more weight, counted in the train split; from 0.01 to 100, and
        1 for a tag without a clip. Several tags a clip: what a tag's positives weigh is (clips without it) / (clips
        with it), its negatives weigh 1 (`pos_weight` of torch). Exclusive tags: a clip weighs clips / (tags * clips
        with its tag), as in scikit-learn."""

    focal: float = Field(default=0.0, ge=0, le=10)
    class_weights: Literal["balanced"] | None = None


class TaggingLoss(nn.Module):
    """`tagging_loss` as a method's config asks for it. columns: of the tags, those that are trained; None is all."""

    weight_C: torch.Tensor | None

    def __init__(self, config: TaggingConfig | None, exclusive: bool, columns: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config, self.exclusive, self.columns = config or TaggingConfig(), exclusive, columns
        self.register_buffer("weight_C", None, persistent=False)

    def weigh(self, counts: Sequence[int], clips: int) -> None:
        """Before a training: of so many clips every tag's count."""
        if self.config.class_weights is None:
            return
        counts = counts if self.columns is None else [counts[column] for column in self.columns]
        count_C = torch.tensor(counts, dtype=torch.float32)
        weight_C = (clips / len(counts) if self.exclusive else clips - count_C) / count_C.clamp_min(1)
        bounded_C = weight_C.clamp(1 / MOST_WEIGHT, MOST_WEIGHT)
        self.weight_C = torch.where(count_C > 0, bounded_C, torch.ones_like(bounded_C))

    def forward(self, logits_BC: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, C], [B, C] -> scalar."""
        return tagging_loss(logits_BC, tags_BC, self.exclusive, self.config.focal, self.weight_C)


def tagging_loss(
    logits_BC: torch.Tensor,
    tags_BC: torch.Tensor,
    exclusive: bool,
    focal: float = 0.0,
    weight_C: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, C], [B, C] -> scalar: cross-entropy of the tags under the logits. focal, weight_C [C]: as in TaggingConfig.

    Not exclusive: binary, mean over B and C. Exclusive: -sum over C of tag * log softmax, mean over B; a row without
    a tag adds 0 and counts in the mean (as published: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002)."""
    if exclusive:
        log_p_BC = functional.log_softmax(logits_BC, dim=1)
        surprise_BC = -log_p_BC * (1 - log_p_BC.exp()).pow(focal) if focal else -log_p_BC
        tags_BC = tags_BC if weight_C is None else tags_BC * weight_C
        return (tags_BC * surprise_BC).sum(dim=1).mean()
    if not focal:
        return functional.binary_cross_entropy_with_logits(logits_BC, tags_BC, pos_weight=weight_C)
    p_BC, positive_BC = torch.sigmoid(logits_BC), tags_BC if weight_C is None else tags_BC * weight_C
    missed_BC = positive_BC * (1 - p_BC).pow(focal) * functional.softplus(-logits_BC)
    return (missed_BC + (1 - tags_BC) * p_BC.pow(focal) * functional.softplus(logits_BC)).mean()


def reconstruction_loss(probabilities_BC: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
    """[B, C], [B, C] -> scalar: mean over B and C of (probability - tag)^2, the tag autoencoder's loss."""
    return functional.mse_loss(probabilities_BC, tags_BC)


def generalised_kl(reconstruction_BMX: torch.Tensor, target_BMX: torch.Tensor) -> torch.Tensor:
    """[B, M, X], [B, M, X] -> [B]: y ln(y / x) + x - y, summed over X and averaged over M.

    Both have 1e-5 added in the logarithm; a target of less than -1e-5 gives NaN. Source: COALA (Favory et al. 2020)."""
    x, y = reconstruction_BMX, target_BMX
    return (y * ((y + KL_CONSTANT).log() - (x + KL_CONSTANT).log()) + x - y).sum(dim=2).mean(dim=1)
