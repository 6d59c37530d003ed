"""Two-stage joint embedding of audio and tags.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002, and its published code.

    stage "embed"     encoder and projector against a tag autoencoder: the tags of a clip are encoded to a unit vector
                      and decoded again; the clip's audio is projected to a unit vector; an objective ties the two.
    stage "classify"  a classifier on the encoder's embedding; the encoder is frozen (and in eval mode) as published,
                      or trained on where the stage says `trains: [encoder, classifier]`.
    stage "joint"     both at once: the classifier's loss, and `joint_weight` times that of "embed" beside it.

Departures: the published code leaves stage 1 without a score. Here it scores by decoding the projected audio, so that
a search can prune in stage 1. The unit norms are safe at an all-zero row, where the published ones give NaN. Stage
"joint" is ours, and so are tag vectors in the place of the tags: a clip's tags are then the mean of their vectors, and
a tag that was never trained on is scored by the cosine of its vector's embedding and the clip's. Where a tag split
holds out tags, all tags are scored so, in every stage."""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field

from atose_ray.encoders.base import Encoder
from atose_ray.methods.base import EmbeddingMethod, MethodConfig, log_terms, vectors_of
from atose_ray.methods.heads import HeadConfigs, MLPHeadConfig, Projector
from atose_ray.methods.stages import StageConfig
from atose_ray.objectives import ObjectiveConfigs, PairwiseMarginConfig, TaggingConfig, TaggingLoss, reconstruction_loss
from atose_ray.tags.autoencoder import TagDecoder, TagEncoder, probabilities
from atose_ray.types import AnyBatch, DataSpec, TagSet

EMBED_PARTS = ("encoder", "projector", "tag_encoder", "tag_decoder")


class JointEmbeddingConfig(MethodConfig):
    """latent: size D of the joint space (published: 128 MTAT, 50 DCASE, 64 Speech Commands).

    tag_side: what the tag encoder reads, the clip's tags (published) or the mean of their tag vectors.
    objective: what ties a clip's audio vector to its tag vector. head: the classifier of stages "classify", "joint".
    tagging: what the classifier's loss looks at more.
    joint_weight: of the joint embedding's losses beside the classifier's in stage "joint"."""

    LATER: ClassVar[tuple[str, ...]] = ("tag_side",)
    embeds_tags: ClassVar[bool] = True
    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {
        "embed": EMBED_PARTS,
        "classify": ("classifier",),
        "joint": (*EMBED_PARTS, "classifier"),
    }
    USES: ClassVar[dict[str, tuple[str, ...]]] = {**STAGES, "classify": ("encoder", "classifier")}

    COMPARABLE: ClassVar[tuple[str, ...]] = ("classify", "joint")  # not the decoder's of stage "embed"

    kind: Literal["joint_embedding"] = "joint_embedding"
    latent: int = Field(default=128, ge=2, le=4096)
    tag_side: Literal["tags", "vectors"] = "tags"
    objective: ObjectiveConfigs = PairwiseMarginConfig()
    joint_weight: float = Field(default=1.0, gt=0, le=1000)
    head: HeadConfigs = MLPHeadConfig()
    tagging: TaggingConfig | None = None
    stages: tuple[StageConfig, ...] = (StageConfig(name="embed", epochs=100), StageConfig(name="classify", epochs=200))

    @property
    def reads_vectors(self) -> bool:
        return self.tag_side == "vectors"

    @property
    def scores_unseen(self) -> bool:
        return self.tag_side == "vectors"

    @property
    def takes_soft_tags(self) -> bool:
        """Not where it counts tags: for the mean of their vectors, or for how much two sets of them have in common."""
        return self.tag_side == "tags" and self.objective.kind != "soft_targets"

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "JointEmbedding":
        return JointEmbedding(self, encoder, spec, tags)


