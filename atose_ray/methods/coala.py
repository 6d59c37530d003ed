"""COALA: a clip's audio and its tags in one space, each side kept honest by an autoencoder.

Paper: Favory, Drossos, Virtanen, Serra, "COALA: Co-Aligned Autoencoders for Learning Semantically Enriched Audio
Representations", 2020 (arXiv:2006.08386), and its published code; tag vectors instead of tags after the same authors'
"Learning Contextual Tag Embeddings for Cross-Modal Alignment of Audio and Tags", 2020 (arXiv:2010.14171).

    stage "ae_c"   audio patch and tags are encoded, decoded again from the embeddings (generalised KL, cross-entropy),
                   and aligned, projected, by NT-Xent; weights 5, 5 and 10
    stage "e_c"    the alignment alone. (Published: "ae_c" with two weights of 0, whose decoders stand still but for
                   their BatchNorms' statistics; the encoders learn the same.)
    stage "cnn"    the supervised baseline: the encoder and two dense layers to the tags

7,499,451 parameters in "ae_c" with 1,000 tags. The embedding that is used downstream is what stands before the
projection. Published training: SGD of rate 0.005 without momentum, batches of 128.

Departures: scores. A tag's score is (1 + cosine) / 2 of the projected clip and the projected tag alone; the published
code has none. The audio that is reconstructed is clamped at 0, where the published loss gives NaN. Clips of several
patches are aligned by their pooled embedding and reconstructed patch by patch."""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from atose_ray.encoders.base import Encoder
from atose_ray.encoders.coala_cnn import BLOCKS, KERNEL, LEFT, CoalaCNN
from atose_ray.methods.base import EmbeddingMethod, MethodConfig, log_terms, vectors_of
from atose_ray.methods.stages import StageConfig
from atose_ray.objectives import ContrastConfigs, NTXentConfig, generalised_kl, tagging_loss
from atose_ray.tags.autoencoder import probabilities, unit_norm
from atose_ray.types import AnyBatch, Batch, DataSpec, TagSet

NO_PATCHES = "stage 'ae_c' reconstructs the patches of coala_cnn, which {} has not; take that encoder, or stage e_c"
ALIGNED = ("encoder", "audio_projection", "tag_encoder", "tag_projection")
PUBLISHED = {  # what stands at the front of the published names, and of ours
    "audio_decoder.": "audio_decoder.",
    "fc_audio.": "audio_projection.",
    "tag_encoder.": "tag_encoder.",
    "fc_tag.": "tag_projection.",
    "tag_decoder.": "tag_decoder.",
    "fc.": "classifier.",
}


class CoalaConfig(MethodConfig):
    """latent: size of the space in which clips and tags are aligned; None is that of the encoder (published).

    hidden: width of the tag side's layers. dropout: of every part but the encoder, which has its own. tag_side: what
    the tag encoder reads, the clip's tags (published) or the mean of their tag vectors. objective: what aligns;
    info_nce has no negatives of the same kind, and clips with one tag set as positives. learn_temperature: beginning at
    the objective's. audio_weight, tag_weight: of the reconstructions. contrast_weight: of the alignment."""

    embeds_tags: ClassVar[bool] = True
    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {
        "ae_c": (*ALIGNED, "audio_decoder", "tag_decoder"),
        "e_c": ALIGNED,
        "cnn": ("encoder", "classifier"),
    }
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("ae_c", "e_c", "cnn")

    kind: Literal["coala"] = "coala"
    latent: int | None = Field(default=None, ge=2, le=8192)
    hidden: int = Field(default=512, ge=1, le=8192)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    tag_side: Literal["tags", "vectors"] = "tags"
    objective: ContrastConfigs = NTXentConfig()
    learn_temperature: bool = False
    audio_weight: float = Field(default=5.0, ge=0, le=1000)
    tag_weight: float = Field(default=5.0, ge=0, le=1000)
    contrast_weight: float = Field(default=10.0, gt=0, le=1000)
    stages: tuple[StageConfig, ...] = (StageConfig(name="ae_c", epochs=200),)

    @model_validator(mode="after")
    def _reconstruction_needs_audio(self) -> "CoalaConfig":
        for stage in self.stages:
            if stage.name == "ae_c" and "encoder" not in self.trained_parts(stage):
                raise ValueError(
                    "stage 'ae_c' reconstructs audio, so it trains the encoder; with a frozen one take e_c"
                )
        return self

    @property
    def reads_vectors(self) -> bool:
        return self.tag_side == "vectors"

    @property
    def scores_unseen(self) -> bool:
        return self.tag_side == "vectors" and all(stage.name != "cnn" for stage in self.stages)

    def check_encoder(self, kind: str) -> None:
        """Raises ValueError where audio is to be reconstructed from an encoder without patches. What stands in the
        folder of a pretrained one is seen when it is built."""
        if kind not in ("coala_cnn", "pretrained") and any(stage.name == "ae_c" for stage in self.stages):
            raise ValueError(NO_PATCHES.format(kind))

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "Coala":
        """Raises ValueError as `check_encoder`."""
        return Coala(self, encoder, spec, tags)


