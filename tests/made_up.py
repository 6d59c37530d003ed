"""Components that nobody ships: an encoder with a time axis, a method that scores tags it never saw, tag vectors, a
data set of frames, a protocol. Each is one class and one line in its table, here as it would be in the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.datasets import KINDS, DatasetConfig
from atose_ray.encoders import ENCODERS, Encoder, EncoderConfig
from atose_ray.encoders.pooling import PoolingConfig
from atose_ray.evaluation.protocols import PROTOCOLS, Protocol
from atose_ray.evaluation.scoring import ClipScores
from atose_ray.methods import METHODS, Method, MethodConfig, StageConfig
from atose_ray.methods.base import log_terms
from atose_ray.tags.autoencoder import glorot, unit_norm
from atose_ray.tags.vectors import VECTORS, TagVectorsConfig
from atose_ray.types import AnyBatch, ClipRef, DataSpec, FrameInput, Listing, TagSet

HOP_SAMPLES = 128


class StepsConfig(EncoderConfig):
    """A vector every 128 samples, pooled by attention."""

    least_length: ClassVar[int] = HOP_SAMPLES
    published_length: ClassVar[int] = 2400
    kind: Literal["made_up_steps"] = "made_up_steps"
    width: int = Field(default=8, ge=1)
    pooling: PoolingConfig = PoolingConfig(kind="attention", heads=2)

    def build(self, spec: DataSpec) -> Encoder:
        return Steps(self, HOP_SAMPLES, HOP_SAMPLES / spec.input.rate_hz)


class FrameStepsConfig(StepsConfig):
    """The same on frames, which are scaled bin by bin as the train split is."""

    INPUT: ClassVar[Literal["audio", "frames"]] = "frames"
    least_length: ClassVar[int] = 1
    published_length: ClassVar[int] = 10
    kind: Literal["made_up_frame_steps"] = "made_up_frame_steps"  # type: ignore[assignment]

    def build(self, spec: DataSpec) -> Encoder:
        return FrameSteps(self, spec.frames.bins, spec.frames.frame_hop_seconds)


class Steps(Encoder):
    """[B, T] -> [B, 2 * width]."""

    def __init__(self, config: StepsConfig, bins: int, hop_seconds: float) -> None:
        super().__init__()
        self.embed_dim, self.min_length, self.hop_seconds = 2 * config.width, config.least_length, hop_seconds
        self.dense = glorot(nn.Linear(bins, 2 * config.width))
        self.pooling = config.pooling.build(self.embed_dim)

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.unfold(1, HOP_SAMPLES, HOP_SAMPLES)

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.dense(features))

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        return self.pooling(seq_BSE)


class FrameSteps(Steps):
    """[B, F, M] -> [B, 2 * width]. Buffers: mean and deviation of every bin over the train split."""

    def __init__(self, config: StepsConfig, bins: int, hop_seconds: float) -> None:
        super().__init__(config, bins, hop_seconds)
        self.register_buffer("mean_M", torch.zeros(bins))
        self.register_buffer("deviation_M", torch.ones(bins))

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - self.mean_M) / self.deviation_M

    def statistics(self, inputs: torch.Tensor) -> torch.Tensor:
        flat_XM = inputs.double().flatten(0, 1)
        count_M = torch.full_like(flat_XM[0], len(flat_XM))
        return torch.stack([count_M, flat_XM.sum(dim=0), flat_XM.square().sum(dim=0)])

    def fit(self, total: torch.Tensor) -> None:
        count, first, second = total
        self.mean_M.copy_(first / count)
        self.deviation_M.copy_((second / count - (first / count) ** 2).clamp(min=1e-12).sqrt())


class WordsConfig(MethodConfig):
    """Cosine between the projected clip and the vector of a tag, whichever tag that is."""

    reads_vectors = property(lambda self: True)
    scores_unseen = property(lambda self: True)
    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {"align": ("encoder", "projector")}
    USES: ClassVar[dict[str, tuple[str, ...]]] = STAGES
    COMPARABLE: ClassVar[tuple[str, ...]] = ("align",)

    kind: Literal["made_up_words"] = "made_up_words"
    sharpness: float = Field(default=5.0, gt=0)
    stages: tuple[StageConfig, ...] = (StageConfig(name="align", epochs=3),)

    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> Method:
        return Words(self, encoder, spec, tags)


class Words(Method):
    """Parts: encoder, projector."""

    def __init__(self, config: WordsConfig, encoder: Encoder, spec: DataSpec, tags: TagSet) -> None:
        super().__init__(encoder, spec)
        assert tags.vectors_CV is not None
        self.sharpness = config.sharpness
        self.projector = glorot(nn.Linear(encoder.embed_dim, tags.vectors_CV.shape[1]))
        self.register_buffer("vectors_CV", tags.vectors_CV.clone())

    def logits(self, batch: AnyBatch, vectors_CV: torch.Tensor) -> torch.Tensor:
        audio_BV = unit_norm(self.projector(self.embed(batch).embed_BE))
        return self.sharpness * audio_BV @ unit_norm(vectors_CV).T

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        logits_BC = self.logits(batch, self.vectors_CV)
        return log_terms(tagging=functional.binary_cross_entropy_with_logits(logits_BC, batch.tags_BC))

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        if tags.vectors_CV is not None:
            return torch.sigmoid(self.logits(batch, tags.vectors_CV))
        rows = [self.spec.tags.index(name) for name in tags.names]
        return torch.sigmoid(self.logits(batch, self.vectors_CV[rows]))


class LettersConfig(TagVectorsConfig):
    """How often each letter stands in a name."""

    kind: Literal["made_up_letters"] = "made_up_letters"

    def vectors(self, names: tuple[str, ...], tags_NC: np.ndarray | None = None) -> np.ndarray:
        return np.array([[name.count(chr(97 + letter)) for letter in range(26)] for name in names], np.float32)


def middle(length: int, crop: int, crops: int) -> list[int]:
    """One window, in the middle."""
    return [(length - crop) // 2]


def recall(scores: ClipScores, exclusive: bool) -> dict[str, float]:
    """Share of the clips' tags with a score above a half."""
    return {"recall_at_0.5": float((scores.scores_NC > 0.5)[scores.tags_NC > 0].mean())}


