"""The words every room shares, and the legend of shape letters.

Shape letters end a tensor's name (`audio_BT`):

    B clips (or crops) of a batch    T samples of audio      F spectrogram frames    M mel or frequency bins
    E encoder embedding              C tags (classes)        D latent of the joint embedding
    V tag-vector size                N clips of a whole split
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class Config(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataSpec(Config):
    """The facts about a prepared data set that models are built from. Written once, by `prepare`, into the manifest.

    `clip_samples` is the length of audio that one forward pass hears: in a manifest the longest stored clip,
    in a model's folder the crop it was trained on.
    """

    sample_rate_hz: int = Field(gt=0)
    clip_samples: int = Field(gt=0)
    tags: tuple[str, ...] = Field(min_length=1)
    exclusive: bool = Field(description="True: exactly one tag per clip (softmax). False: any number (sigmoid).")
    peak_normalize: bool = Field(default=False, description="True: every clip is divided by its highest magnitude.")
    counts: dict[Split, int] = Field(default_factory=dict, description="Clips per split.")

    @model_validator(mode="after")
    def _tags_are_distinct(self) -> DataSpec:
        if len(set(self.tags)) != len(self.tags):
            twice = sorted({tag for tag in self.tags if self.tags.count(tag) > 1})
            raise ValueError(f"tags must be distinct, but these occur more than once: {', '.join(twice)}")
        return self


@dataclass(frozen=True, slots=True)
class ClipRef:
    """One clip of a data set as its annotations name it; nothing is decoded yet.

    source: path (or URI) of an audio file, or the encoded file itself as bytes.
    name: what identifies the clip in messages and tables, stable across machines (usually the path in the annotations).
    start_s, end_s: the part of the file, in seconds; `end_s=None` is the end of the file.
    group: artist, speaker or recording; the same group in two splits is a leak.
    """

    source: str | bytes
    name: str
    tags: tuple[str, ...]
    split: Split
    group: str | None = None
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Listing:
    """What a data set adapter returns: every clip, in a deterministic order, and the facts that go with them.

    left_out: reason -> how many clips the annotations hold that are not listed (kept in the manifest).
    """

    name: str
    clips: tuple[ClipRef, ...]
    tags: tuple[str, ...]
    exclusive: bool
    peak_normalize: bool = False
    left_out: tuple[tuple[str, int], ...] = ()


class Batch(NamedTuple):
    """audio_BT float32 in [-1, 1]; tags_BC float32 {0, 1}; clip_id_B int64 (rows of one clip share its id)."""

    audio_BT: torch.Tensor
    tags_BC: torch.Tensor
    clip_id_B: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class EmbeddedBatch(NamedTuple):
    """A batch that an encoder has heard already: embed_BE float32; tags_BC and clip_id_B as in Batch."""

    embed_BE: torch.Tensor
    tags_BC: torch.Tensor
    clip_id_B: torch.Tensor

    def to(self, device: torch.device) -> EmbeddedBatch:
        """The same batch on `device`."""
        return EmbeddedBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


AnyBatch = Batch | EmbeddedBatch


@dataclass(frozen=True)
class TagSet:
    """The tags a score is asked for: names, and for methods that read tag vectors, `vectors_CV`."""

    names: tuple[str, ...]
    vectors_CV: torch.Tensor | None = None
