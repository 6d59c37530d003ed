"""Recordings -> timelines on disk: whole folders, any format that FFmpeg reads, raw samples from standard input; what
was cut goes on."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile
from pydantic import ValidationError

from atose_ray.apps.timeline import Timeline, TimelineConfig, events_of
from atose_ray.apps.windows import iter_windows
from atose_ray.apps.writers import WRITERS
from atose_ray.audio.io import Samples
from atose_ray.config import ConfigError, apply_overrides, explain
from atose_ray.datasets.base import AUDIO_SUFFIXES
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model
from atose_ray.types import Array, TagSet

VIDEO_SUFFIXES = frozenset((".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"))
SAVE_EVERY = 512  # hops after which what was scored so far is written down
BLOCK = 1 << 20
STDIN = "stdin"  # the name of what comes from standard input


@dataclasses.dataclass(frozen=True)
class Listening:
    """How a recording is heard (apps/windows.py) and what events are made of it. scores: of the whole window around a
    hop, or of its frames; `auto` is frames where the model has them."""

    hop_s: float = 1.0
    left_s: float | None = None
    right_s: float | None = None
    timeline: TimelineConfig = dataclasses.field(default_factory=TimelineConfig)
    scores: Literal["auto", "window", "frame"] = "auto"

    def by_frames(self, model: Model) -> bool:
        """Whether frames are scored. Raises ValueError where they are asked for and the model has none."""
        if self.scores == "frame" and not model.method.scores_frames:
            raise ValueError(
                f"a {model.run.method.kind} model with encoder {model.run.encoder.kind} scores whole windows, not "
                "frames; leave --scores out, or train multi_level_attention on an encoder with a time axis"
            )
        return model.method.scores_frames if self.scores == "auto" else self.scores == "frame"

    def settings(self, model: Model, model_uri: str, tags: tuple[str, ...]) -> dict[str, Any]:
        """Everything that the events depend on, for the files that are written."""
        heard: dict[str, Any] = {"hop_s": self.hop_s, "left_s": self.left_s, "right_s": self.right_s}
        heard |= {"scores": "frame" if self.by_frames(model) else "window"}
        facts = {"model": model_uri, "sample_rate_hz": model.spec.audio.sample_rate_hz}
        return {**facts, **heard, "timeline": self.timeline.model_dump(mode="json"), "scored_tags": list(tags)}


def thresholds_of(model: Model, tags: TagSet | None, rule: str | None) -> dict[str, Any]:
    """What a threshold sets of a TimelineConfig. rule: a number, or that by which every tag's was fitted on validation;
    None is f1, else 0.5. Raises ConfigError for a rule of which the model has none."""
    fitted = model.metrics.get("thresholds", {}) if tags is None or set(tags.names) <= set(model.spec.tags) else {}
    if rule is None:
        rule = "f1" if "f1" in fitted else "0.5"
    try:
        return {"threshold": float(rule)}
    except ValueError:
        if rule not in fitted:
            has = ", ".join(fitted) or "none: it was made by an older version, or scores other tags than its own"
            raise ConfigError(f"threshold is a number or a rule that the model has ({has}), but got {rule!r}") from None
    scored = model.spec.tags if tags is None else tags.names
    return {"thresholds": {tag: value for tag, value in fitted[rule].items() if tag in scored}}


def timeline_config(model: Model, tags: TagSet | None, rule: str | None, overrides: Iterable[str]) -> TimelineConfig:
    """The settings of `--threshold` and `--set`. Raises ConfigError for those that are none."""
    try:
        return TimelineConfig.model_validate(apply_overrides(thresholds_of(model, tags, rule), overrides))
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", TimelineConfig)) from error


def sounds_below(places: list[str]) -> list[tuple[str, str]]:
    """Files and folders -> (file, its path below the folder that was named; STDIN for `-`). A folder stands for the
    sound and video files below it. Raises ValueError for a folder without any."""
    found: list[tuple[str, str]] = []
    for place in places:
        if not os.path.isdir(place):
            found.append((place, STDIN if place == "-" else Path(place).name))
            continue
        inside = sorted(stamp.name for stamp in Store(place).files() if is_sound(stamp.name))
        if not inside:
            raise ValueError(f"{place} holds no sound or video file; name files, or another folder")
        found += [(str(Path(place) / name), name) for name in inside]
    return found


def is_sound(name: str) -> bool:
    """By its ending."""
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES | VIDEO_SUFFIXES


def outputs(file: str, name: str, folder: str | None, formats: list[str]) -> dict[str, Path]:
    """Format -> where it is written: beside the sound, or below `folder` as the sound lies below its own."""
    base = Path(folder) / name if folder is not None else Path(file)
    return {one: base.with_name(base.stem + WRITERS[one].suffix) for one in formats}


def timeline_of(
    model: Model,
    file: str,
    listening: Listening,
    model_uri: str,
    *,
    tags: TagSet | None = None,
    partial: Path | None = None,
    progress: Callable[[float], None] = lambda seconds: None,
    source: BinaryIO | Samples | None = None,
) -> Timeline:
    """Score a recording and make its events. partial: where what was scored is kept on the way, so that a second call
    goes on from there. progress: hears how many seconds are scored. source: the open file, else `file` is read.

    Raises AudioError for what is no sound, ValueError for settings that do not fit the model."""
    wanted = tags or TagSet(model.spec.tags)
    listening.timeline.check(wanted.names)
    settings = listening.settings(model, model_uri, wanted.names)
    kept = Partial(partial, file, settings)
    rows, levels, seconds = kept.rows, kept.levels, kept.seconds
    for window in iter_windows(
        model,
        source or file,
        hop_s=listening.hop_s,
        left_s=listening.left_s,
        right_s=listening.right_s,
        tags=wanted,
        skip=len(rows),
        name=file,
        frames=listening.by_frames(model),
    ):
        rows.append(window.scores_C)
        levels.append(window.level)
        seconds = window.end_s
        if len(rows) % SAVE_EVERY == 0:
            kept.save(seconds)
            progress(seconds)
    scores_SC = np.stack(rows) if rows else np.zeros((0, len(wanted.names)), np.float32)
    events = events_of(scores_SC, wanted.names, listening.hop_s, seconds, listening.timeline)
    kept.delete()
    return Timeline(file, seconds, listening.hop_s, wanted.names, scores_SC, np.array(levels), events, settings)


class Partial:
    """What is scored of a recording so far. Of other settings, or of a file that changed, it begins anew."""

    def __init__(self, path: Path | None, file: str, settings: dict[str, Any]) -> None:
        self.path, self.rows, self.levels, self.seconds = path, list[Array](), list[float](), 0.0
        stamp = [os.path.getsize(file), os.stat(file).st_mtime_ns] if os.path.exists(file) else []
        heard = {key: value for key, value in settings.items() if key != "timeline"}
        self.key = hashlib.sha256(json.dumps([file, stamp, heard]).encode()).hexdigest()
        if path is not None and path.exists():
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as saved:
                if str(saved["key"]) == self.key:
                    self.rows, self.levels = list(saved["scores_SC"]), saved["level_S"].tolist()
                    self.seconds = float(saved["seconds"])

    def save(self, seconds: float) -> None:
        """A reader sees the old content or the new."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        np.savez(buffer, key=self.key, scores_SC=np.stack(self.rows), level_S=np.array(self.levels), seconds=seconds)
        Store(str(self.path.parent)).write(self.path.name, buffer.getvalue())

    def delete(self) -> None:
        """The recording is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def raw_as_wav(samples: BinaryIO, rate_hz: int, channels: int) -> Iterator[BinaryIO]:
    """Raw int16 samples (little-endian, channels interleaved) as a WAV file on this machine's disk, open."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        with soundfile.SoundFile(file.name, "w", rate_hz, channels, "PCM_16", format="WAV") as out:
            rest = b""
            while block := samples.read(BLOCK):
                block = rest + block
                whole = len(block) - len(block) % (2 * channels)
                out.write(np.frombuffer(block[:whole], "<i2").reshape(-1, channels))
                rest = block[whole:]
        yield file  # type: ignore[misc]  # the wrapper reads and seeks as a BinaryIO does


def write_outputs(timeline: Timeline, places: dict[str, Path]) -> None:
    """Every format to its place."""
    for one, place in places.items():
        Store(str(place.parent)).write(place.name, WRITERS[one].write(timeline))


@contextlib.contextmanager
def opened(file: str, rate_hz: int, channels: int) -> Iterator[tuple[str, BinaryIO | None]]:
    """What a recording is called, and for `-` the raw samples of standard input as an open file."""
    if file != "-":
        yield file, None
        return
    with raw_as_wav(sys.stdin.buffer, rate_hz, channels) as raw:
        yield STDIN, raw
