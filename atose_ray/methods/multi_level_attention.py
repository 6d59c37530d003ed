"""Multi-level attention: tags of a clip from the frames of its sequence, several hidden layers each having a say.

Paper: Yu, Barsim, Kong, Yang, "Multi-level Attention Model for Weakly Supervised Audio Classification", 2018
(arXiv:1803.02353), after Kong, Xu, Wang, Plumbley, ICASSP 2018; in the form of AudioTagger (ZhicunXu/AudioTagger,
2019). Frames of 128 numbers -> BatchNorm -> three blocks of [dense 600, BatchNorm, ReLU, dropout 0.4]. Behind every
chosen block a level: probabilities sigmoid(BN(dense)) of each frame, averaged over the frames by weights
softmax(BN(dense)), cut to [1e-7, 1 - 1e-7] and made to sum to 1. The levels side by side -> dense, BatchNorm, sigmoid.

The published softmax runs over the classes, not over the frames (`attention_over`). Published levels are 2 and 3:
2,639,745 parameters with the running statistics, whichever way they stand in a command line.

BatchNorm's running statistics are those of Keras 2.2.4, with which it was trained: free of their start value
(zero-debiased), variance times n / (n - 1.001). After some hundred steps others hardly differ.
`statistics: plain` is today's Keras.

Scores of single frames, for timelines: the class probabilities of a frame before attention pools them (those that
Kong et al. 2018 average by attention), taken through the output layer in the place of the pooled ones. So a frame's
score is what a clip would score if the attention of every level, for every class, lay on this frame alone: on the scale
of clips, and the clip's own score where all frames are alike. The probabilities of a level cannot stand for themselves:
the output layer mixes classes and levels, and nothing in the loss ties column c of a level to class c.

The published loss takes the logarithm of cut probabilities (`loss: clipped`): where they are saturated it has no
gradient. `cross_entropy` is the same value everywhere else."""

from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Literal, cast

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn
from torch.nn import functional

from atose_ray.encoders.base import Encoder
from atose_ray.methods.base import EmbeddingMethod, MethodConfig, log_terms
from atose_ray.methods.stages import StageConfig
from atose_ray.objectives import TaggingConfig, TaggingLoss
from atose_ray.tags.autoencoder import glorot, probabilities
from atose_ray.types import AnyBatch, DataSpec, EmbeddedBatch, TagSet

EPSILON = 1e-7  # Keras' own: of the attention and of the probabilities in the loss
NORM_EPSILON, NORM_MOMENTUM, FREEDOM = 1e-3, 0.01, 1.001
Statistics = Literal["debiased", "plain"]
Gather = Callable[[torch.Tensor], torch.Tensor]
Levels = Annotated[  # also as text, `2 3`: a choice of a search is a plain value
    tuple[Annotated[int, Field(ge=1, le=8)], ...],
    BeforeValidator(lambda value: value.split() if isinstance(value, str) else value),
    Field(min_length=1),
]


class MultiLevelAttentionConfig(MethodConfig):
    """levels: blocks that have a say, from 1; the highest is how many blocks there are. width: of a block.
    pooling: how the frames of a level become a clip: attention, mean, max, or linear_softmax, each frame weighing what
        its own probability is (Wang, Li, Metze, ICASSP 2019). attention_over: what the weights' softmax runs over.
    tagging: what the cross-entropy looks at more.
    A stage embeds nothing beforehand, so `cache` stands for nothing here."""

    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"attend": ("encoder", "attention")}
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("attend",)
    EMBEDS_CLIPS: ClassVar[bool] = False

    kind: Literal["multi_level_attention"] = "multi_level_attention"
    levels: Levels = (2, 3)
    width: int = Field(default=600, ge=1, le=8192)
    dropout: float = Field(default=0.4, ge=0, lt=1)
    pooling: Literal["attention", "mean", "max", "linear_softmax"] = "attention"
    attention_over: Literal["classes", "frames"] = "classes"
    statistics: Statistics = "debiased"
    loss: Literal["cross_entropy", "clipped"] = "cross_entropy"
    tagging: TaggingConfig | None = None
    stages: tuple[StageConfig, ...] = (StageConfig(name="attend", epochs=30),)

    @model_validator(mode="after")
    def _levels_and_stages_fit(self) -> "MultiLevelAttentionConfig":
        if list(self.levels) != sorted(set(self.levels)):
            raise ValueError(f"levels go up, each once, such as [2, 3], but got {list(self.levels)}")
        if self.tagging is not None and self.loss == "clipped":
            raise ValueError("method.tagging weighs the cross-entropy, but method.loss is clipped; take cross_entropy")
        if any(isinstance(stage.cache, int) for stage in self.stages):
            raise ValueError(
                "multi_level_attention needs a clip's whole sequence and keeps no embeddings; leave cache out, or "
                "prepare the frames of a frozen encoder once (prepare frames)"
            )
        return self

    def cached_crops(self, index: int) -> int:
        """None: what is cached is one vector of a crop."""
        return 0

    @property
    def takes_soft_tags(self) -> bool:
        return True

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "MultiLevelAttention":
        widths = (self.width,) * max(self.levels)
        return MultiLevelAttention(self, widths, encoder, spec)


