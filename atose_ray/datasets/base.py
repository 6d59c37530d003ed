"""What every data set adapter shares: its config, its error, the folder its audio lies in, and how tables are read.

An adapter reads annotations and lists clips; it never decodes audio. Decoding, and the clips that fail at it, belong
to `prepare`.
"""

import csv
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from atose_ray.storage import is_uri
from atose_ray.types import AudioInput, ClipRef, Config, Input, Listing, Split

MATRIX_SUFFIXES = frozenset((".npy", ".npz", ".h5", ".hdf5", ".tfrecord"))
AUDIO_SUFFIXES = frozenset(
    (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aif", ".aiff", ".au")
)

KeyT = TypeVar("KeyT", int, str)
MAX_CELL_CHARS = 1 << 24  # biographies and other free text lie in the same tables as the tags


class DatasetError(ValueError):
    """The annotations or the folder of a data set are not what its adapter expects."""


class SourceError(ValueError):
    """A file that cannot become a clip; the message names the file, what came, and what to do."""


class DatasetConfig(Config):
    """Base of the adapters. `kind` is the name that `prepare` is called with. renders: whether the adapter makes its
    audio itself, in its source folder. content: what its files are."""

    renders: ClassVar[bool] = False
    content: ClassVar[str] = "audio"

    kind: str
    source: str | None = Field(default=None, description="Folder of the raw audio and its annotations.")
    max_clip_seconds: float = Field(
        default=600.0, ge=1, le=3600, description="A longer file becomes several clips, each with the file's tags."
    )

    @abstractmethod
    def list_clips(self) -> Listing:
        """Every clip of a local folder in a deterministic order (`remote.list_source`: of any). Reads annotations and
        the names of files only. Raises `DatasetError`."""

    @abstractmethod
    def longest_clip(self, clips: Sequence[ClipRef]) -> Input:
        """What the shards hold, with the longest clip that they may. Raises `DatasetError` where no clip can tell."""

    def folder(self) -> Path:
        """The absolute `source` folder. Raises `DatasetError` where it is missing or not a local folder."""
        if self.source is None:
            raise DatasetError(
                f"{self.kind} needs the folder of its {self.content}, but got none; give it: --source DIR"
            )
        if is_uri(self.source):
            raise DatasetError(
                f"{self.kind} makes its audio in a local folder, but got {self.source}; leave --source out, and give "
                "the place of the shards by --store"
            )
        path = Path(os.path.expanduser(self.source)).absolute()
        if not path.is_dir():
            what = "is a file" if path.is_file() else "does not exist"
            raise DatasetError(f"the source of {self.kind} must be a folder, but {path} {what}; give it: --source DIR")
        return path


class AudioDatasetConfig(DatasetConfig):
    """Base of the adapters whose files are sound."""

    sample_rate_hz: int = Field(default=16000, ge=1000, le=192000, description="Rate of the prepared shards.")

    def longest_clip(self, clips: Sequence[ClipRef]) -> Input:
        """Audio at `sample_rate_hz`."""
        samples = round(self.max_clip_seconds * self.sample_rate_hz)
        return AudioInput(sample_rate_hz=self.sample_rate_hz, clip_samples=samples)


class FoldedConfig(AudioDatasetConfig):
    """Base of the sets that are published in folds. Every clip keeps its fold, and which fold is the test split is for
    the training to say (`data.fold`); until then it is the first, and the second is for validation."""

    folds: ClassVar[int]

    @model_validator(mode="before")
    @classmethod
    def _folds_are_views(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and {"test_fold", "valid_fold"} & set(tree):
            raise ValueError(
                "test_fold and valid_fold are no options of prepare any more: the set is prepared once, with all of "
                "its folds, and a training or search picks one: --set data.fold=2"
            )
        return tree

    def table(self, *places: str) -> Path:
        """The table of the unpacked archive, at one of these places. Raises `DatasetError`."""
        return find_file(self.kind, self.folder(), places, "--source must be the unpacked archive")

    def fold_of(self, fold: str, where: str) -> tuple[int, Split]:
        """A fold as the table writes it, and its split. Raises `DatasetError` for one that is not published."""
        if fold not in {str(number) for number in range(1, self.folds + 1)}:
            raise DatasetError(f"{where}: fold must be 1 to {self.folds}, but got {fold!r}")
        return int(fold), default_split(int(fold), range(1, self.folds + 1))


def default_split(fold: int, folds: Sequence[int]) -> Split:
    """The split of a fold where nobody asked for another: the first is for testing, the second for validation."""
    return "test" if fold == folds[0] else "valid" if fold == folds[1] else "train"


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, a directory at a time, as the system names them: nothing is listed before it is asked
    for. Links to folders are not followed, so a circle of links has an end."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file():
                    yield Path(entry.path)


def find_file(kind: str, folder: Path, places: Sequence[str], hint: str) -> Path:
    """The first of `places` (paths relative to `folder`) that is a file. Raises `DatasetError` that names them."""
    for place in places:
        if (folder / place).is_file():
            return folder / place
    others = f" (or {', '.join(places[1:])})" if places[1:] else ""
    raise DatasetError(f"{kind} needs {places[0]}{others}, but {folder} has no such file; {hint}")


def first_file(paths: Sequence[Path]) -> Path:
    """The first that is a file; where none is, the one to expect, for `prepare` to report."""
    return next(filter(os.path.isfile, paths), paths[0])


def told_apart(pairs: Iterable[tuple[KeyT, str]]) -> dict[KeyT, str]:
    """Key -> name, in this order; a name that a second key has too gets its key."""
    names: dict[KeyT, str] = {}
    for key, name in pairs:
        names[key] = name if name not in names.values() else f"{name} ({key})"
    return names


def read_cells(
    path: Path, delimiter: str = ",", quoted: bool = True, strip: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Where it stands, and the cells, of every line that is not blank; UTF-8 with or without BOM, any line ends. strip:
    without the spaces around them. Raises `DatasetError` for another encoding or a broken quote."""
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
            spaces = quoted and strip
            lines = csv.reader(file, delimiter=delimiter, quoting=quoting, skipinitialspace=spaces, strict=True)
            for cells in lines:
                if any(map(str.strip, cells)):
                    yield f"{path.name} line {lines.line_num}", [cell.strip() for cell in cells] if strip else cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{path} must be a table in UTF-8, but cannot be read: {error}; fetch it again, or save it as CSV UTF-8"
        ) from error


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where it stands, and column -> cell, of every line of a CSV. Raises `DatasetError` where it has not `columns`."""
    lines = read_cells(path)
    _, header = next(lines, ("", [""]))
    if not set(columns) <= set(header):
        raise DatasetError(
            f"{path.name} must have the columns {', '.join(columns)}, but its first line is "
            f"{','.join(header)[:80]!r}; take the file from the archive as it is"
        )
    for where, cells in lines:
        require_cells(where, cells, header)
        yield where, dict(zip(header, cells, strict=True))


def require_cells(where: str, cells: Sequence[str], header: Sequence[str]) -> None:
    """Raises `DatasetError` if a line has not as many cells as the header."""
    if len(cells) != len(header):
        raise DatasetError(
            f"{where} must have {len(header)} cells as the header has, but has {len(cells)}; is the file complete?"
        )


def finish_listing(
    config: DatasetConfig,
    folder: Path,
    clips: Sequence[ClipRef],
    named_in: str,
    *,
    exclusive: bool,
    tags: Iterable[str] | None = None,
    left_out: Mapping[str, int] | None = None,
    peak_normalize: bool = False,
) -> Listing:
    """The listing of `clips`, with the tags that occur: in the order of `tags`, else by name. Raises `DatasetError`
    if a clip is named twice or no file of any is on disk."""
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise DatasetError(f"{named_in} names {twice[0]} more than once; keep one line per clip")
    if not clips:
        raise DatasetError(f"{named_in} names no clip that can be used")
    if not any(isinstance(clip.source, bytes) or Path(clip.source).is_file() for clip in clips):
        raise DatasetError(  # single missing files are for `prepare` to report
            f"none of the files named in {named_in} is in {folder} (the first would be {clips[0].name}); "
            "check that --source is the folder that the paths are relative to"
        )
    used = {tag for clip in clips for tag in clip.tags}
    ordered = tuple(tag for tag in tags if tag in used) if tags is not None else tuple(sorted(used))
    counted = tuple((reason, count) for reason, count in (left_out or {}).items() if count)
    return Listing(config.kind, tuple(clips), ordered, exclusive, peak_normalize, counted)
