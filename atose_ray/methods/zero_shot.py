"""Zero-shot tagging: clips and the vectors of tag names in one space, so that a tag needs a vector and no example.

Paper: Choi, Lee, Park, Nam, "Zero-shot Learning for Audio-based Music Classification and Tagging", ISMIR 2019, and its
published code. The vector of a tag passes one dense layer (the word branch) into the space of the encoder's embedding;
the score of a clip and a tag is the cosine of the two. A step takes of every clip one of its tags and some that it
lacks, all drawn evenly, and asks that the first be nearer by a margin (hinge), summed over the batch. Of weights only
the encoder's convolution kernels decay, as a term of the loss.

Departures: a score is (1 + cosine) / 2, in the same order. A clip without a tag, or that lacks fewer tags than are
drawn, adds nothing (published: such clips are in no split). Tags that a view holds out (data.tag_split.valid_share) are
neither drawn nor missed. `negatives: all`, the mean instead of the sum, and a space of another size than the encoder's
are ours; the smooth BPR loss is defined in the published code and used by nothing there."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.encoders.base import Encoder
from atose_ray.methods.base import Method, MethodConfig, log_terms, vectors_of
from atose_ray.methods.stages import StageConfig
from atose_ray.ranks import world
from atose_ray.tags.autoencoder import glorot
from atose_ray.types import AnyBatch, DataSpec, TagSet

NORM_FLOOR = 1e-6  # Keras: x / sqrt(max(sum x^2, 1e-12))


class ZeroShotConfig(MethodConfig):
    """latent: size D of the space; None is the encoder's own embedding, with no layer behind it (published).

    ranking: hinge, max(0, margin - cos(positive) + cos(negative)), or bpr, 1 - sigmoid(cos(positive) - cos(negative)).
    negatives: tags that are drawn of those a clip lacks, or all of them. reduction: the sum over clips and negatives as
    published, whose step grows with data.batch_size, or their mean. kernel_decay: times the sum of the squared
    convolution kernels of the encoder."""

    embeds_tags: ClassVar[bool] = True
    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"align": ("encoder", "towers")}
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("align",)

    kind: Literal["zero_shot"] = "zero_shot"
    latent: int | None = Field(default=None, ge=2, le=4096)
    ranking: Literal["hinge", "bpr"] = "hinge"
    margin: float = Field(default=0.4, ge=0, le=2)
    negatives: Annotated[int, Field(ge=1)] | Literal["all"] = 1
    reduction: Literal["sum", "mean"] = "sum"
    kernel_decay: float = Field(default=1e-5, ge=0, le=1)
    stages: tuple[StageConfig, ...] = (StageConfig(name="align", epochs=20),)

    @property
    def reads_vectors(self) -> bool:
        return True

    @property
    def scores_unseen(self) -> bool:
        return True

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "ZeroShot":
        return ZeroShot(self, encoder, spec, tags)


class Towers(nn.Module):
    """What stands behind the encoder and behind the tag vectors. words: [C, V] -> [C, D]; audio: [B, E] -> [B, D]."""

    def __init__(self, embed: int, vector: int, latent: int | None) -> None:
        super().__init__()
        self.words = glorot(nn.Linear(vector, latent or embed))
        self.audio = glorot(nn.Linear(embed, latent)) if latent else nn.Identity()


class ZeroShot(Method):
    """Parts: encoder, towers. Buffers: vectors_CV of the tags of the spec; trained: indices of those not held out."""

    vectors_CV: torch.Tensor
    trained: torch.Tensor

    def __init__(self, config: ZeroShotConfig, encoder: Encoder, spec: DataSpec, tags: TagSet) -> None:
        super().__init__(encoder, spec)
        assert tags.vectors_CV is not None, "RunConfig sees to it that there are tag vectors"
        self.config = config
        self.towers = Towers(encoder.embed_dim, tags.vectors_CV.shape[1], config.latent)
        self.register_buffer("vectors_CV", tags.vectors_CV.float().clone())
        trained = [index for index, tag in enumerate(spec.tags) if tag not in spec.held_out]
        self.register_buffer("trained", torch.tensor(trained), persistent=False)

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        config, tags_BC = self.config, batch.tags_BC[:, self.trained]
        audio_BD = unit(self.towers.audio(self.embed(batch).embed_BE))
        cos_BC = audio_BD @ unit(self.towers.words(self.vectors_CV[self.trained])).T
        positive_B, negative_BK, counts_BK = draw(tags_BC, config.negatives)
        pair = cos_BC.gather(1, positive_B[:, None]), cos_BC.gather(1, negative_BK)
        total = (ranking_terms(*pair, config.ranking, config.margin) * counts_BK).sum()
        ranking = total * world() if config.reduction == "sum" else total / counts_BK.sum().clamp_min(1)
        terms = log_terms(ranking=ranking, decay=config.kernel_decay * kernel_energy(self.encoder))
        return {**terms, "summed": ranking} if config.reduction == "sum" else terms

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)], (1 + cosine) / 2. Raises ValueError for names without a vector here or there."""
        audio_BD = unit(self.towers.audio(self.embed(batch).embed_BE))
        words_CD = unit(self.towers.words(vectors_of(tags, self.spec, self.vectors_CV)))
        return (1 + audio_BD @ words_CD.T) / 2

    @torch.no_grad()
    def tag_embeddings(self) -> torch.Tensor:
        """[C, D]: unit vectors of the tags of the spec."""
        return unit(self.towers.words(self.vectors_CV))