class MultiLevelAttention(EmbeddingMethod):
    """Parts: encoder, attention. What it embeds is the sequence, [B, S * E]."""

    def __init__(
        self, config: MultiLevelAttentionConfig, widths: tuple[int, ...], encoder: Encoder, spec: DataSpec
    ) -> None:
        super().__init__(encoder, spec)
        self.clipped = config.loss == "clipped" and not spec.exclusive
        self.attention = Attention(config, widths, encoder.embed_dim, len(spec.tags))
        self.tagging_loss = TaggingLoss(config.tagging, spec.exclusive)

    def embed(self, batch: AnyBatch) -> EmbeddedBatch:
        """The encoder's sequence of every clip, flat: [B, S * E]."""
        if isinstance(batch, EmbeddedBatch):
            return batch
        return EmbeddedBatch(sequence_of(self.encoder, batch.inputs).flatten(1), batch.tags_BC, batch.clip_id_B)

    def embedding_losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """Binary (or categorical) cross-entropy."""
        logits_BC = self.logits(embed_BE)
        if self.clipped:
            return log_terms(tagging=clipped_cross_entropy(torch.sigmoid(logits_BC), tags_BC))
        return log_terms(tagging=self.tagging_loss(logits_BC, tags_BC))

    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, S * E] -> [B, C]: sigmoid (softmax where tags are exclusive)."""
        return probabilities(self.logits(embed_BE), self.spec.exclusive)

    def frame_scores(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, S, len(tags)]: what a clip would score if all attention lay on one frame, for each of them.
        Raises ValueError for a tag the model was not trained on."""
        columns, embed_BE = self.columns(tags), self.embed(batch).embed_BE
        logits_BSC = self.attention.of_frames(embed_BE.view(len(embed_BE), -1, self.encoder.embed_dim), self.gather)
        return probabilities(logits_BSC, self.spec.exclusive)[..., columns]

    def logits(self, embed_BE: torch.Tensor) -> torch.Tensor:
        """[B, S * E] -> [B, C]."""
        logits_BC: torch.Tensor = self.attention(
            embed_BE.reshape(embed_BE.shape[0], -1, self.encoder.embed_dim), self.gather
        )
        return logits_BC


def sequence_of(encoder: Encoder, inputs: torch.Tensor) -> torch.Tensor:
    """[B, T] or [B, F, M] -> [B, S, E] float32, in the encoder's precision. Raises ValueError for too short a clip."""
    if inputs.shape[1] < encoder.min_length:
        raise ValueError(f"clips must have at least {encoder.min_length} samples or frames, but got {inputs.shape[1]}")
    with torch.autocast(inputs.device.type, encoder.autocast_dtype, enabled=encoder.autocast_dtype is not None):
        seq_BSE = encoder.sequence(encoder.front_end(inputs))
    return seq_BSE.to(inputs.dtype)


class Attention(nn.Module):
    """[B, S, E] -> logits [B, C]. Children have the names of the parity vectors."""

    def __init__(
        self, config: MultiLevelAttentionConfig, widths: tuple[int, ...], embed_dim: int, classes: int
    ) -> None:
        super().__init__()
        self.levels, self.dropout = config.levels, config.dropout
        self.bn0 = FrameNorm(embed_dim, config.statistics)
        for number, (before, after) in enumerate(zip((embed_dim, *widths), widths, strict=False), start=1):
            self.add_module(f"fc{number}", glorot(nn.Linear(before, after)))
            self.add_module(f"fc{number}_bn", FrameNorm(after, config.statistics))
            if number in config.levels:
                self.add_module(f"level{number}", Level(config, after, classes))
        self.out = glorot(nn.Linear(classes * len(self.levels), classes))
        self.out_bn = FrameNorm(classes, config.statistics)

    def forward(self, seq_BSE: torch.Tensor, gather: Gather) -> torch.Tensor:
        said = [level(hidden_BSE, gather) for level, hidden_BSE in self.heard(seq_BSE, gather)]
        logits_BC: torch.Tensor = self.out_bn(self.out(torch.cat(said, dim=1)), gather)
        return logits_BC

    def of_frames(self, seq_BSE: torch.Tensor, gather: Gather) -> torch.Tensor:
        """[B, S, E] -> logits [B, S, C] of every frame by itself."""
        said = [level.of_frames(hidden_BSE, gather) for level, hidden_BSE in self.heard(seq_BSE, gather)]
        logits_BSC: torch.Tensor = self.out_bn(self.out(torch.cat(said, dim=2)), gather)
        return logits_BSC

    def heard(self, seq_BSE: torch.Tensor, gather: Gather) -> Iterator[tuple["Level", torch.Tensor]]:
        """The levels that have a say, each with the hidden layer that it stands behind, [B, S, width]."""
        hidden_BSE = self.bn0(seq_BSE, gather)
        for number in range(1, max(self.levels) + 1):
            dense, norm = self.get_submodule(f"fc{number}"), self.get_submodule(f"fc{number}_bn")
            hidden_BSE = functional.relu(norm(dense(hidden_BSE), gather))
            hidden_BSE = functional.dropout(hidden_BSE, self.dropout, self.training)
            if number in self.levels:
                yield cast(Level, self.get_submodule(f"level{number}")), hidden_BSE


