"""The words every room shares, and the legend of shape letters.

Shape letters end a tensor's name (`audio_BT`):

    B clips (or crops) of a batch    T samples of audio      F spectrogram frames    M mel or frequency bins
    E encoder embedding              C tags (classes)        D latent of the joint embedding
    S steps of a sequence            V tag-vector size       N clips of a whole split"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy.typing as npt
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    import torch  # what only reads records does without

Array = npt.NDArray[Any]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(duration: str) -> float:
    """`30s`, `10min` or `1.5h` in seconds. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h)", duration)
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"a time is a number above zero and s, min or h, such as 10min, but got {duration!r}")
    return float(found[1]) * SECONDS[found[2]]


def _is_duration(text: str) -> str:
    seconds_of(text)
    return text


Duration = Annotated[str, AfterValidator(_is_duration)]


def package_yaml(package: str, name: str) -> Any:
    """What a YAML file beside the modules of a package says."""
    return yaml.safe_load(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


class Config(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error that names it.

    LATER: fields that came after others of the class were written down. At their default they are left out when it is
    written, so that what was there before keeps its identity and is read by what was there before."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        usual = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return {key: value for key, value in plain(self).items() if key not in usual}


@dataclass(frozen=True, eq=False)
class ByKind:
    """`Annotated[SerializeAsAny[FooConfig], ByKind(FOOS)]`: a mapping is validated by the class that its `kind` names.

    Unlike a union the table can grow: what joins it after the import (in a test, in a notebook) is a choice like the
    others."""

    table: Mapping[str, type[Config]]

    def choose(self, value: Any) -> Any:
        """The config that a mapping describes; anything else as it is. Raises ValueError for an unknown kind."""
        if not isinstance(value, Mapping):
            return value
        kind = str(value.get("kind"))
        if kind not in self.table:
            raise ValueError(f"kind is one of {', '.join(self.table)}, but got {kind!r}")
        return self.table[kind].model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.choose, handler(source))


ConfigT = TypeVar("ConfigT", bound=Config)


def by_kind(*configs: type[ConfigT]) -> dict[str, type[ConfigT]]:
    """The table of these classes by the `kind` that each has as its default."""
    return {config.model_fields["kind"].default: config for config in configs}


class AudioInput(Config):
    """Mono audio. `clip_samples` is the length that one forward pass takes; its unit of cropping is the sample."""

    kind: Literal["audio"] = "audio"
    sample_rate_hz: int = Field(gt=0)
    clip_samples: int = Field(gt=0)

    bins: ClassVar[None] = None
    dtype: ClassVar[Literal["int16"]] = "int16"
    unit: ClassVar[str] = "samples"

    @property
    def length(self) -> int:
        """Units of a clip."""
        return self.clip_samples

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip: [T]."""
        return (self.clip_samples,)

    @property
    def rate_hz(self) -> float:
        """Units per second."""
        return self.sample_rate_hz

    def __str__(self) -> str:
        return f"audio, {self.sample_rate_hz} Hz"

    def of_length(self, units: int) -> AudioInput:
        """The same input with other clips."""
        return self.model_copy(update={"clip_samples": units})


class FrameInput(Config):
    """A matrix of features that were computed before, [F, M]; its unit of cropping is the frame.
    frames, bins: F and M. frame_hop_seconds: from one frame to the next. dtype: as stored in the shards."""

    kind: Literal["frames"] = "frames"
    frames: int = Field(gt=0)
    bins: int = Field(gt=0)
    frame_hop_seconds: float = Field(gt=0)
    dtype: Literal["uint8", "float32"] = "float32"

    unit: ClassVar[str] = "frames"

    @property
    def length(self) -> int:
        return self.frames

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one clip: [F, M]."""
        return (self.frames, self.bins)

    @property
    def rate_hz(self) -> float:
        return 1 / self.frame_hop_seconds

    def __str__(self) -> str:
        return f"frames of {self.bins} bins, one every {self.frame_hop_seconds:g} s"

    def of_length(self, units: int) -> FrameInput:
        return self.model_copy(update={"frames": units})


Input = Annotated[AudioInput | FrameInput, Field(discriminator="kind")]


class DataSpec(Config):
    """The facts about a prepared data set that models are built from. Written once, by `prepare`, into the manifest.

    input: what a clip is. Its length is that of one forward pass: in a manifest the longest stored clip, in a model's
    folder the crop it was trained on."""

    LATER: ClassVar[tuple[str, ...]] = ("held_out",)

    input: Input
    tags: tuple[str, ...] = Field(min_length=1)
    exclusive: bool = Field(description="True: exactly one tag per clip (softmax). False: any number (sigmoid).")
    peak_normalize: bool = Field(default=False, description="True: every clip is divided by its highest magnitude.")
    counts: dict[Split, int] = Field(default_factory=dict, description="Clips per split.")
    held_out: tuple[str, ...] = Field(default=(), description="Of the tags, those of validation only (data/views.py).")

    @model_validator(mode="before")
    @classmethod
    def _written_before_frames(cls, tree: Any) -> Any:
        """Up to 0.1.0 every input was audio, and its two numbers stood at the top."""
        if not isinstance(tree, Mapping) or "sample_rate_hz" not in tree:
            return tree
        rest = dict(tree)
        audio = {key: rest.pop(key) for key in ("sample_rate_hz", "clip_samples") if key in rest}
        return {"input": {"kind": "audio", **audio}, **rest}

    @property
    def audio(self) -> AudioInput:
        if not isinstance(self.input, AudioInput):
            raise ValueError("this needs audio, but the data set holds frames; take an encoder for frames")
        return self.input

    @property
    def frames(self) -> FrameInput:
        if not isinstance(self.input, FrameInput):
            raise ValueError("this needs frames, but the data set holds audio; prepare frames, or take another encoder")
        return self.input

    @model_validator(mode="after")
    def _tags_are_distinct(self) -> DataSpec:
        twice = sorted(tag for tag, count in Counter(self.tags).items() if count > 1)
        if twice:
            raise ValueError(f"tags must be distinct, but these occur more than once: {', '.join(twice)}")
        return self


@dataclass(frozen=True, slots=True)
class ClipRef:
    """One clip of a data set as its annotations name it; nothing is decoded yet.

    source: path (or URI) of an audio file, or the encoded file itself as bytes.
    name: what identifies the clip in messages and tables, stable across machines (usually the path in the annotations).
    start_s, end_s: the part of the file, in seconds; `end_s=None` is the end of the file.
    group: artist, speaker or recording; the same group in two splits is a leak.
    fold: of a set that is made for cross-validation; `split` is then that of the set's first fold."""

    source: str | bytes
    name: str
    tags: tuple[str, ...]
    split: Split
    group: str | None = None
    start_s: float = 0.0
    end_s: float | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a data set adapter returns: every clip, in a deterministic order, and the facts that go with them.
    left_out: reason -> how many clips the annotations hold that are not listed (kept in the manifest)."""

    name: str
    clips: tuple[ClipRef, ...]
    tags: tuple[str, ...]
    exclusive: bool
    peak_normalize: bool = False
    left_out: tuple[tuple[str, int], ...] = ()


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor there. A GPU is not waited for; the host, which would read what has not come yet, is."""
    return tensor.to(device, non_blocking=device.type != "cpu")


class Batch(NamedTuple):
    """inputs: audio_BT float32 in [-1, 1], or frames_BFM float32 as stored; tags_BC float32 {0, 1}; clip_id_B int64
    (rows of one clip share its id)."""

    inputs: torch.Tensor
    tags_BC: torch.Tensor
    clip_id_B: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(moved(tensor, device) for tensor in self))


class EmbeddedBatch(NamedTuple):
    """A batch that is encoded already: embed_BE float32; tags_BC and clip_id_B as in Batch."""

    embed_BE: torch.Tensor
    tags_BC: torch.Tensor
    clip_id_B: torch.Tensor

    def to(self, device: torch.device) -> EmbeddedBatch:
        return EmbeddedBatch(*(moved(tensor, device) for tensor in self))


AnyBatch = Batch | EmbeddedBatch
BatchT = TypeVar("BatchT", Batch, EmbeddedBatch)


def untagged(kind: type[BatchT], rows: torch.Tensor, tags: int) -> BatchT:
    """A batch of inputs, or of embeddings, that are only asked about: no clip carries a tag, and none has an id."""
    return kind(rows, rows.new_zeros(len(rows), tags).float(), rows.new_zeros(len(rows)).long())


@dataclass(frozen=True)
class TagSet:
    """The tags a score is asked for: names, and for methods that read tag vectors, `vectors_CV`."""

    names: tuple[str, ...]
    vectors_CV: torch.Tensor | None = None
