"""Supervised tagging: encoder and classifier together, no joint embedding. The published baseline ("noJE").

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002: the classifier head of stage 2 on a trained encoder.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from atose_ray.methods.base import Method, MethodConfig, log_terms
from atose_ray.methods.heads import HeadConfigs, MLPHeadConfig
from atose_ray.methods.stages import StageConfig
from atose_ray.objectives import tagging_loss
from atose_ray.tags.autoencoder import probabilities
from atose_ray.types import DataSpec


class SupervisedConfig(MethodConfig):
    """head: from the embedding to the tags."""

    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"classify": ("encoder", "classifier")}
    USES: ClassVar[dict[str, tuple[str, ...]]] = {"classify": ("encoder", "classifier")}

    kind: Literal["supervised"] = "supervised"
    head: HeadConfigs = MLPHeadConfig()
    stages: tuple[StageConfig, ...] = (StageConfig(name="classify", epochs=200),)

    def build(self, encoder: nn.Module, embed_dim: int, spec: DataSpec) -> Supervised:
        """The method around an encoder."""
        return Supervised(self, encoder, embed_dim, spec)


class Supervised(Method):
    """Parts: encoder, classifier."""

    def __init__(self, config: SupervisedConfig, encoder: nn.Module, embed_dim: int, spec: DataSpec) -> None:
        super().__init__(spec)
        self.encoder = encoder
        self.classifier = config.head.build(embed_dim, len(spec.tags))

    def losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """Binary (or categorical) cross-entropy on the logits."""
        return log_terms(tagging=tagging_loss(self.classifier(embed_BE), tags_BC, self.spec.exclusive))

    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, E] -> [B, C]: sigmoid (softmax where tags are exclusive) of the classifier."""
        return probabilities(self.classifier(embed_BE), self.spec.exclusive)