class NamedFramesConfig(DatasetConfig):
    """A folder of matrices whose names say all: `train-high-wide-003.npy`."""

    kind: Literal["made_up_frames"] = "made_up_frames"

    def list_clips(self) -> Listing:
        clips = []
        for path in sorted(self.folder().glob("*.npy")):
            split, *tags, _ = path.stem.split("-")
            clips.append(ClipRef(str(path), path.name, tuple(tags), split, group=split))
        return Listing(self.kind, tuple(clips), ("low", "high", "wide"), exclusive=False)

    def longest_clip(self, clips: Sequence[ClipRef]) -> FrameInput:
        return FrameInput(frames=12, bins=5, frame_hop_seconds=0.5, dtype="float32")


def write_frames(folder: Path, clips: int = 60) -> Path:
    """Matrices of 6 to 12 frames by 5 bins whose mean and range over time are their tags."""
    rng = np.random.default_rng(3)
    for index in range(clips):
        high, wide = index % 2, (index // 2) % 2
        frames = 6 + index % 7
        slope = np.linspace(-1, 1, frames)[:, None] * (1.5 if wide else 0.1)
        matrix = 100 + 20 * (high + slope + 0.2 * rng.standard_normal((frames, 5)))
        split = "train" if index < clips * 0.6 else "valid" if index < clips * 0.8 else "test"
        name = "-".join([split, "high" if high else "low", *(["wide"] * wide), f"{index:03d}.npy"])
        np.save(folder / name, matrix.astype(np.float32))
    return folder


ENCODERS |= {"made_up_steps": StepsConfig, "made_up_frame_steps": FrameStepsConfig}
KINDS |= {"made_up_frames": NamedFramesConfig}
METHODS |= {"made_up_words": WordsConfig}
VECTORS |= {"made_up_letters": LettersConfig}
PROTOCOLS["made_up"] = Protocol("made_up", "one window of each clip", middle, recall)