class Level(nn.Module):
    """[B, S, E] -> [B, C] in [0, 1]: a probability of every frame, and how the frames of a clip become one."""

    def __init__(self, config: MultiLevelAttentionConfig, width: int, classes: int) -> None:
        super().__init__()
        self.pooling, self.over = config.pooling, config.attention_over
        self.cla, self.cla_bn = glorot(nn.Linear(width, classes)), FrameNorm(classes, config.statistics)
        if self.pooling == "attention":
            self.att, self.att_bn = glorot(nn.Linear(width, classes)), FrameNorm(classes, config.statistics)

    def of_frames(self, hidden_BSE: torch.Tensor, gather: Gather) -> torch.Tensor:
        """[B, S, E] -> [B, S, C] in [0, 1], before anything is pooled."""
        return torch.sigmoid(self.cla_bn(self.cla(hidden_BSE), gather))

    def forward(self, hidden_BSE: torch.Tensor, gather: Gather) -> torch.Tensor:
        cla_BSC = self.of_frames(hidden_BSE, gather)
        if self.pooling == "mean":
            return cla_BSC.mean(dim=1)
        if self.pooling == "max":
            return cla_BSC.amax(dim=1)
        if self.pooling == "linear_softmax":
            return weighted(cla_BSC, cla_BSC)
        score_BSC = self.att_bn(self.att(hidden_BSE), gather)
        return weighted(cla_BSC, torch.softmax(score_BSC, dim=2 if self.over == "classes" else 1))


def weighted(cla_BSC: torch.Tensor, weight_BSC: torch.Tensor) -> torch.Tensor:
    """[B, S, C], [B, S, C] in [0, 1] -> [B, C]: the mean over S by weights that are cut off at 1e-7 from 0 and 1."""
    weight_BSC = weight_BSC.clamp(EPSILON, 1 - EPSILON)
    return (cla_BSC * (weight_BSC / weight_BSC.sum(dim=1, keepdim=True))).sum(dim=1)


def clipped_cross_entropy(probability_BC: torch.Tensor, tags_BC: torch.Tensor) -> torch.Tensor:
    """[B, C] in [0, 1], [B, C] -> scalar: Keras' binary cross-entropy of probabilities cut to [1e-7, 1 - 1e-7]."""
    cut_BC = probability_BC.clamp(EPSILON, 1 - EPSILON)
    return functional.binary_cross_entropy_with_logits((cut_BC / (1 - cut_BC)).log(), tags_BC)


class FrameNorm(nn.Module):
    """[..., C] -> [..., C]: BatchNorm over all but the last dimension, over the batches of all workers (`gather`).

    debiased: running statistics are the mean of what came, the newest weighing most, without the values at the start.
    plain: they begin at 0 and 1, and the variance is divided by n. The count of batches stays a tensor, so that a step
    can be captured as a graph."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, channels: int, statistics: Statistics) -> None:
        super().__init__()
        self.debiased = statistics == "debiased"
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x_XC: torch.Tensor, gather: Gather) -> torch.Tensor:
        flat_NC, affine = x_XC.flatten(0, -2), (self.weight, self.bias)
        if not self.training:
            running = (self.running_mean, self.running_var)
            return functional.batch_norm(flat_NC, *running, *affine, False, 0.0, NORM_EPSILON).view_as(x_XC)
        count_1 = gather(flat_NC.new_full((1, 1), len(flat_NC))).sum(dim=0)
        mean_C = gather(flat_NC.sum(dim=0)[None]).sum(dim=0) / count_1
        centred_NC = flat_NC - mean_C
        var_C = gather(centred_NC.square().sum(dim=0)[None]).sum(dim=0) / count_1
        self.track(mean_C.detach(), var_C.detach(), count_1)
        return (centred_NC * (self.weight * (var_C + NORM_EPSILON).rsqrt()) + self.bias).view_as(x_XC)

    @torch.no_grad()
    def track(self, mean_C: torch.Tensor, var_C: torch.Tensor, count_1: torch.Tensor) -> None:
        """Take a batch of so many rows into the running statistics."""
        self.num_batches_tracked.add_(1)
        share = torch.full_like(count_1, NORM_MOMENTUM)
        if self.debiased:  # in float64: of the first batch it is exactly 1
            share = (NORM_MOMENTUM / (1 - (1 - NORM_MOMENTUM) ** self.num_batches_tracked.double())).to(share.dtype)
            var_C = var_C * (count_1 / (count_1 - FREEDOM).clamp_min(1.0))
        self.running_mean.lerp_(mean_C, share)
        self.running_var.lerp_(var_C, share)
