"""What every data set adapter shares: its config, its error, and the folder its audio lies in.

An adapter reads annotations and lists clips; it never decodes audio. Decoding, and the clips that fail at it, belong
to `prepare`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from atose_ray.types import ClipRef, Config, Listing

AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aif", ".aiff", ".au")
)


class DatasetError(ValueError):
    """The annotations or the folder of a data set are not what its adapter expects."""


class DatasetConfig(Config):
    """Base of the adapters. `kind` is the name that `prepare` is called with."""

    kind: str
    source: str | None = Field(default=None, description="Folder of the raw audio and its annotations.")
    sample_rate_hz: int = Field(default=16000, ge=1000, le=192000, description="Rate of the prepared shards.")

    @abstractmethod
    def list_clips(self) -> Listing:
        """Every clip in a deterministic order. Reads annotations only. Raises `DatasetError`."""

    def folder(self) -> Path:
        """The absolute `source` folder. Raises `DatasetError` where it is missing or not a local folder."""
        if self.source is None:
            raise DatasetError(f"{self.kind} needs the folder of its audio, but got none; give it: --source DIR")
        if "://" in self.source:
            raise DatasetError(
                f"the source of raw audio must be a local folder, but got {self.source}; copy or mount it first "
                "(the prepared shards may lie on object storage)"
            )
        path = Path(self.source).expanduser().absolute()
        if not path.is_dir():
            what = "is a file" if path.is_file() else "does not exist"
            raise DatasetError(f"the source of {self.kind} must be a folder, but {path} {what}; give it: --source DIR")
        return path


def require_some_audio(clips: Iterable[ClipRef], folder: Path, named_in: str) -> None:
    """Raises `DatasetError` if no annotated file is on disk. Single missing files are for `prepare` to report."""
    example = None
    for clip in clips:
        if isinstance(clip.source, bytes) or Path(clip.source).is_file():
            return
        example = example or clip.name
    if example is None:
        raise DatasetError(f"{named_in} names no clip that can be used")
    raise DatasetError(
        f"none of the files named in {named_in} is in {folder} (the first would be {example}); "
        "check that --source is the folder that the paths are relative to"
    )