def unit(x_BD: torch.Tensor) -> torch.Tensor:
    """[B, D] -> [B, D] of length 1; a row shorter than 1e-6 is divided by that, so that a zero row stays zero."""
    return functional.normalize(x_BD, dim=1, eps=NORM_FLOOR)


def ranking_terms(positive_B1: torch.Tensor, negative_BK: torch.Tensor, ranking: str, margin: float) -> torch.Tensor:
    """Cosines [B, 1] and [B, K] -> the loss of every pair [B, K]."""
    if ranking == "bpr":
        return 1 - torch.sigmoid(positive_B1 - negative_BK)
    return (margin - positive_B1 + negative_BK).clamp_min(0)


def draw(tags_BC: torch.Tensor, negatives: int | Literal["all"]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """{0, 1} [B, C] -> a tag of every clip [B], K tags [B, K], and which of these count as its negatives {0, 1} [B, K].

    One of its tags, and K different ones of those it lacks, each evenly, from torch's generator; or all tags. A clip
    without a tag, or that lacks fewer than K, counts not at all."""
    has_BC, shape, device = tags_BC > 0, tags_BC.shape, tags_BC.device
    positive_B = torch.where(has_BC, torch.rand(shape, device=device), -1.0).argmax(dim=1)
    if negatives == "all":
        counts_BC = ~has_BC & has_BC.any(dim=1, keepdim=True)
        return positive_B, torch.arange(shape[1], device=device).expand(shape), counts_BC.to(tags_BC.dtype)
    key_BC = torch.where(has_BC, -1.0, torch.rand(shape, device=device))
    negative_BK = key_BC.topk(min(negatives, shape[1]), dim=1).indices
    counts_B = has_BC.any(dim=1) & ((~has_BC).sum(dim=1) >= negatives)
    return positive_B, negative_BK, counts_B[:, None].expand_as(negative_BK).to(tags_BC.dtype)


def kernel_energy(encoder: nn.Module) -> torch.Tensor:
    """Sum of the squares of all convolution kernels; biases, dense layers and norms have no part in it."""
    kernels = [one.weight.square().sum() for one in encoder.modules() if isinstance(one, nn.Conv1d | nn.Conv2d)]
    zero = next(encoder.parameters()).new_zeros(())
    return torch.stack(kernels).sum() if kernels else zero