class JointEmbedding(EmbeddingMethod):
    """Parts: encoder, projector, tag_encoder, tag_decoder, classifier. Of tag_side vectors a buffer, vectors_CV."""

    vectors_CV: torch.Tensor | None
    trained: torch.Tensor

    def __init__(self, config: JointEmbeddingConfig, encoder: Encoder, spec: DataSpec, tags: TagSet) -> None:
        super().__init__(encoder, spec)
        self.objective, self.joint_weight = config.objective, config.joint_weight
        self.projector = Projector(encoder.embed_dim, config.latent)
        vectors_CV = tags.vectors_CV.float().clone() if config.reads_vectors and tags.vectors_CV is not None else None
        self.register_buffer("vectors_CV", vectors_CV)
        width = len(spec.tags) if vectors_CV is None else vectors_CV.shape[1]
        self.tag_encoder = TagEncoder(width, config.latent)
        trained = [index for index, tag in enumerate(spec.tags) if tag not in spec.held_out]
        self.register_buffer("trained", torch.tensor(trained), persistent=False)
        self.tag_decoder = TagDecoder(config.latent, len(trained))
        self.classifier = config.head.build(encoder.embed_dim, len(trained))
        self.tagging_loss = TaggingLoss(config.tagging, spec.exclusive, trained)

    def embedding_losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """embed: MSE of the decoded tags plus the objective. classify: cross-entropy of the classifier. joint: all."""
        terms: dict[str, torch.Tensor] = {}
        if self.spec.held_out:
            tags_BC = tags_BC[:, self.trained]
        if stage != "classify":
            weight = self.joint_weight if stage == "joint" else 1.0
            audio_embed_BD, tag_embed_BD = self.projector(embed_BE), self.embedded_tags(tags_BC)
            decoded_BC = probabilities(self.tag_decoder(tag_embed_BD), self.spec.exclusive)
            terms["reconstruction"] = weight * reconstruction_loss(decoded_BC, tags_BC)
            rows = (self.gather(one) for one in (tag_embed_BD, audio_embed_BD, tags_BC))
            terms["alignment"] = weight * self.objective.loss(*rows)
        if stage != "embed":
            terms["tagging"] = self.tagging_loss(self.classifier(embed_BE), tags_BC)
        return log_terms(**terms)

    def embedded_tags(self, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, C] -> [B, D] of length 1: the tags, or the mean of their vectors, through the tag encoder."""
        if self.vectors_CV is None:
            return cast(torch.Tensor, self.tag_encoder(tags_BC))
        vectors_CV = self.vectors_CV[self.trained] if tags_BC.shape[1] == len(self.trained) else self.vectors_CV
        mean_BV = tags_BC @ vectors_CV / tags_BC.sum(dim=1, keepdim=True).clamp_min(1)
        return cast(torch.Tensor, self.tag_encoder(mean_BV))

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)]: probabilities, or, where tags come with vectors or are held out, (1 + cosine) / 2
        in the joint space. Raises ValueError for a tag it was not trained on without a vector."""
        if self.vectors_CV is None or (tags.vectors_CV is None and not self.spec.held_out):
            return super().score(batch, tags, stage)
        words_CD = self.tag_encoder(vectors_of(tags, self.spec, self.vectors_CV))
        return cast(torch.Tensor, (1 + self.projector(self.embed(batch).embed_BE) @ words_CD.T) / 2)

    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, E] -> [B, C]: what the decoder reads in the projected audio in stage embed, else the classifier's."""
        logits_BC = self.tag_decoder(self.projector(embed_BE)) if stage == "embed" else self.classifier(embed_BE)
        return probabilities(logits_BC, self.spec.exclusive)

    def joint_embeddings(self, batch: AnyBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.projector(self.embed(batch).embed_BE), self.embedded_tags(batch.tags_BC)

    @torch.no_grad()
    def tag_embeddings(self) -> torch.Tensor:
        """[C, D]: the tag encoder's unit vector of every single tag."""
        device = next(self.tag_encoder.parameters()).device
        return self.embedded_tags(torch.eye(len(self.spec.tags), device=device))
