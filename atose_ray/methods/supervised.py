"""Supervised tagging: a classifier on the encoder's embedding, no joint embedding.

`supervised` trains encoder and classifier together: the published baseline ("noJE"). `probe` trains the classifier
alone, on an encoder that stays as it came: freshly initialised, or trained before (`encoder: pretrained`, `init_from`).
Its score says how much of the tags a linear map, or a small MLP, finds in the embedding (Alain & Bengio 2016).

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002: the classifier head of stage 2."""

from typing import ClassVar, Literal

import torch

from atose_ray.encoders.base import Encoder
from atose_ray.methods.base import EmbeddingMethod, MethodConfig, log_terms
from atose_ray.methods.heads import HeadConfigs, LinearHeadConfig, MLPHeadConfig
from atose_ray.methods.stages import StageConfig
from atose_ray.objectives import TaggingConfig, TaggingLoss
from atose_ray.tags.autoencoder import probabilities
from atose_ray.types import DataSpec, TagSet


class SupervisedConfig(MethodConfig):
    """head: from the embedding to the tags. tagging: what its loss looks at more."""

    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"classify": ("encoder", "classifier")}
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("classify",)

    kind: Literal["supervised"] = "supervised"
    head: HeadConfigs = MLPHeadConfig()
    tagging: TaggingConfig | None = None
    stages: tuple[StageConfig, ...] = (StageConfig(name="classify", epochs=200),)

    @property
    def takes_soft_tags(self) -> bool:
        return True

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "Supervised":
        return Supervised(self, encoder, spec)


class ProbeConfig(MethodConfig):
    """head: from the embedding of the frozen encoder to the tags. tagging: what its loss looks at more."""

    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"probe": ("classifier",)}
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("probe",)

    kind: Literal["probe"] = "probe"
    head: HeadConfigs = LinearHeadConfig()
    tagging: TaggingConfig | None = None
    stages: tuple[StageConfig, ...] = (StageConfig(name="probe", epochs=100),)

    @property
    def takes_soft_tags(self) -> bool:
        return True

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "Supervised":
        return Supervised(self, encoder, spec)


class Supervised(EmbeddingMethod):
    """Parts: encoder, classifier."""

    def __init__(self, config: SupervisedConfig | ProbeConfig, encoder: Encoder, spec: DataSpec) -> None:
        super().__init__(encoder, spec)
        self.classifier = config.head.build(encoder.embed_dim, len(spec.tags))
        self.tagging_loss = TaggingLoss(config.tagging, spec.exclusive)

    def embedding_losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """Binary (or categorical) cross-entropy on the logits."""
        return log_terms(tagging=self.tagging_loss(self.classifier(embed_BE), tags_BC))

    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, E] -> [B, C]: sigmoid (softmax where tags are exclusive) of the classifier."""
        return probabilities(self.classifier(embed_BE), self.spec.exclusive)