class Coala(EmbeddingMethod):
    """Parts: encoder and those of the stages. Of tag_side vectors a buffer, vectors_CV."""

    vectors_CV: torch.Tensor | None
    trained: torch.Tensor

    def __init__(self, config: CoalaConfig, encoder: Encoder, spec: DataSpec, tags: TagSet) -> None:
        super().__init__(encoder, spec)
        self.config, embed, dropout = config, encoder.embed_dim, config.dropout
        vectors_CV = tags.vectors_CV.float().clone() if config.reads_vectors and tags.vectors_CV is not None else None
        self.register_buffer("vectors_CV", vectors_CV)
        trained = [index for index, tag in enumerate(spec.tags) if tag not in spec.held_out]
        self.register_buffer("trained", torch.tensor(trained), persistent=False)
        parts = {part for stage in config.stages for part in config.STAGES[stage.name]}
        if "tag_encoder" in parts:
            latent, width = config.latent or embed, len(spec.tags) if vectors_CV is None else vectors_CV.shape[1]
            self.audio_projection = Projection(embed, latent, dropout)
            self.tag_encoder = tag_encoder(width, config.hidden, embed, dropout)
            self.tag_projection = Projection(embed, latent, dropout)
            if config.learn_temperature:
                start = torch.tensor(float(config.objective.temperature)).log()
                self.audio_projection.log_temperature = nn.Parameter(start)
        if "audio_decoder" in parts:
            if not isinstance(encoder, CoalaCNN):
                raise ValueError(NO_PATCHES.format(type(encoder).__name__))
            self.audio_decoder = audio_decoder(encoder.config.channels, dropout)
            self.tag_decoder = tag_decoder(embed, config.hidden, len(trained), dropout)
        if "classifier" in parts:
            self.classifier = nn.Sequential(nn.Linear(embed, embed), nn.ReLU(), nn.Linear(embed, len(spec.tags)))

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        if stage != "ae_c":
            return super().losses(batch, stage)
        assert isinstance(batch, Batch) and isinstance(self.encoder, CoalaCNN)
        embed_BE, seq_BSE, patches_BSMX, weight_BS = self.encoder.with_patches(batch.inputs)
        of_clip_N = (weight_BS > 0).flatten().to(seq_BSE)
        decoded_NMX = self.audio_decoder(seq_BSE.flatten(0, 1))[:, 0]
        target_NMX = patches_BSMX.flatten(0, 1).detach().clamp_min(0)
        audio = (generalised_kl(decoded_NMX, target_NMX) * of_clip_N).sum() / of_clip_N.sum()
        tags_BC = batch.tags_BC[:, self.trained]
        tag_BE = self.tag_encoder(self.tag_input(tags_BC))
        tag = self.config.tag_weight * functional.binary_cross_entropy(self.tag_decoder(tag_BE), tags_BC)
        return log_terms(
            audio=self.config.audio_weight * audio, tags=tag, alignment=self.alignment(embed_BE, tag_BE, tags_BC)
        )

    def embedding_losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """e_c: the alignment. cnn: cross-entropy of the classifier."""
        tags_BC = tags_BC[:, self.trained]
        if stage == "cnn":
            logits_BC = self.classifier(embed_BE)[:, self.trained]
            return log_terms(tagging=tagging_loss(logits_BC, tags_BC, self.spec.exclusive))
        return log_terms(alignment=self.alignment(embed_BE, self.tag_encoder(self.tag_input(tags_BC)), tags_BC))

    def alignment(self, embed_BE: torch.Tensor, tag_BE: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
        """Embeddings of audio and tags [B, E], tags [B, C] -> the weighted contrast of their projections."""
        objective, log_temperature = self.config.objective, self.audio_projection.log_temperature
        if log_temperature is not None:
            objective = objective.at(log_temperature.exp())
        pair = (self.tag_projection(tag_BE), self.audio_projection(embed_BE), tags_BC)
        return self.config.contrast_weight * objective.loss(*(self.gather(one) for one in pair))

    def tag_input(self, tags_BC: torch.Tensor) -> torch.Tensor:
        """[B, C] -> what the tag encoder reads: the tags, or the mean of their vectors."""
        if self.vectors_CV is None:
            return tags_BC
        vectors_CV = self.vectors_CV[self.trained] if tags_BC.shape[1] == len(self.trained) else self.vectors_CV
        return tags_BC @ vectors_CV / tags_BC.sum(dim=1, keepdim=True).clamp_min(1)

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)]: (1 + cosine) / 2; in stage cnn probabilities. Raises ValueError for a tag it was
        not trained on, unless it comes with a vector and the method reads these."""
        if stage == "cnn" or self.vectors_CV is None:
            return super().score(batch, tags, stage)
        words_CE = self.tag_encoder(vectors_of(tags, self.spec, self.vectors_CV))
        return self.likeness(self.embed(batch).embed_BE, words_CE)

    def likeness(self, embed_BE: torch.Tensor, words_CE: torch.Tensor) -> torch.Tensor:
        """Embeddings of B clips and of C tags -> [B, C]."""
        audio_BD, words_CD = unit_norm(self.audio_projection(embed_BE)), unit_norm(self.tag_projection(words_CE))
        return (1 + audio_BD @ words_CD.T) / 2

    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, E] -> [B, C]."""
        if stage == "cnn":
            return probabilities(self.classifier(embed_BE), self.spec.exclusive)
        return self.likeness(embed_BE, self.single_tags())

    def single_tags(self) -> torch.Tensor:
        """[C, E]: the tag encoder's embedding of every tag alone."""
        every_CC = torch.eye(len(self.spec.tags), device=self.trained.device)
        return cast(torch.Tensor, self.tag_encoder(self.tag_input(every_CC)))

    def joint_embeddings(self, batch: AnyBatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not hasattr(self, "tag_encoder"):
            return None
        tag_BE = self.tag_encoder(self.tag_input(batch.tags_BC))
        audio_BD = self.audio_projection(self.embed(batch).embed_BE)
        return unit_norm(audio_BD), unit_norm(self.tag_projection(tag_BE))

    @torch.no_grad()
    def tag_embeddings(self) -> torch.Tensor | None:
        """[C, D]: unit vectors of the single tags."""
        return unit_norm(self.tag_projection(self.single_tags())) if hasattr(self, "tag_encoder") else None

    def from_published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the published checkpoints (`audio_encoder_epoch_200.pt`, `tag_encoder_...`, `cnn_...`) for the parts
        that this method has."""
        parts, found = dict(self.named_children()), super().from_published(tensors)
        for theirs, ours in PUBLISHED.items():
            if ours[:-1] in parts:
                own = {key: value for key, value in tensors.items() if key.startswith(theirs)}
                found |= {ours + key.removeprefix(theirs): value for key, value in own.items()}
        return found


class Projection(nn.Sequential):
    """[B, E] -> [B, D]: linear without bias, dropout. log_temperature: of the objective, where it is learned."""

    log_temperature: nn.Parameter | None

    def __init__(self, embed: int, latent: int, dropout: float) -> None:
        super().__init__(nn.Linear(embed, latent, bias=False), nn.Dropout(dropout))
        self.register_parameter("log_temperature", None)


def tag_encoder(tags: int, hidden: int, embed: int, dropout: float) -> nn.Sequential:
    """[B, C] or [B, V] -> [B, E]."""
    layers: list[nn.Module] = []
    for before, after in ((tags, hidden), (hidden, hidden), (hidden, embed)):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def tag_decoder(embed: int, hidden: int, tags: int, dropout: float) -> nn.Sequential:
    """[B, E] -> [B, C] in 0 to 1."""
    first = (nn.Linear(embed, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout))
    second = (nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
    return nn.Sequential(*first, *second, nn.Linear(hidden, tags), nn.BatchNorm1d(tags), nn.Sigmoid())


def audio_decoder(channels: int, dropout: float) -> nn.Sequential:
    """[B, 9 * channels] -> [B, 1, 96, 96] in 0 to 1."""
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, LEFT, LEFT))]
    for _ in range(BLOCKS - 1):
        layers += [nn.Dropout(dropout), transposed(channels, channels), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, transposed(channels, 1), nn.BatchNorm2d(1), nn.Sigmoid())


def transposed(before: int, after: int) -> nn.ConvTranspose2d:
    """Twice as large in both directions."""
    return nn.ConvTranspose2d(before, after, KERNEL, stride=2, padding=1)
